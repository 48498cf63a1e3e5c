//! When whoever adds and removes machines is told, and what is done about a node that is to go.
//!
//! Pure: signals go in, at most one step at a time comes out, and time is passed in. Invariant: a number is told only after
//! another one than the last was wanted at every look for the hold time, so that noise which is shorter tells nothing.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use kiln_shared::ids::NodeId;

use super::detail::NodeDetail;
use super::scale::{ScaleReason, ScaleSignal, cheapest_to_lose, is_empty};
use super::standing::NodeState;

/// What happens to a node that could be done without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleIn {
    /// It is named. Somebody else drains it.
    Name,
    /// It is named and drained.
    Drain,
}

/// How calmly a change is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewsPolicy {
    /// More nodes must have been wanted for so long.
    pub up_after: Duration,
    /// Fewer nodes than were told must have been wanted for so long. Where the fleet has been idle, the signal itself has
    /// waited, and [`Self::up_after`] is enough.
    pub down_after: Duration,
    /// A number that was told and is still not there is told again after so long.
    pub repeat_after: Duration,
    /// What happens to a node that is to go.
    pub scale_in: ScaleIn,
}

/// What to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// There should be so many nodes.
    Wanted {
        /// How many.
        nodes: usize,
        /// The node to remove, if one is to go.
        remove: Option<NodeId>,
    },
    /// The node that was to go is drained: nothing runs there, and its machine may be removed.
    Empty(NodeId),
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Tell this; say so with [`ScaleNews::told`] when it was heard.
    Tell(News),
    /// Drain this node; say so with [`ScaleNews::drains`] when it was told to.
    Drain(NodeId),
    /// Take it back: it is needed after all. Say so with [`ScaleNews::took_back`].
    Undrain(NodeId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

/// Another number than before is wanted.
#[derive(Debug, Clone, Copy)]
struct Pending {
    direction: Direction,
    since: Instant,
    /// The most that was wanted since.
    most: usize,
}

/// A node that is to go.
#[derive(Debug, Clone)]
struct Leaving {
    node: NodeId,
    /// It was told to drain.
    drains: bool,
}

/// Follows the signal and what was told of it.
#[derive(Debug)]
pub struct ScaleNews {
    policy: NewsPolicy,
    /// The number that was told last and is not there yet.
    told: Option<(usize, Instant)>,
    pending: Option<Pending>,
    leaving: Option<Leaving>,
    /// Nodes that were told to be empty and have not left yet.
    emptied: HashSet<NodeId>,
}

impl ScaleNews {
    /// Nothing was told yet.
    pub fn new(policy: NewsPolicy) -> Self {
        Self { policy, told: None, pending: None, leaving: None, emptied: HashSet::new() }
    }

    /// Takes a look; what is to be done now, if anything. Ask every second or so. O(nodes).
    pub fn look(&mut self, signal: &ScaleSignal, details: &[NodeDetail], now: Instant) -> Option<Step> {
        // One that drains no more was taken back, and may go again.
        self.emptied.retain(|node| details.iter().any(|detail| detail.id == *node && is_empty(detail)));
        let number = self.number(signal, now);
        self.leave(signal, details).or_else(|| {
            let nodes = number?;
            let remove = (nodes < signal.nodes).then(|| self.candidate(details)).flatten();
            Some(Step::Tell(News::Wanted { nodes, remove }))
        })
    }

    /// The news were heard.
    pub fn told(&mut self, news: &News, now: Instant) {
        match news {
            News::Wanted { nodes, remove } => {
                self.told = Some((*nodes, now));
                self.pending = None;
                if self.leaving.is_none() {
                    self.leaving = remove.clone().map(|node| Leaving { node, drains: false });
                }
            }
            News::Empty(node) => {
                self.leaving = None;
                self.emptied.insert(node.clone());
            }
        }
    }

    /// The node that is to go was told to drain.
    pub fn drains(&mut self) {
        if let Some(leaving) = &mut self.leaving {
            leaving.drains = true;
        }
    }

    /// The node that was to go was told to stay.
    pub fn took_back(&mut self) {
        self.leaving = None;
    }

    /// The number to tell, if one has been wanted for long enough.
    fn number(&mut self, signal: &ScaleSignal, now: Instant) -> Option<usize> {
        let (wanted, nodes) = (signal.nodes_wanted, signal.nodes);
        if self.told.is_some_and(|(told, _)| told == nodes && wanted == nodes) {
            self.told = None;
        }
        let before = self.told.map_or(nodes, |(told, _)| told);
        let direction = match wanted.cmp(&before) {
            std::cmp::Ordering::Greater => Direction::Up,
            std::cmp::Ordering::Less => Direction::Down,
            std::cmp::Ordering::Equal => {
                self.pending = None;
                let is_overdue = |at: Instant| now.saturating_duration_since(at) >= self.policy.repeat_after;
                return self.told.filter(|&(_, at)| is_overdue(at)).map(|(told, _)| told);
            }
        };
        let pending = match self.pending.filter(|pending| pending.direction == direction) {
            Some(pending) => Pending { most: pending.most.max(wanted), ..pending },
            None => Pending { direction, since: now, most: wanted },
        };
        self.pending = Some(pending);
        let hold = match direction {
            Direction::Up => self.policy.up_after,
            Direction::Down if signal.reason == ScaleReason::Idle => self.policy.up_after,
            Direction::Down => self.policy.down_after,
        };
        if now.saturating_duration_since(pending.since) < hold {
            return None;
        }
        Some(if direction == Direction::Up { wanted } else { pending.most })
    }

    /// What is due about the node that is to go.
    fn leave(&mut self, signal: &ScaleSignal, details: &[NodeDetail]) -> Option<Step> {
        let is_more_wanted = signal.nodes_wanted > signal.nodes;
        let Some(leaving) = &self.leaving else {
            // Several are to go: the next one when the one before is empty.
            let fewer =
                self.told.is_some_and(|(told, _)| told < signal.nodes) && signal.nodes_wanted < signal.nodes;
            let next = fewer.then(|| self.candidate(details)).flatten()?;
            self.leaving = Some(Leaving { node: next, drains: false });
            return None;
        };
        let Some(detail) = details.iter().find(|detail| detail.id == leaving.node) else {
            self.leaving = None;
            return None;
        };
        if matches!(detail.state, NodeState::Suspect | NodeState::Down) {
            // Nothing can be told to it. If it is wanted after all, it is taken back when it comes back.
            if detail.state == NodeState::Down && !is_more_wanted {
                self.leaving = None;
            }
            return None;
        }
        if is_more_wanted {
            let step = leaving.drains.then(|| Step::Undrain(leaving.node.clone()));
            if step.is_none() {
                self.leaving = None;
            }
            return step;
        }
        if is_empty(detail) {
            return Some(Step::Tell(News::Empty(leaving.node.clone())));
        }
        let is_ours = self.policy.scale_in == ScaleIn::Drain && !leaving.drains;
        is_ours.then(|| Step::Drain(leaving.node.clone()))
    }

    /// The node whose loss costs least, of those that were not told to be empty.
    fn candidate(&self, details: &[NodeDetail]) -> Option<NodeId> {
        let there = details.iter().filter(|detail| !self.emptied.contains(&detail.id));
        cheapest_to_lose(there).map(|detail| detail.id.clone())
    }
}

#[cfg(test)]
mod tests {
    use kiln_shared::report::NodeReport;
    use proptest::prelude::*;

    use super::*;
    use crate::fleet::testing::{TestFleet, containers, demand, node_id, report};

    const POLICY: NewsPolicy = NewsPolicy {
        up_after: Duration::from_secs(10),
        down_after: Duration::from_mins(1),
        repeat_after: Duration::from_mins(5),
        scale_in: ScaleIn::Drain,
    };

    fn signal(nodes: usize, nodes_wanted: usize) -> ScaleSignal {
        let reason = if nodes_wanted < nodes { ScaleReason::Idle } else { ScaleReason::Busy };
        ScaleSignal {
            nodes_wanted,
            nodes,
            utilisation: 0.5,
            trend: 0.0,
            memory_free_mib: 0,
            waiting: 0,
            reason,
            drain_first: None,
        }
    }

    fn tell(nodes: usize) -> Step {
        Step::Tell(News::Wanted { nodes, remove: None })
    }

    /// Looks at each second's signal and tells what is due: when, and how many.
    fn told(
        news: &mut ScaleNews,
        start: Instant,
        signals: impl IntoIterator<Item = (usize, usize)>,
    ) -> Vec<(u64, usize)> {
        let mut told = Vec::new();
        for (second, (nodes, wanted)) in (0..).zip(signals) {
            let now = start + Duration::from_secs(second);
            if let Some(Step::Tell(event @ News::Wanted { nodes, .. })) =
                news.look(&signal(nodes, wanted), &[], now)
            {
                told.push((second, nodes));
                news.told(&event, now);
            }
        }
        told
    }

    #[test]
    fn a_number_is_told_once_when_it_has_been_wanted_for_long_enough() {
        let (mut news, start) = (ScaleNews::new(POLICY), Instant::now());
        let more = [(4, 6); 30].into_iter().chain([(5, 6); 30]).chain([(6, 6); 600]);
        assert_eq!(told(&mut news, start, more), [(10, 6)]);
    }

    #[test]
    fn what_is_still_not_there_is_told_again_after_a_while() {
        let (mut news, start) = (ScaleNews::new(POLICY), Instant::now());
        assert_eq!(told(&mut news, start, [(4, 6); 400]), [(10, 6), (310, 6)]);
    }

    #[test]
    fn still_more_is_told_soon_and_less_only_after_a_long_time() {
        let (mut news, start) = (ScaleNews::new(POLICY), Instant::now());
        let growing = [(4, 5); 15].into_iter().chain([(4, 8); 15]);
        let calming = [(4, 4); 30].into_iter().chain([(4, 8)]).chain([(4, 4); 70]);
        assert_eq!(told(&mut news, start, growing.chain(calming)), [(10, 5), (25, 8), (121, 4)]);
    }

    #[test]
    fn what_was_not_heard_is_due_at_the_next_look_with_the_newest_number() {
        let (mut news, start) = (ScaleNews::new(POLICY), Instant::now());
        let at = |second| start + Duration::from_secs(second);
        assert_eq!(news.look(&signal(4, 6), &[], at(0)), None);
        assert_eq!(news.look(&signal(4, 6), &[], at(10)), Some(tell(6)));
        assert_eq!(news.look(&signal(4, 7), &[], at(11)), Some(tell(7)));
    }

    /// Three nodes with 3, 1 and 2 idle containers.
    fn fleet() -> TestFleet {
        let mut fleet = TestFleet::empty(3);
        for (number, idle) in [(0, 3), (1, 1), (2, 2)] {
            fleet.report(NodeReport { functions: vec![containers(&demand(1), idle, 0)], ..report(number) });
        }
        fleet
    }

    fn details(fleet: &TestFleet) -> Vec<NodeDetail> {
        fleet.fleet.details(fleet.now)
    }

    /// News of a fleet of three of which one is wanted, up to the first that was told.
    fn shrinking(policy: NewsPolicy, fleet: &TestFleet, start: Instant) -> ScaleNews {
        let mut news = ScaleNews::new(policy);
        let later = start + POLICY.up_after;
        assert_eq!(news.look(&signal(3, 1), &details(fleet), start), None);
        let event = News::Wanted { nodes: 1, remove: Some(node_id(1)) };
        assert_eq!(news.look(&signal(3, 1), &details(fleet), later), Some(Step::Tell(event.clone())));
        news.told(&event, later);
        news
    }

    #[test]
    fn nodes_go_one_after_the_other_and_each_is_told_when_it_is_empty() {
        let (mut fleet, start) = (fleet(), Instant::now());
        let mut news = shrinking(POLICY, &fleet, start);
        let now = start + Duration::from_secs(11);
        assert_eq!(news.look(&signal(3, 1), &details(&fleet), now), Some(Step::Drain(node_id(1))));
        news.drains();
        fleet.report(NodeReport { draining: true, calls: 1, ..report(1) });
        assert_eq!(news.look(&signal(2, 1), &details(&fleet), now), None, "a call runs there");
        fleet.report(NodeReport { draining: true, ..report(1) });
        let empty = News::Empty(node_id(1));
        assert_eq!(news.look(&signal(2, 1), &details(&fleet), now), Some(Step::Tell(empty.clone())));
        news.told(&empty, now);
        assert_eq!(news.look(&signal(2, 1), &details(&fleet), now), None);
        let next = news.look(&signal(2, 1), &details(&fleet), now);
        assert_eq!(next, Some(Step::Drain(node_id(2))), "not the one that is empty already");
    }

    #[test]
    fn a_node_that_is_needed_after_all_is_taken_back() {
        let (fleet, start) = (fleet(), Instant::now());
        let mut news = shrinking(POLICY, &fleet, start);
        let now = start + Duration::from_secs(11);
        assert_eq!(news.look(&signal(3, 1), &details(&fleet), now), Some(Step::Drain(node_id(1))));
        news.drains();
        assert_eq!(news.look(&signal(2, 3), &details(&fleet), now), Some(Step::Undrain(node_id(1))));
        news.took_back();
        assert_eq!(news.look(&signal(3, 3), &details(&fleet), now), None);
    }

    #[test]
    fn a_node_that_dies_while_it_drains_keeps_nothing_back() {
        let (mut fleet, start) = (fleet(), Instant::now());
        let mut news = shrinking(POLICY, &fleet, start);
        let at = |second| start + Duration::from_secs(second);
        assert_eq!(news.look(&signal(3, 1), &details(&fleet), at(11)), Some(Step::Drain(node_id(1))));
        news.drains();
        fleet.fleet.lost(&node_id(1), fleet.now);
        assert_eq!(news.look(&signal(2, 3), &details(&fleet), at(12)), None);
        assert_eq!(news.look(&signal(2, 3), &details(&fleet), at(22)), Some(tell(3)));
        // Back, and drained still.
        fleet.report(NodeReport { draining: true, ..report(1) });
        assert_eq!(news.look(&signal(2, 3), &details(&fleet), at(23)), Some(Step::Undrain(node_id(1))));
    }

    #[test]
    fn nobody_is_drained_who_should_only_be_named() {
        let (mut fleet, start) = (fleet(), Instant::now());
        let mut news = shrinking(NewsPolicy { scale_in: ScaleIn::Name, ..POLICY }, &fleet, start);
        let now = start + Duration::from_secs(11);
        assert_eq!(news.look(&signal(3, 1), &details(&fleet), now), None);
        fleet.report(NodeReport { draining: true, ..report(1) });
        let empty = Some(Step::Tell(News::Empty(node_id(1))));
        assert_eq!(news.look(&signal(2, 1), &details(&fleet), now), empty, "somebody else drained it");
    }

    proptest! {
        #[test]
        fn noise_that_is_shorter_than_the_hold_time_tells_nothing(
            bursts in prop::collection::vec((1_usize..9, 5_usize..10), 1..60),
        ) {
            let (mut news, start) = (ScaleNews::new(POLICY), Instant::now());
            // Another number for less than the hold time, then the one that is there again.
            let signals = bursts.into_iter().flat_map(|(seconds, wanted)| {
                std::iter::repeat_n((4, wanted), seconds).chain([(4, 4)])
            });
            prop_assert_eq!(told(&mut news, start, signals), []);
        }

        #[test]
        fn each_number_was_wanted_and_numbers_are_told_no_faster_than_the_hold_time(
            wants in prop::collection::vec(1_usize..9, 1..400),
        ) {
            let (mut news, start) = (ScaleNews::new(POLICY), Instant::now());
            let told = told(&mut news, start, wants.iter().map(|&wanted| (4, wanted)));
            let hold = POLICY.up_after.as_secs();
            for pair in told.windows(2) {
                prop_assert!(pair[1].0 - pair[0].0 >= hold, "{told:?}");
            }
            for (second, number) in told {
                let held = &wants[(second - hold) as usize..=second as usize];
                prop_assert!(held.contains(&number) || held.iter().all(|&wanted| wanted < number), "{held:?} {number}");
            }
        }
    }
}
