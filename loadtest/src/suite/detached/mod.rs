//! Detached calls: what draining a burst costs, how little it delays others, how soon a call starts on an idle node,
//! and what a durable enqueue costs.
//!
//! `kiln-lb` and `kiln-agent` are two processes on loopback, the queue is a Redis that writes to its log before it
//! answers, functions are real containers: a warm call does not touch the engine, so Docker is no limit here.

mod burst;
mod commit;
mod fairness;
mod idle;
mod plot;
mod stage;

use anyhow::Result;

use self::stage::Stage;
use super::Bench;
use crate::report::Row;

/// Runs it.
///
/// # Errors
/// If Docker, Redis or Kiln does not work, or a call fails.
pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    let mut rows = commit::run(&bench.folder)?;
    rows.extend(idle::cost(bench)?);
    let stage = Stage::start(bench)?;
    rows.extend(idle::start(&stage)?);
    rows.extend(burst::run(bench, &stage)?);
    rows.extend(fairness::run(bench, &stage)?);
    Ok(rows)
}
