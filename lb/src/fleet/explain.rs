//! Why a call went where it went: the nodes that would be looked at, with what each has and what speaks against it.
//!
//! Off the hot path: worked out again from a view, for the moment at which it is asked. What happened to a call when it
//! was placed is in its [`Trail`](super::trail::Trail).

use std::borrow::Cow;
use std::time::Instant;

use kiln_shared::story::Candidate;

use super::demand::Demand;
use super::index::on;
use super::placement::{Ask, Decision, NoPlace, PlacementPolicy, TriedSet, place};
use super::policy::{bound, is_above_bound, offer_of};
use super::ring::NodeIndex;
use super::slots::Slots;
use super::standing::NodeState;
use super::view::View;

/// What placement would do with a call now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The nodes in the order of the function's walk, the first of them if there are many.
    pub candidates: Vec<Candidate>,
    /// Nodes of the fleet.
    pub nodes: usize,
    /// What is decided.
    pub decision: Result<Decision, NoPlace>,
}

/// Explains what would become of a call that these nodes have refused, with at most `candidates_max` nodes of its walk and
/// the chosen one. O(nodes explained), and what placing costs.
pub fn explain(
    view: &View,
    demand: &Demand,
    tried: &TriedSet,
    policy: &PlacementPolicy,
    candidates_max: usize,
    now: Instant,
) -> Explanation {
    let ask = Ask { demand, tried, draw: 0, now };
    let decision = place(view, &ask, policy);
    let chosen = decision.ok().map(|decision| decision.node);
    let walk = view.ring().walk(demand.key).enumerate();
    let shown = walk.filter(|&(rank, node)| rank < candidates_max || chosen == Some(node));
    let candidates = shown.map(|(rank, node)| Candidate {
        is_chosen: chosen == Some(node),
        ..candidate(view, &ask, policy, rank, node)
    });
    Explanation { candidates: candidates.collect(), nodes: view.members().len(), decision }
}

fn candidate(
    view: &View,
    ask: &Ask<'_>,
    policy: &PlacementPolicy,
    rank: usize,
    index: NodeIndex,
) -> Candidate {
    let (member, demand) = (view.member(index), ask.demand);
    let node = member.node();
    let slots = view.slots(index, demand);
    let count = |of: fn(&Slots) -> u32| slots.map_or(0, |slots| of(slots));
    let offer = offer_of(view, index, demand, policy, ask.now).map(|offer| offer.reason(rank == 0));
    let mut against: Vec<Cow<'static, str>> = Vec::new();
    if node.state() != NodeState::Up {
        against.push(node.standing().as_str().into());
    }
    if node.is_ejected() {
        against.push("it is ejected: it lost calls".into());
    }
    if !node.could_ever_fit(demand) {
        against.push("it is smaller than one container of the function".into());
    }
    if ask.tried.contains(node.serial()) {
        against.push("it has refused the call".into());
    }
    if against.is_empty() && offer.is_none() {
        against.push("no free slot, no room for a container, and calls wait for those that it has".into());
    }
    if is_above_bound(view, member, policy, ask.now) {
        against.push("it has as many calls as the bound on loads lets it have".into());
    }
    Candidate {
        node: node.id().clone(),
        rank: u32::try_from(rank).unwrap_or(u32::MAX),
        state: node.state().as_str().into(),
        calls: node.load(),
        calls_max: bound(view, member, policy, ask.now).max(node.calls_floor()),
        idle: count(Slots::idle),
        starting: count(Slots::starting),
        queued: count(Slots::queued),
        memory_free_mib: node.memory_free_mib(),
        has_image: on(view.images(demand.image), node.serial()).is_some(),
        is_near: member.is_near(),
        offer,
        against,
        is_chosen: false,
    }
}

#[cfg(test)]
mod tests {
    use kiln_shared::ids::NodeId;
    use kiln_shared::report::NodeReport;
    use kiln_shared::story::Reason;

    use super::*;
    use crate::fleet::testing::{TestFleet, containers, demand, node_id, report};

    #[test]
    fn every_node_is_shown_with_what_speaks_for_or_against_it() {
        let mut fleet = TestFleet::empty(4);
        let function = demand(1);
        let walk = fleet.walk(&function);
        fleet.fleet.lost(&node_id(walk[0]), fleet.now);
        fleet.report(NodeReport {
            functions: vec![containers(&function, 1, 2)],
            calls: 2,
            ..report(walk[2])
        });
        let explained =
            explain(&fleet.fleet.view(), &function, &TriedSet::new(), &fleet.policy, 9, fleet.now);
        let ids: Vec<NodeId> = explained.candidates.iter().map(|candidate| candidate.node.clone()).collect();
        assert_eq!(ids, walk.iter().map(|&number| node_id(number)).collect::<Vec<_>>());
        let offers: Vec<Option<Reason>> =
            explained.candidates.iter().map(|candidate| candidate.offer).collect();
        let room = Some(Reason::RoomSpill);
        assert_eq!(offers, [None, room, Some(Reason::WarmSpill), room]);
        let chosen = explained.candidates.iter().find(|candidate| candidate.is_chosen).expect("one is");
        assert_eq!((chosen.rank, chosen.idle, chosen.calls), (2, 1, 2));
        let against: Vec<usize> =
            explained.candidates.iter().map(|candidate| candidate.against.len()).collect();
        assert_eq!((against, &*explained.candidates[0].against[0]), (vec![1, 0, 0, 0], "its link broke"));
    }

    #[test]
    fn a_full_fleet_is_explained_node_by_node() {
        let mut fleet = TestFleet::empty(2);
        let function = demand(1);
        let mut tried = TriedSet::new();
        let walk = fleet.walk(&function);
        for &number in &walk {
            let room = report(number);
            fleet.report(NodeReport { memory_committed_mib: room.memory_total_mib, ..room });
        }
        let view = fleet.fleet.view();
        tried.insert(view.member(view.find(&node_id(walk[0])).expect("it is there")).node().serial());
        let explained = explain(&view, &function, &tried, &fleet.policy, 9, fleet.now);
        assert_eq!(explained.decision, Err(NoPlace::Full));
        let against: Vec<&str> =
            explained.candidates.iter().map(|candidate| &*candidate.against[0]).collect();
        assert!(against[0].contains("refused") && against[1].contains("no room"), "{against:?}");
        assert!(explained.candidates.iter().all(|candidate| !candidate.is_chosen));
    }

    #[test]
    fn the_chosen_node_is_shown_however_far_down_the_walk_it_is() {
        let mut fleet = TestFleet::empty(40);
        let function = demand(1);
        let warm = fleet.walk(&function)[30];
        fleet.report(NodeReport { functions: vec![containers(&function, 1, 0)], ..report(warm) });
        let explained =
            explain(&fleet.fleet.view(), &function, &TriedSet::new(), &fleet.policy, 3, fleet.now);
        let ranks: Vec<u32> = explained.candidates.iter().map(|candidate| candidate.rank).collect();
        assert_eq!((ranks, explained.nodes), (vec![0, 1, 2, 30], 40));
    }
}
