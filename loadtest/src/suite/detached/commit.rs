//! A durable enqueue on SQLite: the benchmark of the queue's own crate, as part of this report.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::process::spawn;
use crate::report::{Goal, Row};

/// What one kind of write reached, as `queue/benches/commit.rs` says it.
#[derive(Debug, Deserialize)]
struct Measured {
    rate: f64,
    p50_us: f64,
    p99_us: f64,
}

#[derive(Debug, Deserialize)]
struct Figures {
    bare: Measured,
    alone: Measured,
    together: Measured,
}

/// Runs it, through cargo, which has built it before.
pub(super) fn run(folder: &Path) -> Result<Vec<Row>> {
    let file = folder.join("commit.json");
    let mut command = Command::new("cargo");
    command.args(["bench", "--quiet", "-p", "kiln-queue", "--bench", "commit"]);
    command.env("KILN_BENCH_JSON", &file).stdout(std::process::Stdio::null());
    ensure!(spawn(command, None)?.wait()?.success(), "cargo bench -p kiln-queue failed");
    let text = std::fs::read(&file).context("cargo bench -p kiln-queue left no figures")?;
    let Figures { bare, alone, together } = serde_json::from_slice(&text)?;
    Ok(vec![
        Row::of("commit, SQLite: durable enqueues per second, 64 callers", together.rate)
            .beside("1 caller, one fsync each", alone.rate)
            .goal(Goal::RatioMin(20.0)),
        Row::of("commit, SQLite: the same", together.rate).beside("write and fdatasync alone", bare.rate),
        Row::of("commit, SQLite: enqueue, 64 callers, p50 (us)", together.p50_us)
            .beside("1 caller, p50", alone.p50_us),
        Row::of("commit, SQLite: enqueue, 64 callers, p99 (us)", together.p99_us)
            .beside("1 caller, p50", alone.p50_us)
            .goal(Goal::RatioMax(5.0)),
        Row::of("commit, SQLite: the same", together.p99_us).beside("write and fdatasync, p50", bare.p50_us),
    ])
}
