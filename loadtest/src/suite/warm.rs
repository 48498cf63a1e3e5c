//! A warm call through `kiln start` beside the same function's socket called directly.
//!
//! The direct calls go to a container of the same image that Docker runs apart, so that neither Kiln's connection
//! to its own container nor its freezer stands in their way.

use std::time::Duration;

use anyhow::Result;

use super::Bench;
use crate::cost::{self, CpuMeter};
use crate::docker::socket_folder;
use crate::http::Target;
use crate::kiln::{Kiln, direct_call};
use crate::load::{many_callers, median, one_caller};
use crate::report::{Goal, Row};

const CALLERS: usize = 32;

/// The engine's processes: what they do for a call counts as its cost.
pub(super) const ENGINE_PROCESSES: [&str; 4] =
    ["dockerd", "containerd", "containerd-shim", "containerd-shim-runc-v2"];

/// Runs it.
///
/// # Errors
/// If Docker or Kiln does not work, or a call fails.
pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    let (engine, image) = bench.image()?;
    let container = engine.start_function(&image, &socket_folder(&bench.folder, "direct")?)?;
    container.wait_until_ready()?;
    let containers_before = engine.containers_of(&image)?;
    let kiln = Kiln::single_node(&bench.binaries, &bench.folder)?;
    let request = kiln.deploy(&image)?;

    let one = one_at_a_time(bench, &kiln, &request, &container.target())?;
    let mut rates = Vec::new();
    let (mut p50s, mut p99s) = (Vec::new(), Vec::new());
    many_callers(&kiln.target, &request, CALLERS, Duration::from_millis(500))?;
    for _ in 0..bench.rounds {
        let load = many_callers(&kiln.target, &request, CALLERS, bench.duration)?;
        rates.push(load.rate());
        p50s.push(load.percentile_us(0.5));
        p99s.push(load.percentile_us(0.99));
    }
    let containers = engine.containers_of(&image)? - containers_before;

    Ok(vec![
        Row::of("warm, 1 caller: added p50 (us)", median(&one.added_us)).goal(Goal::ValueMax(60.0)),
        Row::of("warm, 1 caller: p50 (us)", median(&one.p50_us)).beside("socket", median(&one.direct_p50_us)),
        Row::of("warm, 1 caller: p99 (us)", median(&one.p99_us)).beside("socket", median(&one.direct_p99_us)),
        Row::of("warm, 1 caller: CPU per call outside the container (us)", median(&one.cpu_us))
            .goal(Goal::ValueMax(60.0)),
        Row::of("warm, 1 caller: of that in Docker's daemons (us)", median(&one.engine_cpu_us)),
        Row::of(format!("warm, {CALLERS} callers: calls per second"), median(&rates))
            .beside("socket, 1 caller", median(&one.direct_rate))
            .goal(Goal::RatioMin(1.0)),
        Row::of(format!("warm, {CALLERS} callers: p50 (us)"), median(&p50s)),
        Row::of(format!("warm, {CALLERS} callers: p99 (us)"), median(&p99s)),
        Row::of(format!("warm, {CALLERS} callers: containers"), containers as f64),
    ])
}

/// What calls one at a time took, a value per round.
#[derive(Debug, Default)]
pub(super) struct OneCaller {
    pub(super) added_us: Vec<f64>,
    pub(super) p50_us: Vec<f64>,
    pub(super) p99_us: Vec<f64>,
    pub(super) cpu_us: Vec<f64>,
    pub(super) engine_cpu_us: Vec<f64>,
    pub(super) direct_p50_us: Vec<f64>,
    pub(super) direct_p99_us: Vec<f64>,
    pub(super) direct_rate: Vec<f64>,
}

/// Rounds of direct calls and calls through Kiln, by one caller.
pub(super) fn one_at_a_time(
    bench: &Bench,
    kiln: &Kiln,
    request: &[u8],
    direct: &Target,
) -> Result<OneCaller> {
    let direct_request = direct_call();
    one_caller(direct, &direct_request, Duration::from_millis(500))?;
    one_caller(&kiln.target, request, Duration::from_millis(500))?;
    let mut found = OneCaller::default();
    let engine_pids = cost::processes_named(&ENGINE_PROCESSES);
    for _ in 0..bench.rounds {
        let direct = one_caller(direct, &direct_request, bench.duration)?;
        let meter = CpuMeter::start(&kiln.pids());
        let engine_meter = CpuMeter::start(&engine_pids);
        let through = one_caller(&kiln.target, request, bench.duration)?;
        let engine_cpu = engine_meter.used();
        let cpu = meter.used() + engine_cpu;
        let per_call = 1e6 / through.answers() as f64;
        found.added_us.push(through.percentile_us(0.5) - direct.percentile_us(0.5));
        found.p50_us.push(through.percentile_us(0.5));
        found.p99_us.push(through.percentile_us(0.99));
        found.cpu_us.push(cpu.as_secs_f64() * per_call);
        found.engine_cpu_us.push(engine_cpu.as_secs_f64() * per_call);
        found.direct_p50_us.push(direct.percentile_us(0.5));
        found.direct_p99_us.push(direct.percentile_us(0.99));
        found.direct_rate.push(direct.rate());
    }
    Ok(found)
}
