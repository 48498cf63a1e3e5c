//! The fleet's owner under a test's control.

use kiln_shared::call::Refusal;
use kiln_shared::report::{FunctionReport, ReportScope};

use super::*;
use crate::fleet::demand::Demand;
use crate::fleet::placement::{NoPlace, Reason, TriedSet};
use crate::fleet::ring::NodeIndex;
use crate::fleet::seat::Seat;
use crate::fleet::standing::Standing;
use crate::fleet::testing::{TestFleet, containers, demand, node_id, remote, report};
use crate::fleet::view::Member;

fn idle(fleet: &TestFleet, node: usize, of: &Demand) -> Option<u32> {
    fleet.fleet.view().slots(NodeIndex::new(node), of).map(|slots| slots.idle())
}

#[test]
fn an_older_report_changes_nothing() {
    let mut fleet = TestFleet::silent(1);
    let newer = NodeReport { sequence: 7, calls: 3, ..report(0) };
    let older = NodeReport { sequence: 6, calls: 9, ..report(0) };
    let applied = fleet.fleet.apply([&newer, &older, &newer], fleet.now);
    assert_eq!(applied, Applied { news: 1, stale: 2, ..Applied::default() });
    assert_eq!(fleet.node(0).load(), 3);
}

#[test]
fn a_whole_report_that_says_the_same_again_is_a_sign_of_life() {
    let mut fleet = TestFleet::silent(1);
    let said = NodeReport { sequence: 7, calls: 3, ..report(0) };
    fleet.fleet.apply([&said], fleet.now);
    let late = fleet.now + Duration::from_millis(600);
    fleet.fleet.apply([&said], late);
    fleet.fleet.tick(late + Duration::from_millis(600));
    assert_eq!(fleet.node(0).state(), NodeState::Up);
}

#[test]
fn a_node_that_was_down_is_known_again_by_the_report_that_it_made_before() {
    let mut fleet = TestFleet::silent(1);
    let function = demand(1);
    let warm = NodeReport { sequence: 9, functions: vec![containers(&function, 2, 0)], ..report(0) };
    fleet.fleet.apply([&warm], fleet.now);
    fleet.fleet.lost(&node_id(0), fleet.now);
    let back = fleet.now + Duration::from_mins(2);
    fleet.fleet.tick(back);
    assert_eq!((fleet.node(0).state(), idle(&fleet, 0, &function)), (NodeState::Down, None));
    assert_eq!(fleet.fleet.heard(&node_id(0), back), Heard::NeedsWhole);
    fleet.fleet.apply([&warm], back);
    assert_eq!(idle(&fleet, 0, &function), Some(2));
    assert_eq!(fleet.fleet.heard(&node_id(0), back), Heard::Known);
}

#[test]
fn a_node_that_broke_off_long_ago_is_forgotten_and_one_that_only_stopped_talking_is_not() {
    let mut fleet = TestFleet::silent(2);
    for node in 0..2 {
        fleet.fleet.apply([&report(node)], fleet.now);
    }
    fleet.fleet.lost(&node_id(0), fleet.now);
    fleet.fleet.tick(fleet.now + Duration::from_mins(59));
    assert_eq!(fleet.fleet.view().members().len(), 2);
    fleet.fleet.tick(fleet.now + Duration::from_mins(61));
    let members = fleet.fleet.view();
    let ids: Vec<&NodeId> = members.members().iter().map(|member| member.node().id()).collect();
    assert_eq!(ids, [&node_id(1)]);
}

#[test]
fn a_new_life_of_an_agent_starts_without_containers() {
    let mut fleet = TestFleet::silent(1);
    let function = demand(1);
    let warm = NodeReport { sequence: 9, functions: vec![containers(&function, 2, 0)], ..report(0) };
    fleet.fleet.apply([&warm], fleet.now);
    assert_eq!(idle(&fleet, 0, &function), Some(2));
    let reborn = NodeReport { epoch: 2, sequence: 1, ..report(0) };
    fleet.fleet.apply([&reborn], fleet.now);
    assert_eq!(idle(&fleet, 0, &function), None);
}

#[test]
fn a_straggler_of_the_life_before_is_ignored() {
    let mut fleet = TestFleet::silent(1);
    let first = NodeReport { epoch: 5, sequence: 9, ..report(0) };
    let reborn = NodeReport { epoch: 3, sequence: 1, ..report(0) };
    let straggler = NodeReport { epoch: 5, sequence: 10, calls: 50, ..report(0) };
    let applied = fleet.fleet.apply([&first, &reborn, &straggler], fleet.now);
    assert_eq!(applied, Applied { news: 2, stale: 1, ..Applied::default() });
    assert_eq!(fleet.node(0).load(), 0);
}

#[test]
fn counts_that_cannot_be_do_not_overflow() {
    let mut fleet = TestFleet::silent(1);
    let starting = |number| FunctionReport { starting: u32::MAX, ..containers(&demand(number), u32::MAX, 1) };
    fleet.report(NodeReport { functions: (0..1000).map(starting).collect(), ..report(0) });
    assert!(fleet.node(0).starting() >= 1_000_000);
    fleet.report(report(0));
    assert_eq!(fleet.node(0).starting(), 0);
}

#[test]
fn a_stranger_is_counted_and_not_added() {
    let mut fleet = TestFleet::silent(1);
    let applied = fleet.fleet.apply([&report(5)], fleet.now);
    assert_eq!(applied, Applied { strangers: 1, ..Applied::default() });
    assert_eq!(fleet.fleet.view().members().len(), 1);
}

#[test]
fn a_report_of_numbers_alone_publishes_no_view() {
    let mut fleet = TestFleet::empty(3);
    let function = demand(1);
    fleet.report(NodeReport { functions: vec![containers(&function, 1, 0)], ..report(1) });
    let before = fleet.fleet.view();
    fleet.report(NodeReport { calls: 4, functions: vec![containers(&function, 0, 4)], ..report(1) });
    assert!(Arc::ptr_eq(&before, &fleet.fleet.view()));
    assert_eq!((fleet.node(1).load(), idle(&fleet, 1, &function)), (4, Some(0)));
}

#[test]
fn a_seat_takes_an_idle_slot_until_it_is_dropped() {
    let mut fleet = TestFleet::empty(1);
    let function = demand(1);
    fleet.report(NodeReport { functions: vec![containers(&function, 2, 0)], ..report(0) });
    let first = fleet.seat(&function);
    let second = fleet.seat(&function);
    assert_eq!((first.reason(), second.reason()), (Reason::WarmHome, Reason::WarmHome));
    assert_eq!((idle(&fleet, 0, &function), fleet.node(0).load()), (Some(0), 2));
    assert_eq!(fleet.seat(&function).reason(), Reason::RoomHome);
    drop((first, second));
    assert_eq!((idle(&fleet, 0, &function), fleet.node(0).load()), (Some(2), 0));
}

/// The report was made before the call arrived, or after it ended; either way its slot is counted once.
#[test]
fn own_calls_are_counted_whatever_a_report_says_of_them() {
    let mut fleet = TestFleet::empty(1);
    let function = demand(1);
    let unused = NodeReport { functions: vec![containers(&function, 1, 0)], ..report(0) };
    let used = NodeReport { calls: 1, functions: vec![containers(&function, 0, 1)], ..report(0) };
    fleet.report(unused.clone());
    let seat = fleet.seat(&function);
    for seen in [unused, used] {
        fleet.report(seen);
        assert_eq!((idle(&fleet, 0, &function), fleet.node(0).load()), (Some(0), 1));
    }
    drop(seat);
    assert_eq!((idle(&fleet, 0, &function), fleet.node(0).load()), (Some(1), 0));
}

#[test]
fn calls_of_other_balancers_are_counted_from_reports() {
    let mut fleet = TestFleet::empty(1);
    let function = demand(1);
    fleet.report(NodeReport { calls: 3, functions: vec![containers(&function, 1, 3)], ..report(0) });
    let seat = fleet.seat(&function);
    assert_eq!((idle(&fleet, 0, &function), fleet.node(0).load()), (Some(0), 4));
    fleet.report(NodeReport { calls: 2, functions: vec![containers(&function, 2, 2)], ..report(0) });
    assert_eq!((idle(&fleet, 0, &function), fleet.node(0).load()), (Some(2), 2));
    drop(seat);
}

#[test]
fn a_call_takes_memory_until_it_ends_or_a_report_says_what_is_free() {
    let mut fleet = TestFleet::empty(1);
    fleet.report(NodeReport { memory_committed_mib: 8192 - 256, memory_idle_mib: 128, ..report(0) });
    let seats: Vec<_> = (0..4).map(|n| fleet.seat(&demand(n))).collect();
    let reasons: Vec<Reason> = seats.iter().map(Seat::reason).collect();
    assert_eq!(reasons, [Reason::RoomHome, Reason::RoomHome, Reason::RoomHome, Reason::QueueHome]);
    fleet.report(report(0));
    assert_eq!(fleet.node(0).memory_free_mib(), 8192);
}

#[test]
fn a_silent_node_is_suspect_then_down_and_a_report_brings_it_back() {
    let mut fleet = TestFleet::empty(2);
    let function = demand(1);
    fleet.report(NodeReport { functions: vec![containers(&function, 1, 0)], ..report(0) });
    let start = fleet.now;
    for (after_millis, state, slots) in
        [(649, NodeState::Up, Some(1)), (650, NodeState::Suspect, Some(1)), (60_000, NodeState::Down, None)]
    {
        fleet.now = start + Duration::from_millis(after_millis);
        fleet.fleet.tick(fleet.now);
        assert_eq!((fleet.node(0).state(), idle(&fleet, 0, &function)), (state, slots));
    }
    fleet.report(NodeReport { functions: vec![containers(&function, 1, 0)], ..report(0) });
    assert_eq!((fleet.node(0).state(), idle(&fleet, 0, &function)), (NodeState::Up, Some(1)));
}

#[test]
fn nodes_that_never_reported_and_the_local_one_are_never_silent() {
    let mut fleet = TestFleet::silent(1);
    fleet.fleet.join(NodeConfig { address: Address::Local, ..remote(1) }, fleet.now);
    fleet.report(report(1));
    fleet.now += Duration::from_hours(1);
    fleet.fleet.tick(fleet.now);
    assert_eq!((fleet.node(0).state(), fleet.node(1).state()), (NodeState::Up, NodeState::Up));
}

#[test]
fn an_unreachable_node_is_left_alone_for_a_second_even_if_it_reports() {
    let mut fleet = TestFleet::empty(1);
    let function = demand(1);
    fleet.seat(&function).refuse(Refusal::Unreachable, fleet.now);
    fleet.report(report(0));
    fleet.fleet.tick(fleet.now);
    assert_eq!(fleet.place(&function, &TriedSet::new()), Err(NoPlace::NoNode));
    fleet.now += Duration::from_millis(1001);
    fleet.report(report(0));
    assert!(fleet.place(&function, &TriedSet::new()).is_ok());
}

#[test]
fn a_draining_node_that_never_reports_is_tried_again_later() {
    let mut fleet = TestFleet::silent(1);
    fleet.seat(&demand(1)).refuse(Refusal::Draining, fleet.now);
    assert_eq!(fleet.node(0).state(), NodeState::Draining);
    fleet.now += Duration::from_millis(1001);
    fleet.fleet.tick(fleet.now);
    assert_eq!(fleet.node(0).state(), NodeState::Up);
}

#[test]
fn a_restarted_agent_is_back_at_once() {
    let mut fleet = TestFleet::empty(1);
    fleet.seat(&demand(1)).refuse(Refusal::Unreachable, fleet.now);
    fleet.report(NodeReport { epoch: 2, ..report(0) });
    assert_eq!(fleet.node(0).state(), NodeState::Up);
}

#[test]
fn a_report_of_draining_takes_a_node_out_and_another_brings_it_back() {
    let mut fleet = TestFleet::empty(1);
    fleet.report(NodeReport { draining: true, ..report(0) });
    assert_eq!(fleet.node(0).state(), NodeState::Draining);
    fleet.report(report(0));
    assert_eq!(fleet.node(0).state(), NodeState::Up);
}

#[test]
fn weights_follow_reported_memory_unless_they_are_given() {
    let mut fleet = TestFleet::silent(1);
    fleet.fleet.join(remote(1), fleet.now);
    for number in [0, 1] {
        fleet.report(NodeReport { memory_total_mib: 32768, ..report(number) });
    }
    let view = fleet.fleet.view();
    let weights: Vec<Weight> = view.members().iter().map(Member::weight).collect();
    assert_eq!(weights, [Weight::STANDARD, Weight::new(512)]);
}

#[test]
fn members_that_stay_keep_their_counts_and_one_that_moves_is_new() {
    let mut fleet = TestFleet::empty(2);
    let seats: Vec<_> = (0..10).map(|n| fleet.seat(&demand(n))).collect();
    let (stays, moves) = (fleet.node(0), fleet.node(1));
    let new_place = NodeConfig { address: Address::Remote("10.1.1.1:1".into()), ..remote(1) };
    fleet.fleet.set_members([new_place, remote(0)], fleet.now);
    assert!(Arc::ptr_eq(&stays, &fleet.node(0)));
    assert_eq!(fleet.node(1).load(), 0);
    assert_ne!(moves.serial(), fleet.node(1).serial());
    drop(seats);
    assert_eq!((stays.load(), moves.load(), fleet.node(1).load()), (0, 0, 0));
}

#[test]
fn readers_see_a_node_join_and_leave() {
    let mut fleet = TestFleet::silent(1);
    let mut reader = fleet.fleet.reader();
    assert_eq!(reader.view().members().len(), 1);
    fleet.fleet.join(remote(7), fleet.now);
    assert_eq!(reader.view().members().len(), 2);
    fleet.fleet.leave(&node_id(7), fleet.now);
    assert_eq!(reader.view().members().len(), 1);
}

fn changes(number: usize, sequence: u64) -> NodeReport {
    NodeReport {
        scope: ReportScope::Changes { since: sequence - 1 },
        sequence,
        images: None,
        ..report(number)
    }
}

#[test]
fn changes_are_applied_to_what_is_known_and_only_if_they_follow() {
    let mut fleet = TestFleet::silent(1);
    let (one, other) = (demand(1), demand(2));
    let whole = NodeReport { functions: vec![containers(&one, 1, 0)], ..report(0) };
    let second = NodeReport { functions: vec![containers(&other, 2, 0)], calls: 4, ..changes(0, 2) };
    let gone = vec![(one.function, one.revision)];
    let fourth = NodeReport { gone: gone.clone(), ..changes(0, 4) };
    let third = NodeReport { gone, ..changes(0, 3) };
    assert_eq!(fleet.fleet.apply([&second], fleet.now).gaps, [node_id(0)], "nothing whole is known yet");
    assert_eq!(fleet.fleet.apply([&whole, &second], fleet.now).news, 2);
    assert_eq!((idle(&fleet, 0, &one), idle(&fleet, 0, &other)), (Some(1), Some(2)));
    let applied = fleet.fleet.apply([&fourth], fleet.now);
    assert_eq!((applied.news, applied.gaps), (0, vec![node_id(0)]));
    assert_eq!((idle(&fleet, 0, &one), fleet.node(0).load()), (Some(1), 4), "nothing was taken of it");
    assert_eq!(fleet.fleet.apply([&third, &fourth], fleet.now).news, 2);
    assert_eq!((idle(&fleet, 0, &one), idle(&fleet, 0, &other)), (None, Some(2)));
    let reborn = NodeReport { epoch: 9, ..changes(0, 5) };
    assert_eq!(fleet.fleet.apply([&reborn], fleet.now).gaps, [node_id(0)], "of a life that is not known");
}

#[test]
fn containers_that_are_gone_while_own_calls_run_stay_counted() {
    let mut fleet = TestFleet::silent(1);
    let function = demand(1);
    let whole = NodeReport { functions: vec![containers(&function, 1, 0)], ..report(0) };
    fleet.fleet.apply([&whole], fleet.now);
    let seat = fleet.seat(&function);
    fleet.fleet.apply([&NodeReport { sequence: 2, ..report(0) }], fleet.now);
    assert_eq!(idle(&fleet, 0, &function), Some(0));
    let again =
        NodeReport { sequence: 3, calls: 1, functions: vec![containers(&function, 1, 1)], ..report(0) };
    fleet.fleet.apply([&again], fleet.now);
    drop(seat);
    assert_eq!(idle(&fleet, 0, &function), Some(2), "the busy one was ours");
    fleet.fleet.apply([&NodeReport { sequence: 4, ..report(0) }], fleet.now);
    assert_eq!(idle(&fleet, 0, &function), None);
}

#[test]
fn what_no_machine_has_is_refused_and_changes_nothing() {
    let mut fleet = TestFleet::empty(1);
    let base = NodeReport { sequence: 99, ..report(0) };
    let refused = |fleet: &mut TestFleet, report: NodeReport| {
        let mut applied = fleet.fleet.apply([&report], fleet.now);
        assert_eq!((applied.news, fleet.node(0).memory_total_mib()), (0, Some(8192)));
        applied.refused.pop().map(|(_, absurd)| absurd)
    };
    for memory_total_mib in [0, (1 << 30) + 1] {
        let absurd = Absurd::Memory { memory_mib: memory_total_mib };
        assert_eq!(refused(&mut fleet, NodeReport { memory_total_mib, ..base.clone() }), Some(absurd));
    }
    for cpu_total_millis in [0, 65_536_001] {
        let absurd = Absurd::Cpu { cpu_millis: cpu_total_millis };
        assert_eq!(refused(&mut fleet, NodeReport { cpu_total_millis, ..base.clone() }), Some(absurd));
    }
    let functions = vec![containers(&demand(1), 1, 0); 100_001];
    let absurd = Absurd::Functions { functions: 100_001 };
    assert_eq!(refused(&mut fleet, NodeReport { functions, ..base }), Some(absurd));
}

#[test]
fn a_lost_link_takes_a_node_out_at_once_and_a_beat_brings_it_back_warm() {
    let mut fleet = TestFleet::empty(1);
    let function = demand(1);
    fleet.report(NodeReport { functions: vec![containers(&function, 1, 0)], ..report(0) });
    fleet.fleet.lost(&node_id(0), fleet.now);
    assert_eq!(fleet.node(0).standing(), Standing::LinkLost);
    fleet.fleet.tick(fleet.now);
    assert_eq!(fleet.node(0).state(), NodeState::Suspect);
    assert_eq!(fleet.fleet.heard(&node_id(0), fleet.now), Heard::Known);
    assert_eq!((fleet.node(0).state(), idle(&fleet, 0, &function)), (NodeState::Up, Some(1)));
    fleet.fleet.lost(&node_id(0), fleet.now);
    fleet.now += Duration::from_mins(1);
    fleet.fleet.tick(fleet.now);
    assert_eq!((fleet.node(0).state(), idle(&fleet, 0, &function)), (NodeState::Down, None));
    assert_eq!(fleet.fleet.heard(&node_id(0), fleet.now), Heard::NeedsWhole);
    assert_eq!(fleet.fleet.heard(&node_id(9), fleet.now), Heard::Stranger);
}

fn percent(fleet: &TestFleet, number: usize) -> u32 {
    (fleet.node(number).share(fleet.now) * 100.0).round() as u32
}

#[test]
fn a_node_that_is_new_or_was_down_starts_slowly_and_one_that_is_warm_does_not() {
    let mut fleet = TestFleet::empty(2);
    let function = demand(1);
    fleet.now += Duration::from_mins(1);
    fleet.fleet.tick(fleet.now);
    fleet.report(report(0));
    fleet.report(NodeReport { functions: vec![containers(&function, 1, 0)], ..report(1) });
    let share = percent;
    assert_eq!((share(&fleet, 0), share(&fleet, 1)), (10, 100));
    fleet.now += Duration::from_secs(5);
    assert_eq!(share(&fleet, 0), 50);
    fleet.now += Duration::from_secs(5);
    fleet.fleet.tick(fleet.now);
    assert_eq!(share(&fleet, 0), 100);
    fleet.fleet.join(remote(2), fleet.now);
    fleet.report(report(2));
    assert_eq!(share(&fleet, 2), 10);
}

#[test]
fn to_a_young_balancer_nobody_is_new() {
    let fleet = TestFleet::empty(2);
    assert_eq!(percent(&fleet, 0), 100);
}

#[test]
fn a_node_that_loses_calls_is_ejected_and_comes_back_slowly() {
    let mut fleet = TestFleet::empty(2);
    for _ in 0..5 {
        fleet.node(0).health().lost();
    }
    fleet.fleet.tick(fleet.now);
    assert!(fleet.node(0).is_ejected() && !fleet.node(0).takes_calls());
    assert_eq!(fleet.node(0).state(), NodeState::Up);
    let detail = fleet.fleet.detail(&node_id(0), fleet.now).expect("a member");
    assert_eq!(detail.ejected.expect("it is").cause.to_string(), "5 calls in a row were lost");
    for number in 0..5 {
        assert_eq!(fleet.seat(&demand(number)).node().id(), &node_id(1));
    }
    for _ in 0..9 {
        fleet.node(1).health().lost();
    }
    fleet.fleet.tick(fleet.now);
    assert!(!fleet.node(1).is_ejected(), "it is the last one");
    assert_eq!(fleet.fleet.ejections(), EjectionCounts { ejected: 1, ejections: 1, spared: 1 });
    fleet.now += Duration::from_secs(5);
    fleet.report(report(0));
    fleet.node(1).health().answered();
    fleet.fleet.tick(fleet.now);
    assert!(fleet.node(0).takes_calls() && fleet.node(0).share(fleet.now) < 0.2);
}

#[test]
fn an_operator_sees_all_that_is_known_of_a_node() {
    let mut fleet = TestFleet::empty(1);
    let function = demand(1);
    let image: Arc<str> = "image:1".into();
    fleet.report(NodeReport {
        calls: 3,
        functions: vec![containers(&function, 2, 1)],
        images: Some([Arc::clone(&image)].into()),
        ..report(0)
    });
    fleet.now += Duration::from_millis(50);
    let detail = fleet.fleet.detail(&node_id(0), fleet.now).expect("a member");
    assert_eq!((detail.state, detail.reason), (NodeState::Up, "its agent is heard"));
    assert_eq!(detail.heard_ago, Some(Duration::from_millis(50)));
    assert_eq!((detail.calls, detail.own_calls, detail.images.to_vec()), (3, 0, vec![image]));
    let [of_function] = detail.functions[..] else { panic!("one function: {:?}", detail.functions) };
    assert_eq!((of_function.ready, of_function.idle, of_function.calls), (3, 2, 1));
    assert_eq!(fleet.fleet.details(fleet.now), [detail]);
}
