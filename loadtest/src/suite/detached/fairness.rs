//! What a burst for one function does to the calls of others on the same node.
//!
//! A few apps make a call every so often, on a schedule of their own, first alone and then during a burst; each call
//! tells when it was called. The burst comes in through the same balancer as fast as that takes it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::Bench;
use super::plot::{self, Round};
use super::stage::{Sent, Stage, Wait, now_us, rest, send};
use crate::kiln;
use crate::load::{many_detached, median, percentile};
use crate::process::interrupted;
use crate::report::{Goal, Row};

/// Connections on which they are sent.
const SENDERS: usize = 64;
/// Apps with a function each beside the burst's.
const OTHERS: usize = 5;
/// Time between two calls of one of them.
const EVERY: Duration = Duration::from_millis(50);
/// How long they are alone.
const ALONE: Duration = Duration::from_secs(20);
/// A burst takes long: more rounds would tell little more.
const ROUNDS_MAX: usize = 3;

/// Rounds of both, and the plot of the middle one.
pub(super) fn run(bench: &Bench, stage: &Stage) -> Result<Vec<Row>> {
    let burst = stage.function("flood", &stage.echo)?;
    let others: Vec<String> =
        (0..OTHERS).map(|number| stage.stamping(&format!("other-{number}"))).collect::<Result<_>>()?;
    let mut rounds: Vec<Round> = (0..bench.rounds.min(ROUNDS_MAX))
        .map(|_| round(bench, stage, &burst, &others))
        .collect::<Result<_>>()?;
    rounds.sort_by(|one, other| one.ratio(0.99).total_cmp(&other.ratio(0.99)));
    let path = plot::draw(&bench.results, &rounds[rounds.len() / 2])?;
    println!("-> {}", path.display());
    let of = |value: &dyn Fn(&Round) -> f64| median(&rounds.iter().map(value).collect::<Vec<_>>());
    let row = |name: &str, share: f64| {
        Row::of(name, of(&|round| percentile(&round.during, share)))
            .beside("without it", of(&|round| percentile(&round.alone, share)))
            .ratio(of(&|round| round.ratio(share)))
    };
    let draining = |name: &str, share: f64| {
        Row::of(name, of(&|round| percentile(&round.draining, share)))
            .beside("without it", of(&|round| percentile(&round.alone, share)))
            .ratio(of(&|round| round.draining_ratio(share)))
    };
    let drained_per_s = of(&|round: &Round| bench.messages as f64 / round.drained_s);
    Ok(vec![
        row(&format!("fairness: others' enqueue to start, burst of {}, p50 (ms)", bench.messages), 0.5),
        row("fairness: the same, p99 (ms)", 0.99).goal(Goal::RatioMax(1.1)),
        row("fairness: the same, largest (ms)", 1.0),
        draining("fairness: others' enqueue to start when the burst was only drained, p50 (ms)", 0.5),
        draining("fairness: the same, p99 (ms)", 0.99),
        Row::of(
            "fairness: others' way in alone, until accepted, p50 (ms)",
            of(&|round| median(&round.accepting_during)),
        )
        .beside("without it", of(&|round| median(&round.accepting_alone))),
        Row::of("fairness: seconds in which the burst was accepted", of(&|round| round.accepted_s))
            .beside("and drained", of(&|round| round.drained_s)),
        Row::of("fairness: messages accepted and drained per second", drained_per_s),
    ])
}

fn round(bench: &Bench, stage: &Stage, burst: &str, others: &[String]) -> Result<Round> {
    let stop = AtomicBool::new(false);
    let request = kiln::detached_call(burst);
    let start_us = now_us();
    let mut depths = Vec::new();
    let seconds = |us: u64| (us as f64 - start_us as f64) / 1e6;
    let (sent, moments) = thread::scope(|scope| -> Result<_> {
        let callers: Vec<_> = others
            .iter()
            .enumerate()
            .map(|(place, function)| {
                let first = EVERY * place as u32 / OTHERS as u32;
                let stop = &stop;
                scope.spawn(move || call_on_time(stage, function, first, stop))
            })
            .collect();
        let flooded = rest(ALONE).and_then(|()| {
            let flooded_us = now_us();
            let flood = scope.spawn(|| {
                let sent = many_detached(&stage.kiln.target, &request, SENDERS, bench.messages);
                sent.map(|_| now_us())
            });
            while !flood.is_finished() {
                depths.push((seconds(now_us()), stage.kiln.queued(burst)?.0));
                rest(Duration::from_millis(200))?;
            }
            let accepted_us = flood.join().expect("sending does not panic")?;
            stage.drained(burst, |waiting| depths.push((seconds(now_us()), waiting)))?;
            Ok([flooded_us, accepted_us, now_us()])
        });
        stop.store(true, Ordering::Relaxed);
        let sent: Result<Vec<Vec<Sent>>> =
            callers.into_iter().map(|caller| caller.join().expect("calling does not panic")).collect();
        Ok((sent?.concat(), flooded?))
    })?;
    let [flooded_us, accepted_us, drained_us] = moments;
    let waits = stage.waits(&sent)?;
    let in_time = |from: u64, to: u64, value: fn(&Wait) -> f64| {
        let is_in = move |wait: &&Wait| (from..to).contains(&wait.sent_us);
        waits.iter().filter(is_in).map(value).collect::<Vec<f64>>()
    };
    let whole = |wait: &Wait| wait.ms;
    Ok(Round {
        alone: in_time(start_us, flooded_us, whole),
        during: in_time(flooded_us, drained_us, whole),
        draining: in_time(accepted_us, drained_us, whole),
        accepting_alone: in_time(start_us, flooded_us, |wait| wait.accepted_ms),
        accepting_during: in_time(flooded_us, drained_us, |wait| wait.accepted_ms),
        waits: waits.iter().map(|wait| (seconds(wait.sent_us), wait.ms)).collect(),
        depths,
        began_s: seconds(flooded_us),
        accepted_s: (accepted_us - flooded_us) as f64 / 1e6,
        drained_s: (drained_us - flooded_us) as f64 / 1e6,
    })
}

/// A detached call every so often, whatever became of the last, until `stop`.
fn call_on_time(stage: &Stage, function: &str, first: Duration, stop: &AtomicBool) -> Result<Vec<Sent>> {
    let request = kiln::detached_call(function);
    let mut connection = stage.kiln.target.connect()?;
    let mut next = Instant::now() + first;
    let mut sent = Vec::new();
    while !stop.load(Ordering::Relaxed) && !interrupted() {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        sent.push(send(&mut connection, function, &request)?);
        next += EVERY;
    }
    Ok(sent)
}
