//! A warm call through `kiln-lb` and `kiln-agent` as two processes on loopback.

use anyhow::Result;

use super::Bench;
use super::warm::one_at_a_time;
use crate::docker::socket_folder;
use crate::kiln::Kiln;
use crate::load::median;
use crate::report::{Goal, Row};

/// Runs it.
///
/// # Errors
/// If Docker or Kiln does not work, or a call fails.
pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    let (engine, image) = bench.image()?;
    let container = engine.start_function(&image, &socket_folder(&bench.folder, "direct")?)?;
    container.wait_until_ready()?;
    let kiln = Kiln::two_processes(&bench.binaries, &bench.folder)?;
    let request = kiln.deploy(&image)?;
    kiln.wait_for_node(&request)?;
    let one = one_at_a_time(bench, &kiln, &request, &container.target())?;
    Ok(vec![
        Row::of("split, 1 caller: added p50 (us)", median(&one.added_us)).goal(Goal::ValueMax(130.0)),
        Row::of("split, 1 caller: p50 (us)", median(&one.p50_us))
            .beside("socket", median(&one.direct_p50_us)),
        Row::of("split, 1 caller: p99 (us)", median(&one.p99_us))
            .beside("socket", median(&one.direct_p99_us)),
        Row::of("split, 1 caller: CPU per call outside the container (us)", median(&one.cpu_us)),
    ])
}
