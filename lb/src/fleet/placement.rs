//! Which node gets a call.
//!
//! Owns the order of preference and nothing else: reads a view, changes nothing, reads no clock, allocates
//! nothing. Along the function's walk, nodes above the bounded load passed over, it takes the first of
//!
//! 1. a node with an idle warm slot of the revision,
//! 2. a node with room for another container, idle containers of others counted as room,
//! 3. any node that is up: its agent queues the call,
//!
//! and if every node is above the bound, the least loaded. Bounded loads: Mirrokni et al., arXiv 1608.01350.

use std::time::Instant;

use super::node::{Demand, Node, NodeSerial, NodeState};
use super::ring::{NodeIndex, RingKey};
use super::view::{Member, View};

/// Nodes that a call may be tried on.
pub const TRIES_MAX: usize = 8;

/// How calls are spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlacementPolicy {
    /// A node with more than this multiple of the mean load for its weight is passed over, once it has a call
    /// for each of its cores. At least 1.
    pub load_factor: f64,
    /// Nodes within the bound that are asked for a warm slot before a call goes to one with room.
    pub warm_search_nodes_max: u32,
    /// Nodes within the bound that are asked for room before a call queues. Keeps choosing cheap in a large
    /// fleet that is full, where most calls find no room.
    pub room_search_nodes_max: u32,
}

impl Default for PlacementPolicy {
    fn default() -> Self {
        Self { load_factor: 1.25, warm_search_nodes_max: 32, room_search_nodes_max: 128 }
    }
}

/// Nodes that were tried for one call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TriedSet {
    nodes: [u32; TRIES_MAX],
    len: u8,
}

impl TriedSet {
    /// No node yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a node. The set holds [`TRIES_MAX`]; further ones are not remembered, so end the tries before.
    pub fn insert(&mut self, node: NodeSerial) {
        if !self.contains(node) && self.len() < TRIES_MAX {
            self.nodes[self.len()] = node.get();
            self.len += 1;
        }
    }

    /// True if the node was tried.
    pub fn contains(&self, node: NodeSerial) -> bool {
        self.nodes[..self.len()].contains(&node.get())
    }

    /// Number of nodes that were tried.
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// True before the first try.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// What spoke for a node. Home is the first node of the function's walk, spill any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// An idle slot at home.
    WarmHome,
    /// An idle slot elsewhere.
    WarmSpill,
    /// Room for a container at home.
    RoomHome,
    /// Room for a container elsewhere.
    RoomSpill,
    /// No room within the bound; home queues.
    QueueHome,
    /// No room within the bound; another node queues.
    QueueSpill,
    /// Every node is above the bound or refused a moment ago; this one is the least loaded.
    LeastLoaded,
}

impl Reason {
    /// The reason as a metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WarmHome => "warm_home",
            Self::WarmSpill => "warm_spill",
            Self::RoomHome => "room_home",
            Self::RoomSpill => "room_spill",
            Self::QueueHome => "queue_home",
            Self::QueueSpill => "queue_spill",
            Self::LeastLoaded => "least_loaded",
        }
    }

    /// True if the node is expected to start a container for the call.
    pub fn starts_container(self) -> bool {
        matches!(self, Self::RoomHome | Self::RoomSpill)
    }
}

/// A node for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// The node, in the view that was asked.
    pub node: NodeIndex,
    /// What spoke for it.
    pub reason: Reason,
}

/// Why there is no node for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    /// None is up that was not tried; one may come up.
    #[error("no node is left to try")]
    NoNode,
    /// Each node of the fleet is smaller than one container of the function.
    #[error("no node is large enough for the function")]
    TooLarge,
}

#[derive(Clone, Copy)]
struct Candidate {
    node: NodeIndex,
    rank: usize,
}

impl Candidate {
    fn decide(self, home: Reason, spill: Reason) -> Decision {
        Decision { node: self.node, reason: if self.rank == 0 { home } else { spill } }
    }
}

/// The least loaded for its weight of the nodes that nothing else speaks for.
#[derive(Clone, Copy, Default)]
struct LeastLoaded {
    node: Option<(NodeIndex, f64)>,
}

impl LeastLoaded {
    fn compare(&mut self, node: NodeIndex, member: &Member) {
        let load = f64::from(member.node().load()) / f64::from(member.weight().points());
        if self.node.is_none_or(|(_, least)| load < least) {
            self.node = Some((node, load));
        }
    }

    fn decide(self) -> Option<Decision> {
        self.node.map(|(node, _load)| Decision { node, reason: Reason::LeastLoaded })
    }
}

/// Chooses a node. Every node that is up, large enough and not tried is found, if it is the only one.
///
/// Tens of nanoseconds if home has an idle slot and its data is in the cache; for each further node that is
/// asked, up to about 0.1 us of waiting for memory (`benches/placement`). The policy bounds how many are.
///
/// # Errors
/// No node may be tried, or none is large enough.
pub fn place(
    view: &View,
    demand: &Demand,
    tried: &TriedSet,
    policy: &PlacementPolicy,
    now: Instant,
) -> Result<Decision, NoPlace> {
    if let [member] = view.members() {
        return place_on_only_node(member, demand, tried, now);
    }
    let mut with_room = None;
    let mut queueing = None;
    let mut least_loaded = LeastLoaded::default();
    let mut asked = 0;
    for (rank, node) in view.ring().walk(RingKey::of(&demand.function)).enumerate() {
        let member = view.member(node);
        if !is_eligible(member.node(), demand, tried) {
            continue;
        }
        if is_above_bound(view, member, policy, now) {
            least_loaded.compare(node, member);
            continue;
        }
        let candidate = Candidate { node, rank };
        if has_idle_slot(member, demand) {
            return Ok(candidate.decide(Reason::WarmHome, Reason::WarmSpill));
        }
        if member.node().is_busy(now) {
            least_loaded.compare(node, member);
        } else {
            queueing = queueing.or(Some(candidate));
            if with_room.is_none() && member.node().has_room(demand) {
                with_room = Some(candidate);
            }
        }
        asked += 1;
        let enough_for_room = with_room.is_some() && asked >= policy.warm_search_nodes_max;
        let enough_for_queue = queueing.is_some() && asked >= policy.room_search_nodes_max;
        if enough_for_room || enough_for_queue {
            break;
        }
    }
    if let Some(candidate) = with_room {
        return Ok(candidate.decide(Reason::RoomHome, Reason::RoomSpill));
    }
    if let Some(candidate) = queueing {
        return Ok(candidate.decide(Reason::QueueHome, Reason::QueueSpill));
    }
    least_loaded.decide().ok_or_else(|| no_place(view, demand))
}

/// With one node there is nothing to compare: no ring, no bound.
fn place_on_only_node(
    member: &Member,
    demand: &Demand,
    tried: &TriedSet,
    now: Instant,
) -> Result<Decision, NoPlace> {
    let node = member.node();
    if !is_eligible(node, demand, tried) {
        return Err(if node.could_ever_fit(demand) { NoPlace::NoNode } else { NoPlace::TooLarge });
    }
    let reason = if has_idle_slot(member, demand) {
        Reason::WarmHome
    } else if !node.is_busy(now) && node.has_room(demand) {
        Reason::RoomHome
    } else {
        Reason::QueueHome
    };
    Ok(Decision { node: NodeIndex::new(0), reason })
}

fn is_eligible(node: &Node, demand: &Demand, tried: &TriedSet) -> bool {
    node.state() == NodeState::Up && !tried.contains(node.serial()) && node.could_ever_fit(demand)
}

fn has_idle_slot(member: &Member, demand: &Demand) -> bool {
    member.slots(demand).is_some_and(|slots| slots.idle() > 0)
}

fn is_above_bound(view: &View, member: &Member, policy: &PlacementPolicy, now: Instant) -> bool {
    let load = member.node().load();
    if load < member.node().calls_floor() {
        return false;
    }
    let fair = view.mean_load(now) * f64::from(member.weight().points());
    f64::from(load) >= (policy.load_factor * fair).ceil()
}

fn no_place(view: &View, demand: &Demand) -> NoPlace {
    let members = view.members();
    let fits_somewhere = members.iter().any(|member| member.node().could_ever_fit(demand));
    if members.is_empty() || fits_somewhere { NoPlace::NoNode } else { NoPlace::TooLarge }
}

#[cfg(test)]
mod tests {
    use kiln_shared::call::Refusal;
    use kiln_shared::report::NodeReport;
    use proptest::prelude::*;

    use super::*;
    use crate::fleet::testing::{MEMORY_MIB, TestFleet, containers, demand, report};

    fn full(number: usize) -> NodeReport {
        NodeReport { memory_committed_mib: MEMORY_MIB, ..report(number) }
    }

    fn chosen(fleet: &TestFleet, demand: &Demand) -> (usize, Reason) {
        let decision = fleet.place(demand, &TriedSet::new()).unwrap();
        (decision.node.get(), decision.reason)
    }

    #[test]
    fn home_wins_when_nodes_are_equal() {
        let fleet = TestFleet::empty(20);
        for number in 0..100 {
            let function = demand(number);
            assert_eq!(chosen(&fleet, &function), (fleet.walk(&function)[0], Reason::RoomHome));
        }
    }

    #[test]
    fn nodes_that_never_reported_are_used() {
        let fleet = TestFleet::silent(3);
        let function = demand(1);
        assert_eq!(chosen(&fleet, &function), (fleet.walk(&function)[0], Reason::RoomHome));
    }

    #[test]
    fn a_warm_slot_down_the_walk_beats_room_at_home() {
        let mut fleet = TestFleet::empty(10);
        let function = demand(1);
        let warm = fleet.walk(&function)[6];
        fleet.report(NodeReport { functions: vec![containers(&function, 1, 0)], ..report(warm) });
        assert_eq!(chosen(&fleet, &function), (warm, Reason::WarmSpill));
    }

    #[test]
    fn a_warm_slot_of_another_revision_does_not_count() {
        let mut fleet = TestFleet::empty(10);
        let function = demand(1);
        let other = Demand { revision: kiln_shared::function::Revision(7), ..function };
        let warm = fleet.walk(&function)[6];
        fleet.report(NodeReport { functions: vec![containers(&other, 1, 0)], ..report(warm) });
        assert_eq!(chosen(&fleet, &function), (fleet.walk(&function)[0], Reason::RoomHome));
    }

    #[test]
    fn room_down_the_walk_beats_a_queue_at_home() {
        let mut fleet = TestFleet::empty(10);
        let function = demand(1);
        let walk = fleet.walk(&function);
        for &number in &walk[..4] {
            fleet.report(full(number));
        }
        assert_eq!(chosen(&fleet, &function), (walk[4], Reason::RoomSpill));
    }

    #[test]
    fn idle_containers_of_others_count_as_room() {
        let mut fleet = TestFleet::empty(3);
        let function = demand(1);
        let home = fleet.walk(&function)[0];
        fleet.report(NodeReport { memory_idle_mib: 512, ..full(home) });
        assert_eq!(chosen(&fleet, &function), (home, Reason::RoomHome));
    }

    #[test]
    fn cpu_is_room_too() {
        let mut fleet = TestFleet::empty(3);
        let function = Demand { cpu_millis: 500, ..demand(1) };
        let walk = fleet.walk(&function);
        fleet.report(NodeReport { cpu_committed_millis: 3600, ..report(walk[0]) });
        assert_eq!(chosen(&fleet, &function), (walk[1], Reason::RoomSpill));
    }

    #[test]
    fn without_room_anywhere_home_queues() {
        let mut fleet = TestFleet::empty(5);
        (0..5).for_each(|number| fleet.report(full(number)));
        let function = demand(1);
        assert_eq!(chosen(&fleet, &function), (fleet.walk(&function)[0], Reason::QueueHome));
    }

    #[test]
    fn a_call_queues_at_home_if_as_many_nodes_as_are_asked_have_no_room() {
        let mut fleet = TestFleet::empty(12);
        let function = demand(1);
        let walk = fleet.walk(&function);
        walk[..11].iter().for_each(|&number| fleet.report(full(number)));
        fleet.policy.room_search_nodes_max = 11;
        assert_eq!(chosen(&fleet, &function), (walk[0], Reason::QueueHome));
        fleet.policy.room_search_nodes_max = 12;
        assert_eq!(chosen(&fleet, &function), (walk[11], Reason::RoomSpill));
    }

    #[test]
    fn a_node_that_refused_as_busy_is_not_asked_to_queue_for_a_moment() {
        let mut fleet = TestFleet::empty(2);
        (0..2).for_each(|number| fleet.report(full(number)));
        let function = demand(1);
        let walk = fleet.walk(&function);
        fleet.seat(&function).refuse(Refusal::Busy, fleet.now);
        assert_eq!(chosen(&fleet, &function), (walk[1], Reason::QueueSpill));
        fleet.now += std::time::Duration::from_millis(21);
        assert_eq!(chosen(&fleet, &function), (walk[0], Reason::QueueHome));
    }

    #[test]
    fn one_hot_function_spreads_at_the_bound() {
        let mut fleet = TestFleet::empty(10);
        let function = demand(1);
        let mut seats = Vec::new();
        for _ in 0..200 {
            fleet.pass();
            seats.push(fleet.seat(&function));
        }
        let loads: Vec<u32> = fleet.walk(&function).iter().map(|&n| fleet.node(n).load()).collect();
        assert!(loads.iter().all(|&load| load <= 25), "1.25 times the mean of 20: {loads:?}");
        assert_eq!(loads[0], 25, "home is filled to the bound: {loads:?}");
    }

    #[test]
    fn a_node_with_a_free_core_is_not_passed_over() {
        let mut fleet = TestFleet::empty(10);
        let function = demand(1);
        let home = fleet.walk(&function)[0];
        let _seats: Vec<_> = (0..3).map(|_| fleet.seat(&function)).collect();
        fleet.pass();
        assert_eq!(chosen(&fleet, &function).0, home);
    }

    #[test]
    fn a_function_larger_than_home_goes_where_it_fits() {
        let mut fleet = TestFleet::empty(4);
        let function = Demand { memory_mib: MEMORY_MIB + 1, ..demand(1) };
        assert_eq!(fleet.place(&function, &TriedSet::new()), Err(NoPlace::TooLarge));
        let last = fleet.walk(&function)[3];
        fleet.report(NodeReport { memory_total_mib: 2 * MEMORY_MIB, ..report(last) });
        assert_eq!(chosen(&fleet, &function), (last, Reason::RoomSpill));
        fleet.report(NodeReport { draining: true, memory_total_mib: 2 * MEMORY_MIB, ..report(last) });
        assert_eq!(fleet.place(&function, &TriedSet::new()), Err(NoPlace::NoNode));
    }

    #[test]
    fn an_empty_fleet_has_no_place() {
        let fleet = TestFleet::silent(0);
        assert_eq!(fleet.place(&demand(1), &TriedSet::new()), Err(NoPlace::NoNode));
    }

    #[test]
    fn with_one_node_the_reasons_are_the_same() {
        let mut fleet = TestFleet::empty(1);
        let function = demand(1);
        assert_eq!(chosen(&fleet, &function), (0, Reason::RoomHome));
        fleet.report(full(0));
        assert_eq!(chosen(&fleet, &function), (0, Reason::QueueHome));
        fleet.report(NodeReport { functions: vec![containers(&function, 1, 0)], ..full(0) });
        assert_eq!(chosen(&fleet, &function), (0, Reason::WarmHome));
        let mut tried = TriedSet::new();
        tried.insert(fleet.node(0).serial());
        assert_eq!(fleet.place(&function, &tried), Err(NoPlace::NoNode));
        let large = Demand { memory_mib: MEMORY_MIB + 1, ..function };
        assert_eq!(fleet.place(&large, &TriedSet::new()), Err(NoPlace::TooLarge));
    }

    #[derive(Debug, Clone)]
    struct AnyNode {
        draining: bool,
        tried: bool,
        calls: u32,
        committed_mib: u64,
        idle: u32,
    }

    fn any_node() -> impl Strategy<Value = AnyNode> {
        (any::<bool>(), prop::bool::weighted(0.2), 0_u32..40, 0_u64..=MEMORY_MIB, 0_u32..3).prop_map(
            |(draining, tried, calls, committed_mib, idle)| AnyNode {
                draining,
                tried,
                calls,
                committed_mib,
                idle,
            },
        )
    }

    fn fleet_of(nodes: &[AnyNode], function: &Demand) -> (TestFleet, TriedSet) {
        let mut fleet = TestFleet::silent(nodes.len());
        let mut tried = TriedSet::new();
        for (number, node) in nodes.iter().enumerate() {
            fleet.report(NodeReport {
                draining: node.draining,
                calls: node.calls,
                memory_committed_mib: node.committed_mib,
                functions: vec![containers(function, node.idle, 0)],
                ..report(number)
            });
            if node.tried {
                tried.insert(fleet.node(number).serial());
            }
        }
        (fleet, tried)
    }

    proptest! {
        #[test]
        fn a_node_is_found_whenever_one_may_be_tried_and_never_another(
            nodes in prop::collection::vec(any_node(), 0..50), number: u64,
        ) {
            let function = demand(number);
            let (fleet, tried) = fleet_of(&nodes, &function);
            let may = |n: usize| !nodes[n].draining && !tried.contains(fleet.node(n).serial());
            match fleet.place(&function, &tried) {
                Ok(decision) => prop_assert!(may(decision.node.get())),
                Err(reason) => {
                    prop_assert_eq!(reason, NoPlace::NoNode);
                    prop_assert!((0..nodes.len()).all(|n| !may(n)));
                }
            }
        }

        #[test]
        fn reasons_tell_the_truth(nodes in prop::collection::vec(any_node(), 2..30), number: u64) {
            let function = demand(number);
            let (fleet, tried) = fleet_of(&nodes, &function);
            let Ok(Decision { node, reason }) = fleet.place(&function, &tried) else { return Ok(()) };
            let (index, node) = (node.get(), &nodes[node.get()]);
            let is_home = fleet.walk(&function)[0] == index;
            let has_room = MEMORY_MIB - node.committed_mib >= function.memory_mib;
            match reason {
                Reason::WarmHome | Reason::WarmSpill => prop_assert!(node.idle > 0),
                Reason::RoomHome | Reason::RoomSpill => prop_assert!(node.idle == 0 && has_room),
                Reason::QueueHome | Reason::QueueSpill => prop_assert!(node.idle == 0 && !has_room),
                Reason::LeastLoaded => {
                    let least = nodes.iter().filter(|n| !n.draining && !n.tried).map(|n| n.calls).min();
                    prop_assert_eq!(Some(node.calls), least);
                }
            }
            match reason {
                Reason::WarmHome | Reason::RoomHome | Reason::QueueHome => prop_assert!(is_home),
                Reason::WarmSpill | Reason::RoomSpill | Reason::QueueSpill => prop_assert!(!is_home),
                Reason::LeastLoaded => {}
            }
        }

        #[test]
        fn every_balancer_with_the_same_reports_chooses_the_same_node(
            nodes in prop::collection::vec(any_node(), 1..20), number: u64,
        ) {
            let function = demand(number);
            let (one, tried_by_one) = fleet_of(&nodes, &function);
            let (other, tried_by_other) = fleet_of(&nodes, &function);
            prop_assert_eq!(one.place(&function, &tried_by_one), other.place(&function, &tried_by_other));
        }
    }
}
