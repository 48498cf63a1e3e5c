//! Memory of `kiln start`, fresh and with warm containers, and what it does while nobody calls.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Bench;
use super::warm::ENGINE_PROCESSES;
use crate::cost::{self, CpuMeter};
use crate::kiln::{self, Kiln};
use crate::process::interrupted;
use crate::report::{Goal, Row};

const FUNCTIONS: usize = 20;
/// Idle containers are frozen by then.
const SETTLE: Duration = Duration::from_secs(3);
const IDLE: Duration = Duration::from_secs(10);

/// Runs it.
///
/// # Errors
/// If Docker or Kiln does not work, or a call fails.
pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    let (_engine, image) = bench.image()?;
    let kiln = Kiln::single_node(&bench.binaries, &bench.folder)?;
    let pid = kiln.pids()[0];
    rest(Duration::from_secs(1))?;
    let fresh_bytes = cost::resident_bytes(pid)?;

    let app = kiln.create_app("bench")?;
    for index in 0..FUNCTIONS {
        let request = kiln::call(&kiln.create_function(&app, &format!("f{index}"), &image.reference)?);
        let mut connection = kiln.target.connect()?;
        for _ in 0..10 {
            let status = connection.exchange(&request)?;
            ensure!(status == 200, "the function answers with {status}");
        }
    }
    rest(SETTLE)?;
    let warm_bytes = cost::resident_bytes(pid)?;
    let engine_pids = cost::processes_named(&ENGINE_PROCESSES);
    let (meter, engine_meter) = (CpuMeter::start(&[pid]), CpuMeter::start(&engine_pids));
    let begin = Instant::now();
    rest(IDLE)?;
    let seconds = begin.elapsed().as_secs_f64();
    let cpu = meter.used().as_secs_f64() * 1000.0 / seconds;
    let engine_cpu = engine_meter.used().as_secs_f64() * 1000.0 / seconds;

    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Ok(vec![
        Row::of("memory: `kiln start`, idle (MiB)", mib(fresh_bytes)).goal(Goal::ValueMax(30.0)),
        Row::of(format!("memory: with {FUNCTIONS} warm containers (MiB)"), mib(warm_bytes))
            .goal(Goal::ValueMax(32.0)),
        Row::of(format!("idle CPU with {FUNCTIONS} warm functions (ms per s)"), cpu)
            .goal(Goal::ValueMax(2.0)),
        Row::of("the same in Docker's daemons (ms per s)", engine_cpu),
    ])
}

fn rest(duration: Duration) -> Result<()> {
    let until = Instant::now() + duration;
    while Instant::now() < until {
        ensure!(!interrupted(), "interrupted");
        thread::sleep(Duration::from_millis(50).min(until.saturating_duration_since(Instant::now())));
    }
    Ok(())
}
