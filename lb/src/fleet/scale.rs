//! How many nodes the fleet should have, and which one it could best do without.
//!
//! Pure: what the fleet uses goes in, a number and a name come out. Up at once, down slowly: a call that finds no room
//! costs its caller seconds, a node too many costs money by the hour. Whoever publishes the signal owns the clock.

use std::time::{Duration, Instant};

use kiln_shared::ids::NodeId;

use super::detail::NodeDetail;
use super::standing::NodeState;

/// How the number of nodes follows what is used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScalePolicy {
    /// Fewest nodes.
    pub nodes_min: usize,
    /// Most nodes.
    pub nodes_max: usize,
    /// Share of the memory and of the calls that the nodes' cores can run that should be in use, above 0 and up to 1.
    pub utilisation_target: f64,
    /// The target may be missed by this share without a change.
    pub tolerance: f64,
    /// Fewer nodes are wanted only if fewer were enough for all of this time.
    pub down_after: Duration,
    /// The trend of what is used is continued for this long: about what it takes a new node to come up.
    pub look_ahead: Duration,
}

impl Default for ScalePolicy {
    fn default() -> Self {
        Self {
            nodes_min: 1,
            nodes_max: 1000,
            utilisation_target: 0.7,
            tolerance: 0.1,
            down_after: Duration::from_mins(5),
            look_ahead: Duration::from_mins(1),
        }
    }
}

/// What the fleet has and uses at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// Nodes that take calls.
    pub nodes: usize,
    /// What is used, in nodes of the mean size: by memory or by calls for each core, whichever is more.
    pub nodes_used: f64,
    /// Calls that wait for a place at the balancer.
    pub waiting: usize,
}

impl Usage {
    /// Adds up what nodes report. Nodes that are draining, suspect, ejected or down are not there to be used; memory of
    /// idle containers is free.
    pub fn of(details: &[NodeDetail], waiting: usize) -> Self {
        let (mut nodes, mut by_memory, mut by_calls) = (0_usize, 0.0, 0.0);
        for node in in_use(details) {
            nodes += 1;
            if let (Some(total), Some(free)) = (node.memory_total_mib, node.memory_free_mib) {
                by_memory += (total as f64 - free as f64) / total as f64;
            }
            if let Some(cpu) = node.cpu_total_millis {
                by_calls += f64::from(node.calls) / (f64::from(cpu) / 1000.0).max(1.0);
            }
        }
        Self { nodes, nodes_used: f64::max(by_memory, by_calls.min(nodes as f64)).max(0.0), waiting }
    }
}

/// Nodes that take calls.
fn in_use(details: &[NodeDetail]) -> impl Iterator<Item = &NodeDetail> {
    details.iter().filter(|node| node.state == NodeState::Up && node.ejected.is_none())
}

/// What the fleet should be.
#[derive(Debug, Clone, PartialEq)]
pub struct ScaleSignal {
    /// Nodes wanted.
    pub nodes_wanted: usize,
    /// Nodes that take calls.
    pub nodes: usize,
    /// Share of them that is used.
    pub utilisation: f64,
    /// What is used more with each second, in nodes of the mean size; below 0 if it is less.
    pub trend: f64,
    /// Memory that containers could still have on nodes that take calls, in MiB, idle ones counted as free.
    pub memory_free_mib: u64,
    /// Calls that wait for a place at this balancer.
    pub waiting: usize,
    /// Why.
    pub reason: ScaleReason,
    /// The node to drain first, if fewer are wanted; gone only when it is reported empty.
    pub drain_first: Option<NodeId>,
}

/// Why a number of nodes is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScaleReason {
    /// What is used is near the target.
    Steady,
    /// Calls wait for a place.
    CallsWait,
    /// More is used than the target, or soon will be.
    Busy,
    /// Less has been used than the target for long.
    Idle,
    /// Less is used than the target, not for long yet.
    MaybeIdle,
    /// There are fewer or more nodes than may be.
    Limits,
}

impl ScaleReason {
    /// The reason as a metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::CallsWait => "calls_wait",
            Self::Busy => "busy",
            Self::Idle => "idle",
            Self::MaybeIdle => "maybe_idle",
            Self::Limits => "limits",
        }
    }
}

/// Follows what the fleet uses.
#[derive(Debug)]
pub struct Scaler {
    policy: ScalePolicy,
    /// What was used, and when; the trend is taken from it.
    before: Option<(Instant, f64)>,
    /// Nodes used per second, smoothed.
    trend: f64,
    /// Since when fewer nodes would do, and the most that would have done since.
    idle: Option<(Instant, usize)>,
}

/// What the newest look counts for in the trend.
const TREND_NEWEST_SHARE: f64 = 0.2;

impl Scaler {
    /// Knows nothing of the fleet yet.
    pub fn new(policy: ScalePolicy) -> Self {
        Self { policy, before: None, trend: 0.0, idle: None }
    }

    /// Takes a look and says what is wanted. Call it about every second.
    pub fn look(&mut self, details: &[NodeDetail], waiting: usize, now: Instant) -> ScaleSignal {
        let usage = Usage::of(details, waiting);
        let (nodes_wanted, reason) = self.wanted(&usage, now);
        let fewer = nodes_wanted < usage.nodes;
        ScaleSignal {
            nodes_wanted,
            nodes: usage.nodes,
            utilisation: usage.nodes_used / usage.nodes.max(1) as f64,
            trend: self.trend,
            memory_free_mib: in_use(details)
                .filter_map(|node| u64::try_from(node.memory_free_mib?).ok())
                .fold(0, u64::saturating_add),
            waiting,
            reason,
            drain_first: if fewer { cheapest_to_lose(details).map(|node| node.id.clone()) } else { None },
        }
    }

    /// Nodes wanted for what is used.
    pub fn wanted(&mut self, usage: &Usage, now: Instant) -> (usize, ScaleReason) {
        self.follow(usage, now);
        let policy = &self.policy;
        let bounded = |nodes: usize| nodes.clamp(policy.nodes_min, policy.nodes_max.max(policy.nodes_min));
        if bounded(usage.nodes) != usage.nodes {
            self.idle = None;
            return (bounded(usage.nodes), ScaleReason::Limits);
        }
        let for_used = |used: f64| (used / policy.utilisation_target).ceil() as usize;
        let soon = usage.nodes_used + (self.trend * policy.look_ahead.as_secs_f64()).max(0.0);
        // No more than double by the trend alone: it is a guess.
        let soon = soon.min(2.0 * usage.nodes_used.max(1.0));
        let too_busy = soon > usage.nodes as f64 * policy.utilisation_target * (1.0 + policy.tolerance);
        if usage.waiting > 0 || too_busy {
            self.idle = None;
            let one_more = usage.nodes + usize::from(usage.waiting > 0);
            let reason = if usage.waiting > 0 { ScaleReason::CallsWait } else { ScaleReason::Busy };
            return (bounded(for_used(soon).max(one_more)), reason);
        }
        let enough = bounded(for_used(usage.nodes_used * (1.0 + policy.tolerance)));
        if enough >= usage.nodes {
            self.idle = None;
            return (usage.nodes, ScaleReason::Steady);
        }
        let (since, most) = self.idle.map_or((now, enough), |(since, most)| (since, most.max(enough)));
        self.idle = Some((since, most));
        if now.saturating_duration_since(since) < policy.down_after {
            (usage.nodes, ScaleReason::MaybeIdle)
        } else {
            (most, ScaleReason::Idle)
        }
    }

    fn follow(&mut self, usage: &Usage, now: Instant) {
        if let Some((then, used)) = self.before {
            let seconds = now.saturating_duration_since(then).as_secs_f64();
            if seconds > 0.0 {
                let newest = (usage.nodes_used - used) / seconds;
                self.trend += TREND_NEWEST_SHARE * (newest - self.trend);
            }
        }
        self.before = Some((now, usage.nodes_used));
    }
}

/// The node whose loss costs the fewest containers: one that drains already, else the one with the fewest warm and
/// starting ones, then the fewest calls.
pub fn cheapest_to_lose<'a>(details: impl IntoIterator<Item = &'a NodeDetail>) -> Option<&'a NodeDetail> {
    let candidates =
        details.into_iter().filter(|node| matches!(node.state, NodeState::Up | NodeState::Draining));
    candidates.min_by_key(|node| (node.state != NodeState::Draining, containers(node), node.calls))
}

fn containers(node: &NodeDetail) -> u64 {
    node.functions.iter().map(|of| u64::from(of.ready) + u64::from(of.starting)).sum()
}

/// True if nothing of a drained node is used any more, so that it may be taken away.
pub fn is_empty(node: &NodeDetail) -> bool {
    let has_calls = node.calls > 0 || node.own_calls > 0;
    node.state == NodeState::Draining && !has_calls && containers(node) == 0
}

#[cfg(test)]
mod tests {
    use kiln_shared::report::NodeReport;
    use proptest::prelude::*;

    use super::*;
    use crate::fleet::testing::{MEMORY_MIB, TestFleet, containers, demand, node_id, report};

    const POLICY: ScalePolicy = ScalePolicy {
        nodes_min: 2,
        nodes_max: 20,
        utilisation_target: 0.5,
        tolerance: 0.1,
        down_after: Duration::from_secs(100),
        look_ahead: Duration::from_secs(30),
    };

    fn usage(nodes: usize, nodes_used: f64) -> Usage {
        Usage { nodes, nodes_used, waiting: 0 }
    }

    #[test]
    fn more_nodes_are_wanted_at_once_and_fewer_only_after_a_while() {
        let mut scaler = Scaler::new(POLICY);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(scaler.wanted(&usage(4, 2.0), at(0)), (4, ScaleReason::Steady));
        assert_eq!(scaler.wanted(&usage(4, 2.9), at(1000)), (6, ScaleReason::Busy));
        assert_eq!(scaler.wanted(&usage(10, 3.0), at(2000)), (10, ScaleReason::MaybeIdle));
        assert_eq!(scaler.wanted(&usage(10, 1.0), at(2050)), (10, ScaleReason::MaybeIdle));
        assert_eq!(scaler.wanted(&usage(10, 1.0), at(2100)), (7, ScaleReason::Idle), "the most of the time");
    }

    #[test]
    fn a_call_that_waits_asks_for_one_node_more_at_least() {
        let mut scaler = Scaler::new(POLICY);
        let waiting = Usage { waiting: 1, ..usage(4, 1.0) };
        assert_eq!(scaler.wanted(&waiting, Instant::now()), (5, ScaleReason::CallsWait));
        let many = Usage { waiting: 9, ..usage(20, 20.0) };
        assert_eq!(
            scaler.wanted(&many, Instant::now()),
            (20, ScaleReason::CallsWait),
            "the most there may be"
        );
    }

    #[test]
    fn growing_use_asks_for_nodes_before_they_are_needed() {
        let mut scaler = Scaler::new(POLICY);
        let start = Instant::now();
        let wanted: Vec<(usize, ScaleReason)> = (0..20_u32)
            .map(|second| {
                let used = 3.0 + 0.05 * f64::from(second);
                scaler.wanted(&usage(8, used), start + Duration::from_secs(second.into()))
            })
            .collect();
        let first = wanted.iter().position(|&(_, reason)| reason == ScaleReason::Busy);
        assert!(first.is_some_and(|second| second < 19), "4.0 of 8 is no more than the target: {wanted:?}");
    }

    #[test]
    fn the_node_with_the_fewest_warm_containers_is_drained_first_and_is_empty_when_its_calls_are() {
        let mut fleet = TestFleet::empty(3);
        for (number, idle) in [(0, 3), (1, 1), (2, 2)] {
            let functions = vec![containers(&demand(1), idle, 0)];
            fleet.report(NodeReport { functions, ..report(number) });
        }
        let details = |fleet: &TestFleet| fleet.fleet.details(fleet.now);
        assert_eq!(cheapest_to_lose(&details(&fleet)).map(|node| &node.id), Some(&node_id(1)));
        fleet.report(NodeReport { draining: true, calls: 1, ..report(2) });
        assert_eq!(cheapest_to_lose(&details(&fleet)).map(|node| &node.id), Some(&node_id(2)));
        assert!(!is_empty(&details(&fleet)[2]));
        fleet.report(NodeReport { draining: true, ..report(2) });
        assert!(is_empty(&details(&fleet)[2]));
    }

    #[test]
    fn memory_and_calls_are_what_is_used() {
        let mut fleet = TestFleet::empty(2);
        fleet.report(NodeReport {
            memory_committed_mib: MEMORY_MIB,
            memory_idle_mib: MEMORY_MIB / 2,
            ..report(0)
        });
        let used = |fleet: &TestFleet| Usage::of(&fleet.fleet.details(fleet.now), 0);
        assert_eq!(used(&fleet), usage(2, 0.5));
        fleet.report(NodeReport { calls: 4, ..report(1) });
        assert_eq!(used(&fleet), usage(2, 1.0));
    }

    proptest! {
        #[test]
        fn what_is_wanted_stays_within_the_limits_and_is_never_too_little(
            steps in prop::collection::vec((0_usize..40, 0.0_f64..40.0, 0_usize..3, 0_u64..200), 1..50),
        ) {
            let mut scaler = Scaler::new(POLICY);
            let mut now = Instant::now();
            for (nodes, used, waiting, seconds) in steps {
                now += Duration::from_secs(seconds);
                let usage = Usage { nodes, nodes_used: used.min(nodes as f64), waiting };
                let (wanted, _) = scaler.wanted(&usage, now);
                prop_assert!((POLICY.nodes_min..=POLICY.nodes_max).contains(&wanted));
                if (POLICY.nodes_min..=POLICY.nodes_max).contains(&nodes) {
                    let needed = (usage.nodes_used / (1.0 + POLICY.tolerance) / POLICY.utilisation_target) as usize;
                    prop_assert!(wanted >= needed.min(POLICY.nodes_max), "{wanted} of {needed}");
                    prop_assert!(waiting == 0 || wanted > nodes || wanted == POLICY.nodes_max);
                }
            }
        }
    }
}
