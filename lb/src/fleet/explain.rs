//! Why a call went where it went: the nodes that would be looked at, with what each has and what speaks against it.
//!
//! Off the hot path: worked out again from a view, for the moment at which it is asked. What happened to a call when it
//! was placed is in its [`Trail`](super::trail::Trail).

use std::time::Instant;

use kiln_shared::ids::NodeId;

use super::demand::Demand;
use super::index::on;
use super::placement::{Ask, Decision, NoPlace, PlacementPolicy, Reason, TriedSet, place};
use super::policy::{bound, is_above_bound, offer_of};
use super::ring::NodeIndex;
use super::slots::Slots;
use super::standing::{NodeState, Standing};
use super::view::View;

/// A node as a call sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Candidate {
    /// Its name in the fleet.
    pub id: NodeId,
    /// Its place in the function's walk; 0 is home.
    pub rank: usize,
    /// Whether it is given calls.
    pub state: NodeState,
    /// What the state follows from.
    pub standing: Standing,
    /// It is ejected.
    pub is_ejected: bool,
    /// Calls that it has.
    pub load: u32,
    /// Calls that the bound on loads lets it have.
    pub load_max: u32,
    /// Free warm slots of the revision.
    pub idle: u32,
    /// Containers of it that are being started.
    pub starting: u32,
    /// Calls of it beyond its containers.
    pub queued: u32,
    /// Memory that another container could have; below 0 if overcommitted.
    pub memory_free_mib: i64,
    /// The image is present.
    pub has_image: bool,
    /// It is in the balancer's own zone, or the balancer has none.
    pub is_near: bool,
    /// What it offers the call; `None`: nothing.
    pub offer: Option<Reason>,
    /// It is above the bound, so others are preferred.
    pub is_above_bound: bool,
    /// The call goes there.
    pub is_chosen: bool,
}

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

/// Explains what would become of a call, with at most `candidates_max` nodes of its walk.
/// O(nodes explained), and what placing costs.
pub fn explain(
    view: &View,
    demand: &Demand,
    policy: &PlacementPolicy,
    candidates_max: usize,
    now: Instant,
) -> Explanation {
    let ask = Ask { demand, tried: &TriedSet::new(), draw: 0, now };
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
    Candidate {
        id: node.id().clone(),
        rank,
        state: node.state(),
        standing: node.standing(),
        is_ejected: node.is_ejected(),
        load: node.load(),
        load_max: bound(view, member, policy, ask.now).max(node.calls_floor()),
        idle: count(Slots::idle),
        starting: count(Slots::starting),
        queued: count(Slots::queued),
        memory_free_mib: node.memory_free_mib(),
        has_image: on(view.images(demand.image), node.serial()).is_some(),
        is_near: member.is_near(),
        offer: offer_of(view, index, demand, policy, ask.now).map(|offer| offer.reason(rank == 0)),
        is_above_bound: is_above_bound(view, member, policy, ask.now),
        is_chosen: false,
    }
}

#[cfg(test)]
mod tests {
    use kiln_shared::report::NodeReport;

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
        let explained = explain(&fleet.fleet.view(), &function, &fleet.policy, 9, fleet.now);
        let ids: Vec<NodeId> = explained.candidates.iter().map(|candidate| candidate.id.clone()).collect();
        assert_eq!(ids, walk.iter().map(|&number| node_id(number)).collect::<Vec<_>>());
        let offers: Vec<Option<Reason>> =
            explained.candidates.iter().map(|candidate| candidate.offer).collect();
        let room = Some(Reason::RoomSpill);
        assert_eq!(offers, [None, room, Some(Reason::WarmSpill), room]);
        let chosen = explained.candidates.iter().find(|candidate| candidate.is_chosen).expect("one is");
        assert_eq!((chosen.rank, chosen.idle, chosen.load), (2, 1, 2));
        assert_eq!(explained.candidates[0].standing, Standing::LinkLost);
    }

    #[test]
    fn the_chosen_node_is_shown_however_far_down_the_walk_it_is() {
        let mut fleet = TestFleet::empty(40);
        let function = demand(1);
        let warm = fleet.walk(&function)[30];
        fleet.report(NodeReport { functions: vec![containers(&function, 1, 0)], ..report(warm) });
        let explained = explain(&fleet.fleet.view(), &function, &fleet.policy, 3, fleet.now);
        let ranks: Vec<usize> = explained.candidates.iter().map(|candidate| candidate.rank).collect();
        assert_eq!((ranks, explained.nodes), (vec![0, 1, 2, 30], 40));
    }
}
