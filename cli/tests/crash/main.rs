//! Nothing that was accepted is lost: a balancer, two agents and the queue's server as real processes, with functions in
//! real containers, are killed (-9) and started again at random times while calls come in: `make test-crash`.
//!
//! What ran is told by the functions themselves (`witness.rs`), not by Kiln. When all is up again the queue must run empty,
//! every accepted call must have run to its end, and a run after the first one of a call must have a reason
//! (`verdict.rs`). A schedule is drawn from its seed; `KILN_CRASH_SEED` plays that one alone, `KILN_CRASH_SCHEDULES` says how
//! many are played on each kind of queue. The same in virtual time, by the hundreds: `lb/tests/crash/`.

#[path = "../fleet/fleet.rs"]
mod fleet;
#[path = "../../../agent/tests/support/images.rs"]
mod images;
#[path = "../fleet/network.rs"]
mod network;
#[path = "../fleet/part.rs"]
mod part;

mod backend;
mod clients;
mod schedule;
mod verdict;
mod witness;

use crate::backend::Backend;

/// Plays the schedules that the environment asks for, or one.
async fn play(start: impl AsyncFn() -> Backend) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("KILN_CRASH_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("KILN_CRASH_SCHEDULES").unwrap_or(1),
    };
    println!("{}", schedule::HEAD);
    for seed in seeds {
        schedule::play(start().await, seed).await;
    }
}

#[tokio::test]
#[ignore = "a minute each, and the machine for itself: make test-crash"]
async fn nothing_is_lost_on_sqlite() {
    play(async || Backend::Sqlite).await;
}

#[tokio::test]
#[ignore = "a minute each, and the machine for itself: make test-crash"]
async fn nothing_is_lost_on_postgres() {
    play(async || Backend::postgres().await).await;
}

#[tokio::test]
#[ignore = "a minute each, and the machine for itself: make test-crash"]
async fn nothing_is_lost_on_mariadb() {
    play(async || Backend::mariadb().await).await;
}

#[tokio::test]
#[ignore = "a minute each, and the machine for itself: make test-crash"]
async fn nothing_is_lost_on_redis() {
    play(async || Backend::redis().await).await;
}

#[tokio::test]
#[ignore = "a minute each, and the machine for itself: make test-crash"]
async fn nothing_is_lost_on_kafka() {
    play(async || Backend::kafka().await).await;
}
