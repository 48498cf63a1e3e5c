//! A burst for one warm function beside the same calls made synchronously through the same balancer and agent.

use std::time::Instant;

use anyhow::Result;

use super::Bench;
use super::stage::Stage;
use crate::cost::CpuMeter;
use crate::kiln;
use crate::load::{many_callers, many_detached, median};
use crate::redis::SETTING;
use crate::report::{Goal, Row};

/// Connections on which they are sent.
const SENDERS: usize = 64;
/// Callers of the synchronous calls.
const CALLERS: usize = 32;

#[derive(Debug, Default)]
struct Rounds {
    calls_per_s: Vec<f64>,
    call_agent_us: Vec<f64>,
    call_balancer_us: Vec<f64>,
    accepted_per_s: Vec<f64>,
    drained_per_s: Vec<f64>,
    message_agent_us: Vec<f64>,
    message_balancer_us: Vec<f64>,
    message_redis_us: Vec<f64>,
    added_us: Vec<f64>,
}

/// Rounds of both.
pub(super) fn run(bench: &Bench, stage: &Stage) -> Result<Vec<Row>> {
    let function = stage.function("burst", &stage.echo)?;
    let (call, detached) = (kiln::call(&function), kiln::detached_call(&function));
    let target = &stage.kiln.target;
    let [balancer, agent] = stage.balancer_and_agent();
    let meters = || [agent, balancer, stage.redis.pid()].map(|pid| CpuMeter::start(&[pid]));
    many_detached(target, &detached, SENDERS, 1000)?;
    stage.drained(&function, |_| {})?;
    let messages = (bench.messages / bench.rounds).max(1);
    let mut found = Rounds::default();
    for _ in 0..bench.rounds {
        let used = meters();
        let load = many_callers(target, &call, CALLERS, bench.duration)?;
        let [call_agent, call_balancer, _] =
            used.map(|meter| meter.used().as_secs_f64() * 1e6 / load.answers() as f64);
        found.calls_per_s.push(load.rate());
        found.call_agent_us.push(call_agent);
        found.call_balancer_us.push(call_balancer);

        let (used, begun) = (meters(), Instant::now());
        let sent = many_detached(target, &detached, SENDERS, messages)?;
        stage.drained(&function, |_| {})?;
        let seconds = begun.elapsed().as_secs_f64();
        let [agent, balancer, redis] = used.map(|meter| meter.used().as_secs_f64() * 1e6 / messages as f64);
        found.accepted_per_s.push(sent.rate());
        found.drained_per_s.push(messages as f64 / seconds);
        found.message_agent_us.push(agent);
        found.message_balancer_us.push(balancer);
        found.message_redis_us.push(redis);
        found.added_us.push(agent - call_agent);
    }
    let title = format!("burst, Redis ({SETTING})");
    Ok(vec![
        Row::of(format!("{title}: messages accepted per second"), median(&found.accepted_per_s)),
        Row::of(format!("{title}: messages accepted and drained per second"), median(&found.drained_per_s))
            .beside(format!("calls, {CALLERS} callers"), median(&found.calls_per_s)),
        Row::of("burst: CPU of the agent per message (us)", median(&found.message_agent_us))
            .beside("per call", median(&found.call_agent_us)),
        Row::of("burst: the same beyond the call itself (us)", median(&found.added_us))
            .goal(Goal::ValueMax(100.0)),
        Row::of(
            "burst: CPU of the balancer per message, its way in included (us)",
            median(&found.message_balancer_us),
        )
        .beside("per call", median(&found.call_balancer_us)),
        Row::of("burst: CPU of Redis per message (us)", median(&found.message_redis_us)),
    ])
}
