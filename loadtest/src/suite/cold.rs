//! A cold start through `kiln start` beside `docker run` of the same image, each from the decision to the first byte
//! of the function's answer, alternating.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Bench;
use crate::docker::{Engine, Image, socket_folder};
use crate::kiln::{self, Kiln, direct_call};
use crate::load::{median, percentile};
use crate::process::interrupted;
use crate::report::{Goal, Row};

/// Starts of each kind; the first of each is not counted.
const STARTS: usize = 25;

/// Runs it.
///
/// # Errors
/// If Docker or Kiln does not work, or a call fails.
pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    let (engine, image) = bench.image()?;
    let kiln = Kiln::single_node(&bench.binaries, &bench.folder)?;
    let app = kiln.create_app("bench")?;
    let (mut through_kiln, mut docker_run, mut through_engine) = (Vec::new(), Vec::new(), Vec::new());
    for start in 0..=STARTS {
        ensure!(!interrupted(), "interrupted");
        let counted = start > 0;
        // A new function has no container.
        let request = kiln::call(&kiln.create_function(&app, &format!("f{start}"), &image.reference)?);
        let ended = kiln_start(&kiln, &request)?;
        if counted {
            through_kiln.push(ended);
        }
        let ended = run_command(bench, &engine, &image, start)?;
        if counted {
            docker_run.push(ended);
        }
        let ended = engine_start(bench, &engine, &image, start)?;
        if counted {
            through_engine.push(ended);
        }
    }
    Ok(vec![
        Row::of("cold start, Docker driver: p50 (ms)", median(&through_kiln))
            .beside("docker run", median(&docker_run))
            .goal(Goal::RatioMax(0.6)),
        Row::of("cold start, Docker driver: p95 (ms)", percentile(&through_kiln, 0.95))
            .beside("docker run", percentile(&docker_run, 0.95)),
        Row::of("cold start, Docker driver: p50 (ms)", median(&through_kiln))
            .beside("engine API", median(&through_engine)),
    ])
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn kiln_start(kiln: &Kiln, request: &[u8]) -> Result<f64> {
    let begin = Instant::now();
    let mut connection = kiln.target.connect()?;
    connection.first_byte(request)?;
    let elapsed = begin.elapsed();
    // What was measured must have been an answer of the function.
    let status = kiln.target.connect()?.exchange(request)?;
    ensure!(status == 200, "the function answers with {status}");
    Ok(milliseconds(elapsed))
}

fn run_command(bench: &Bench, engine: &Engine, image: &Image, start: usize) -> Result<f64> {
    let folder = socket_folder(&bench.folder, &format!("run{start}"))?;
    let begin = Instant::now();
    let (container, mut command) = engine.docker_run(image, &folder)?;
    container.wait_until_ready()?;
    container.target().connect()?.first_byte(&direct_call())?;
    let elapsed = begin.elapsed();
    ensure!(command.wait()?.success(), "docker run failed");
    Ok(milliseconds(elapsed))
}

fn engine_start(bench: &Bench, engine: &Engine, image: &Image, start: usize) -> Result<f64> {
    let folder = socket_folder(&bench.folder, &format!("api{start}"))?;
    let begin = Instant::now();
    let container = engine.start_function(image, &folder)?;
    container.wait_until_ready()?;
    container.target().connect()?.first_byte(&direct_call())?;
    Ok(milliseconds(begin.elapsed()))
}
