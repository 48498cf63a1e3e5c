//! Nothing that was accepted is lost: detached calls while agents, balancers and the queue's server are killed and
//! started again at random, in virtual time.
//!
//! The agent's draining, slots and pipes and the balancer's dispatcher are the real ones; containers follow a script, the
//! queue is a model of it in memory (`model.rs`), and between agent and balancer are delays, cuts and lost answers
//! instead of a network. A schedule is drawn from its seed, which is printed when it fails; `KILN_CRASH_SEED` runs that
//! one alone, `KILN_CRASH_SCHEDULES` says how many run (`make test-crash`). With real processes: `cli/tests/crash/`.

mod containers;
mod hosts;
mod model;
mod schedule;
mod wire;
mod world;

use crate::schedule::{Kind, Tally};

/// Schedules that a run of the tests tries, unless it is told otherwise.
const SEEDS: u64 = 300;
/// Those in which nothing is killed need not be as many.
const CALM_SEEDS: u64 = 20;

fn run(kind: Kind, seeds: u64) -> Tally {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds: Vec<u64> = match number("KILN_CRASH_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("KILN_CRASH_SCHEDULES").unwrap_or(seeds)).collect(),
    };
    let mut sum = Tally::default();
    for seed in seeds {
        let played = std::panic::catch_unwind(|| schedule::play(seed, kind));
        match played {
            Ok(tally) => sum.add(&tally),
            Err(panic) => {
                println!("{kind:?}: make test-crash QUEUE=model SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{kind:?}: {sum:?}");
    sum
}

#[test]
fn every_accepted_call_runs_whatever_is_killed() {
    let sum = run(Kind::Everything, SEEDS);
    assert!(sum.faults > 0 && sum.accepted > 0);
}

#[test]
fn every_accepted_call_runs_once_while_nodes_come_and_go_in_order() {
    let sum = run(Kind::Restarts, CALM_SEEDS);
    assert_eq!(sum.again, std::collections::BTreeMap::new(), "no call needed to run again");
}
