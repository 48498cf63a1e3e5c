//! The default policy under a test's control.

use kiln_shared::call::Refusal;
use kiln_shared::report::{FunctionReport, NodeReport};
use proptest::prelude::*;

use super::*;
use crate::fleet::membership::{Fleet, FleetConfig, NodeConfig};
use crate::fleet::placement::place;
use crate::fleet::testing::{IMAGE, MEMORY_MIB, TestFleet, containers, demand, remote, report};

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
fn without_room_anywhere_a_call_waits_unless_a_queue_is_short() {
    let mut fleet = TestFleet::empty(5);
    let function = demand(1);
    (0..5).for_each(|number| fleet.report(full(number)));
    assert_eq!(fleet.place(&function, &TriedSet::new()), Err(NoPlace::Full));
    let walk = fleet.walk(&function);
    let queue = |waiting| FunctionReport { waiting, ..containers(&function, 0, 3) };
    fleet.report(NodeReport { functions: vec![queue(2)], ..full(walk[0]) });
    assert_eq!(fleet.place(&function, &TriedSet::new()), Err(NoPlace::Full));
    fleet.report(NodeReport { functions: vec![queue(1)], ..full(walk[2]) });
    assert_eq!(chosen(&fleet, &function), (walk[2], Reason::QueueSpill));
    fleet.report(NodeReport { functions: vec![queue(1)], ..full(walk[0]) });
    assert_eq!(chosen(&fleet, &function), (walk[0], Reason::QueueHome));
}

#[test]
fn a_container_that_is_being_started_beats_starting_another_unless_calls_wait_for_it() {
    let mut fleet = TestFleet::empty(5);
    let function = demand(1);
    let walk = fleet.walk(&function);
    let starting = |waiting| FunctionReport { starting: 2, waiting, ..containers(&function, 0, 0) };
    fleet.report(NodeReport { functions: vec![starting(1)], ..report(walk[3]) });
    assert_eq!(chosen(&fleet, &function), (walk[3], Reason::SoonSpill));
    let _seat = fleet.seat(&function);
    assert_eq!(chosen(&fleet, &function), (walk[0], Reason::RoomHome));
}

#[test]
fn room_where_the_image_is_beats_room_nearer_home() {
    let mut fleet = TestFleet::empty(20);
    let function = demand(1);
    let walk = fleet.walk(&function);
    fleet.report(NodeReport { images: Some([IMAGE.into()].into()), ..report(walk[5]) });
    assert_eq!(chosen(&fleet, &function), (walk[5], Reason::RoomSpill));
    fleet.report(NodeReport { images: Some([IMAGE.into()].into()), ..full(walk[5]) });
    assert_eq!(chosen(&fleet, &function), (walk[0], Reason::RoomHome));
}

#[test]
fn a_node_of_the_own_zone_is_chosen_among_equals() {
    let now = std::time::Instant::now();
    let config = FleetConfig { zone: Some("b".into()), ..FleetConfig::default() };
    let mut fleet = Fleet::new(config, now);
    let zone = |number| if number == 4 { "b" } else { "a" };
    let member = |number| NodeConfig { zone: Some(zone(number).into()), ..remote(number) };
    fleet.set_members((0..6).map(member), now);
    let idle = |number, demand: &Demand, idle| NodeReport {
        functions: vec![containers(demand, idle, 0)],
        ..report(number)
    };
    let function =
        (0..100).map(demand).find(|demand| fleet.view().ring().home(demand.key) != Some(NodeIndex::new(4)));
    let function = function.expect("one node is not home of all");
    let chosen = |fleet: &Fleet| {
        let ask = Ask { demand: &function, tried: &TriedSet::new(), draw: 0, now };
        place(&fleet.view(), &ask, &PlacementPolicy::default()).map(|decision| decision.node.get())
    };
    fleet.apply(&(0..6).map(|number| idle(number, &function, 0)).collect::<Vec<_>>(), now);
    assert_eq!(chosen(&fleet), Ok(4), "room");
    fleet.apply(&[NodeReport { sequence: 2, ..idle(1, &function, 1) }], now);
    assert_eq!(chosen(&fleet), Ok(1), "warm elsewhere beats room in the own zone");
    fleet.apply(&[NodeReport { sequence: 2, ..idle(4, &function, 1) }], now);
    assert_eq!(chosen(&fleet), Ok(4), "warm");
}

#[test]
fn calls_of_one_affinity_share_a_home_and_those_of_another_need_not() {
    let fleet = TestFleet::empty(50);
    let function = demand(1);
    let home = |affinity: &[u8]| chosen(&fleet, &function.with_affinity(affinity)).0;
    assert_eq!(home(b"tenant-1"), home(b"tenant-1"));
    let homes: std::collections::BTreeSet<usize> = (0_u8..50).map(|tenant| home(&[tenant])).collect();
    assert!(homes.len() > 20, "{homes:?}");
    assert_eq!((home(b""), home(&[b'x'; 257])), (home(b""), fleet.walk(&function)[0]));
}

#[test]
fn a_call_waits_if_as_many_nodes_as_are_asked_have_no_room() {
    let mut fleet = TestFleet::empty(12);
    let function = demand(1);
    let walk = fleet.walk(&function);
    walk[..11].iter().for_each(|&number| fleet.report(full(number)));
    fleet.policy.room_search_nodes_max = 11;
    assert_eq!(fleet.place(&function, &TriedSet::new()), Err(NoPlace::Full));
    fleet.policy.room_search_nodes_max = 12;
    assert_eq!(chosen(&fleet, &function), (walk[11], Reason::RoomSpill));
}

#[test]
fn a_warm_slot_far_down_the_walk_is_found() {
    let mut fleet = TestFleet::empty(100);
    let function = demand(1);
    let warm = fleet.walk(&function)[90];
    fleet.report(NodeReport { functions: vec![containers(&function, 1, 0)], ..report(warm) });
    assert_eq!(chosen(&fleet, &function), (warm, Reason::WarmSpill));
}

#[test]
fn a_node_that_refused_as_busy_is_asked_for_no_container_for_a_moment() {
    let mut fleet = TestFleet::empty(2);
    let function = demand(1);
    let walk = fleet.walk(&function);
    fleet.seat(&function).refuse(Refusal::Busy, fleet.now);
    assert_eq!(chosen(&fleet, &function), (walk[1], Reason::RoomSpill));
    fleet.now += std::time::Duration::from_millis(21);
    assert_eq!(chosen(&fleet, &function), (walk[0], Reason::RoomHome));
}

#[test]
fn a_node_is_asked_for_few_starts_at_a_time() {
    let mut fleet = TestFleet::empty(2);
    let function = demand(1);
    let walk = fleet.walk(&function);
    let seats: Vec<_> = (0..16).map(|_| fleet.seat(&function)).collect();
    let at = |number| seats.iter().filter(|seat| seat.node().id() == fleet.node(number).id()).count();
    assert_eq!((at(walk[0]), at(walk[1])), (8, 8), "two for each of four cores");
    assert_eq!(fleet.place(&function, &TriedSet::new()), Err(NoPlace::Full));
}

#[test]
fn one_hot_function_spreads_at_the_bound() {
    let mut fleet = TestFleet::empty(10);
    let function = demand(1);
    for number in 0..10 {
        fleet.report(NodeReport { functions: vec![containers(&function, 50, 0)], ..report(number) });
    }
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
        let has_place = |n: usize| nodes[n].idle > 0 || MEMORY_MIB - nodes[n].committed_mib >= function.memory_mib;
        let (any_up, any_place) = match nodes.len() {
            // The only node's own queue takes what it cannot run.
            1 => (may(0), may(0)),
            all => ((0..all).any(may), (0..all).any(|n| may(n) && has_place(n))),
        };
        match fleet.place(&function, &tried) {
            Ok(decision) => prop_assert!(may(decision.node.get())),
            Err(NoPlace::Full) => prop_assert!(any_up && !any_place),
            Err(reason) => {
                prop_assert_eq!(reason, NoPlace::NoNode);
                prop_assert!(!any_up);
            }
        }
    }

    #[test]
    fn reasons_tell_the_truth(nodes in prop::collection::vec(any_node(), 2..30), number: u64) {
        let function = demand(number);
        let (fleet, tried) = fleet_of(&nodes, &function);
        let Ok(Decision { node, reason, is_above_bound, .. }) = fleet.place(&function, &tried) else { return Ok(()) };
        let (index, node) = (node.get(), &nodes[node.get()]);
        let is_home = fleet.walk(&function)[0] == index;
        let has_room = MEMORY_MIB - node.committed_mib >= function.memory_mib;
        if is_above_bound {
            let could = |n: &&AnyNode| n.idle > 0 || MEMORY_MIB - n.committed_mib >= function.memory_mib;
            let may = nodes.iter().filter(|n| !n.draining && !n.tried).filter(could);
            prop_assert_eq!(Some(node.calls), may.map(|n| n.calls).min());
        }
        match reason {
            Reason::WarmHome | Reason::WarmSpill => prop_assert!(node.idle > 0),
            Reason::RoomHome | Reason::RoomSpill => prop_assert!((node.idle == 0 || is_above_bound) && has_room),
            other => prop_assert!(false, "nothing starts and nothing is queued: {:?}", other),
        }
        match reason {
            Reason::WarmHome | Reason::RoomHome => prop_assert!(is_home),
            Reason::WarmSpill | Reason::RoomSpill => prop_assert!(!is_home),
            _ => {}
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
