//! The waiting room under a test's control.

use kiln_shared::report::{FunctionReport, NodeReport};

use super::*;
use crate::fleet::concurrency::Limits;
use crate::fleet::placement::{NoPlace, Reason};
use crate::fleet::testing::{MEMORY_MIB, TestFleet, containers, demand, report};

/// Two nodes without room, each with a busy container of the function and a full queue before it.
fn full(function: &Demand) -> TestFleet {
    let mut fleet = TestFleet::empty(2);
    for number in 0..2 {
        fleet.report(busy(number, function));
    }
    assert_eq!(fleet.place(function, &TriedSet::new()), Err(NoPlace::Full));
    fleet
}

fn busy(number: usize, function: &Demand) -> NodeReport {
    let functions = vec![FunctionReport { waiting: 2, ..containers(function, 0, 1) }];
    NodeReport { memory_committed_mib: MEMORY_MIB, functions, ..report(number) }
}

fn wait(fleet: &TestFleet, demand: &Demand) -> Waiting {
    fleet.room().enter(*demand, None, fleet.now).expect("there is room to wait")
}

#[test]
fn a_report_of_a_free_slot_takes_the_call_that_came_first() {
    let function = demand(1);
    let mut fleet = full(&function);
    let (mut first, mut second) = (wait(&fleet, &function), wait(&fleet, &function));
    assert!(first.try_take().is_none() && fleet.room().is_waited_for(&function.function));
    let free = NodeReport { functions: vec![containers(&function, 1, 0)], ..busy(1, &function) };
    fleet.report(free);
    let seat = first.try_take().expect("it has the slot");
    assert!(seat.reason().is_warm() && seat.node().id() == fleet.node(1).id());
    let behind = second.try_take().expect("the node may have a few calls more than slots");
    assert!(matches!(behind.reason(), Reason::QueueHome | Reason::QueueSpill));
    assert_eq!(fleet.room().counts(), RoomCounts::default());
}

#[test]
fn a_call_that_ends_here_makes_place_at_once() {
    let function = demand(1);
    let mut fleet = full(&function);
    let free = NodeReport { functions: vec![containers(&function, 1, 0)], ..busy(1, &function) };
    fleet.report(free);
    let seats: Vec<Seat> = (0..3).map(|_| fleet.seat(&function)).collect();
    let mut waiting = wait(&fleet, &function);
    assert!(waiting.try_take().is_none());
    for seat in seats {
        fleet.room().give_back(seat, fleet.now);
        if let Some(taken) = waiting.try_take() {
            return drop(taken);
        }
    }
    panic!("three calls ended and nobody was let in");
}

#[test]
fn memory_that_comes_free_goes_to_the_functions_in_turn() {
    let mut fleet = TestFleet::empty(2);
    let full = |number| NodeReport { memory_committed_mib: MEMORY_MIB, ..report(number) };
    (0..2).for_each(|number| fleet.report(full(number)));
    let (greedy, modest) = (demand(1), demand(2));
    let mut greedy: Vec<Waiting> = (0..10).map(|_| wait(&fleet, &greedy)).collect();
    let mut modest = wait(&fleet, &modest);
    fleet.report(NodeReport { memory_committed_mib: MEMORY_MIB - 256, ..report(0) });
    let seats: Vec<Seat> = greedy.iter_mut().chain([&mut modest]).filter_map(Waiting::try_take).collect();
    assert_eq!(seats.len(), 2);
    assert_ne!(seats[0].load(), seats[1].load());
    assert!(modest.try_take().is_none() && fleet.room().counts().functions == 1, "it was let in");
}

#[test]
fn a_call_that_leaves_is_not_given_a_place() {
    let function = demand(1);
    let mut fleet = full(&function);
    let (first, mut second) = (wait(&fleet, &function), wait(&fleet, &function));
    drop(first);
    assert_eq!(fleet.room().waiting(), 1);
    fleet.report(NodeReport { functions: vec![containers(&function, 1, 0)], ..busy(0, &function) });
    assert!(second.try_take().is_some());
    assert_eq!(fleet.node(0).own_calls(), 0, "the seat was dropped");
}

#[test]
fn a_place_that_a_call_leaves_untaken_goes_to_the_next() {
    let mut fleet = TestFleet::empty(2);
    let function = demand(1);
    let limit = Limits::default().of(&function.function, 1);
    let running = limit.enter(fleet.fleet.view().calls_of(&function));
    let seat = fleet.seat(&function).with_running(running);
    let enter = || fleet.room().enter(function, Some(limit.clone()), fleet.now).expect("may wait");
    let (first, mut second) = (enter(), enter());
    fleet.room().give_back(seat, fleet.now);
    assert!(second.try_take().is_none(), "the first has it");
    drop(first);
    assert!(second.try_take().is_some());
}

#[test]
fn a_starving_function_takes_the_room_of_one_that_keeps_its_slots_warm() {
    let (hot, starved) = (demand(1), demand(2));
    let mut fleet = full(&hot);
    let functions = vec![containers(&hot, 1, 0)];
    let free = NodeReport { memory_idle_mib: 128, functions, ..busy(0, &hot) };
    fleet.report(free);
    let running = fleet.seat(&hot);
    fleet.fleet.leave(fleet.node(1).id(), fleet.now);
    fleet.fleet.join(crate::fleet::testing::remote(1), fleet.now);
    fleet.report(NodeReport { memory_committed_mib: MEMORY_MIB, ..report(1) });
    let mut starving = wait(&fleet, &starved);
    let mut next: Vec<Waiting> = (0..4).map(|_| wait(&fleet, &hot)).collect();
    let _behind: Vec<Seat> = next.iter_mut().filter_map(Waiting::try_take).collect();
    fleet.now += STARVING_AFTER;
    assert!(starving.try_take().is_none());
    fleet.room().give_back(running, fleet.now);
    let seat = starving.try_take().expect("the container that was freed gives way");
    assert!(seat.reason().starts_container());
}

#[test]
fn a_function_at_its_limit_waits_although_there_is_room_until_a_call_of_it_ends() {
    let mut fleet = TestFleet::empty(2);
    let function = demand(1);
    let limit = Limits::default().of(&function.function, 1);
    let running = limit.enter(fleet.fleet.view().calls_of(&function));
    let seat = fleet.seat(&function).with_running(running);
    let mut waiting = fleet.room().enter(function, Some(limit.clone()), fleet.now).expect("may wait");
    fleet.fleet.tick(fleet.now);
    assert!(waiting.try_take().is_none());
    fleet.room().give_back(seat, fleet.now);
    let seat = waiting.try_take().expect("the limit has room again");
    assert!(limit.enter(0).is_none(), "its place under the limit is taken");
    drop(seat);
    assert!(limit.enter(0).is_some());
}

#[test]
fn a_node_that_comes_back_takes_calls_that_waited_for_any() {
    let mut fleet = TestFleet::empty(1);
    fleet.fleet.lost(&crate::fleet::testing::node_id(0), fleet.now);
    assert!(fleet.fleet.view().expects_a_node_back());
    let mut waiting = wait(&fleet, &demand(1));
    assert!(waiting.try_take().is_none());
    fleet.fleet.heard(&crate::fleet::testing::node_id(0), fleet.now);
    assert!(waiting.try_take().is_some());
}

#[test]
fn a_call_that_waits_is_woken_on_its_own_thread() {
    let function = demand(1);
    let mut fleet = full(&function);
    let waiting = wait(&fleet, &function);
    let caller = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("builds");
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), waiting).await.is_ok() })
    });
    fleet.report(NodeReport { functions: vec![containers(&function, 1, 0)], ..busy(0, &function) });
    assert!(caller.join().expect("ends"));
}
