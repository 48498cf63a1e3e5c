//! Calls that find no place: none is lost, none starts more than it must, none waits for ever.

use std::time::Duration;

use kiln_lb::fleet::PlacementPolicy;

use crate::model::{Call, NodeModel, ONE_WAY, Outcome, Simulation};

/// 8 GiB and 4 cores, and Docker's time to start a container.
const NODE: NodeModel = NodeModel { memory_mib: 8192, cores: 4, start: Duration::from_millis(200) };
/// Containers of 128 MiB that fit a node.
const CONTAINERS_MAX: usize = 64;

fn burst(calls: usize, function: usize, runs: Duration) -> Vec<Call> {
    vec![Call { function, at: Duration::ZERO, runs }; calls]
}

/// The goal: bounded starts, no 5xx.
#[test]
fn a_thousand_first_calls_on_four_nodes_all_get_answers_from_few_containers() {
    for (runs, containers_max) in [
        (Duration::from_millis(1), 64),
        (Duration::from_millis(50), 160),
        (Duration::from_secs(5), 4 * CONTAINERS_MAX),
    ] {
        let simulation = Simulation::new(4, NODE, 1, PlacementPolicy::default());
        let outcome = simulation.run(burst(1000, 0, runs));
        println!("{runs:?}: {} containers, {:?}", outcome.containers_started, outcome.lasted);
        assert_eq!(outcome.unanswered(), 0);
        assert!(outcome.containers_started <= containers_max, "{}", outcome.containers_started);
        // Two a core, and what calls in the short queues at the nodes bring.
        assert!(outcome.starting_max <= 16, "{} starts at a time", outcome.starting_max);
        assert!(outcome.waiting_max <= 1000);
    }
}

#[test]
fn a_flood_of_one_function_does_not_keep_another_out() {
    let small = NodeModel { memory_mib: 512, ..NODE };
    let mut calls = burst(400, 0, Duration::from_millis(100));
    calls.push(Call { function: 1, at: Duration::from_millis(500), runs: Duration::from_millis(100) });
    let outcome = Simulation::new(2, small, 2, PlacementPolicy::default()).run(calls);
    let modest = outcome.took.last().copied().flatten().expect("answered");
    println!("the flood: {:?}, the other call: {modest:?}", outcome.lasted);
    assert_eq!(outcome.unanswered(), 0);
    assert!(modest < outcome.lasted / 2, "{modest:?} of {:?}", outcome.lasted);
}

/// Time that warm containers work, of the time that they could.
fn utilisation(policy: PlacementPolicy, containers: u32, runs: Duration) -> f64 {
    const NODES: usize = 2;
    let full = NodeModel { memory_mib: u64::from(containers) * 128, ..NODE };
    let mut simulation = Simulation::new(NODES, full, 1, policy);
    (0..NODES).for_each(|node| simulation.warm(node, 0, containers));
    let calls = 50 * NODES * containers as usize;
    let Outcome { lasted, took, .. } = simulation.run(burst(calls, 0, runs));
    assert_eq!(took.len(), calls);
    let could = lasted.saturating_sub(2 * ONE_WAY).as_secs_f64() * f64::from(containers) * NODES as f64;
    calls as f64 * runs.as_secs_f64() / could
}

/// Why the default lookahead is what it is: the way there and back must not leave containers idle.
#[test]
fn a_short_queue_at_the_node_keeps_its_containers_at_work() {
    let default = PlacementPolicy::default();
    let none = PlacementPolicy { lookahead_calls_min: 0, lookahead_share: 0.0, ..default };
    for containers in [1, 4, 16] {
        let of = |policy| utilisation(policy, containers, Duration::from_millis(1));
        let (with, without) = (of(default), of(none));
        println!("{containers} containers: {with:.2} of the time at work, {without:.2} without lookahead");
        assert!(with > 0.95 && without < 0.9, "{containers} containers: {with:.2}, {without:.2}");
    }
}

#[test]
fn a_call_that_comes_while_others_wait_is_not_served_before_them() {
    let small = NodeModel { memory_mib: 128, ..NODE };
    let runs = Duration::from_millis(20);
    let calls = (0..50).map(|number| Call { function: 0, at: Duration::from_millis(number), runs }).collect();
    let outcome = Simulation::new(2, small, 1, PlacementPolicy::default()).run(calls);
    let ended: Vec<Duration> = outcome
        .took
        .iter()
        .zip(0..)
        .map(|(took, at)| took.expect("answered") + Duration::from_millis(at))
        .collect();
    let behind = ended.windows(2).filter(|pair| pair[1] + 3 * runs < pair[0]).count();
    assert_eq!(behind, 0, "{ended:?}");
    assert!(outcome.longest() < 50 * runs + NODE.start);
}
