//! An idle node: how soon a detached call starts there, and what waiting for one costs.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Bench;
use super::stage::{Stage, rest, send};
use crate::cost::{self, CpuMeter};
use crate::kiln::{self, Kiln};
use crate::load::{median, percentile};
use crate::redis::{Redis, SETTING};
use crate::report::{Goal, Row};
use crate::suite::fleet::Peer;

/// Calls whose start is measured, one at a time.
const STARTS: usize = 300;
/// Pause before each: long after the last has ended.
const PAUSE: Duration = Duration::from_millis(50);
/// Agents of each kind: so many that the difference stands out.
const AGENTS: usize = 50;
/// They have linked up and told all there is to tell.
const SETTLE: Duration = Duration::from_secs(10);
/// How long an idle node is watched.
const WATCHED: Duration = Duration::from_secs(30);

/// From before a call is sent until its function has it, and what processes use afterwards while nothing happens.
pub(super) fn start(stage: &Stage) -> Result<Vec<Row>> {
    let function = stage.stamping("idle")?;
    let request = kiln::detached_call(&function);
    let mut connection = stage.kiln.target.connect()?;
    let mut sent = Vec::with_capacity(STARTS);
    for _ in 0..STARTS {
        rest(PAUSE)?;
        sent.push(send(&mut connection, &function, &request)?);
    }
    let waits: Vec<f64> = stage.waits(&sent)?.iter().map(|wait| wait.ms).collect();
    rest(SETTLE)?;
    let [balancer, agent] = stage.balancer_and_agent();
    let meters = [agent, balancer, stage.redis.pid()].map(|pid| CpuMeter::start(&[pid]));
    let begun = Instant::now();
    rest(WATCHED)?;
    let seconds = begun.elapsed().as_secs_f64();
    let [agent, balancer, redis] = meters.map(|meter| meter.used().as_secs_f64() * 1000.0 / seconds);
    Ok(vec![
        Row::of(format!("idle, Redis ({SETTING}): enqueue to start, p50 (ms)"), median(&waits))
            .goal(Goal::ValueMax(5.0)),
        Row::of("idle: the same, p99 (ms)", percentile(&waits, 0.99)),
        Row::of("idle: CPU of kiln-agent with a warm container (ms per s)", agent),
        Row::of("idle: CPU of kiln-lb (ms per s)", balancer),
        Row::of("idle: CPU of Redis (ms per s)", redis),
    ])
}

/// Agents without containers that drain the queue of one balancer, beside as many that do not.
pub(super) fn cost(bench: &Bench) -> Result<Vec<Row>> {
    let folder = bench.folder.join("idle");
    std::fs::create_dir_all(&folder)?;
    let redis = Redis::start(&bench.results, &folder)?;
    let edge = Kiln::edge_with_queue(&bench.binaries, &folder, &redis.url())?;
    let program = bench.binaries.path("fleet-peer")?;
    let link = edge.link()?;
    let start = |drains: &str| -> Result<Peer> {
        let mut command = Command::new(&program);
        command.arg("agents").arg(&folder).arg(link.to_string()).arg(AGENTS.to_string());
        command.args(["--queue", drains]);
        let mut peer = Peer::start(command, cost::cores() - 1)?;
        peer.hear()?;
        Ok(peer)
    };
    let (draining, others) = (start("drain")?, start("leave")?);
    rest(SETTLE)?;
    let pids = [draining.pid(), others.pid()];
    let meters = pids.map(|pid| CpuMeter::start(&[pid]));
    let begun = Instant::now();
    rest(WATCHED)?;
    let per_agent = 1000.0 / begun.elapsed().as_secs_f64() / AGENTS as f64;
    let [draining, others] = meters.map(|meter| meter.used().as_secs_f64() * per_agent);
    ensure!(others > 0.0, "agents that are linked use some CPU");
    Ok(vec![
        Row::of("idle: CPU of an agent that drains (ms per s)", draining).beside("one that does not", others),
        Row::of("idle: CPU of the drain (ms per s)", draining - others).goal(Goal::ValueMax(1.0)),
    ])
}
