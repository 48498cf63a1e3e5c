//! `bench-hop`: what a call costs between a balancer's worker and an agent, by each way that could carry it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use kiln_loadtest::hop::loss::Loss;
use kiln_loadtest::hop::{Case, Measured, Way, measure, server, table};
use kiln_loadtest::{cost, process};

/// Packets lost of 100, in the runs with loss.
const LOSS_PERCENT: f64 = 1.0;
/// Bodies in the runs with loss, in bytes.
const LOSS_BODIES: [usize; 3] = [0, 1 << 10, 64 << 10];
/// Most bytes of bodies in flight; larger cases are left out.
const IN_FLIGHT_BYTES_MAX: usize = 256 << 20;

/// Measures ways of carrying calls side by side, on this machine's loopback
#[derive(Debug, Parser)]
struct Options {
    #[command(subcommand)]
    part: Option<Part>,
    /// Ways to measure; pooled HTTP/1.1 is what the others are compared with
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Way::value_variants().to_vec())]
    ways: Vec<Way>,
    /// Calls in flight
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32, 256])]
    in_flight: Vec<usize>,
    /// Bytes of a call's body and of its answer's
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1 << 10, 64 << 10, 1 << 20])]
    body_bytes: Vec<usize>,
    /// Agents
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16])]
    agents: Vec<usize>,
    /// Length of each measurement in seconds
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// How often everything is measured
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Leave out the runs with packet loss
    #[arg(long)]
    without_loss: bool,
    /// Folder for the results
    #[arg(long, default_value = "target/bench")]
    results: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Answers calls until its input ends; what the measurements start
    #[command(hide = true)]
    Serve {
        /// How
        way: Way,
        /// Sockets
        agents: usize,
    },
    /// Measures one case and prints it as JSON; what the runs with packet loss start
    #[command(hide = true)]
    Once {
        /// How
        way: Way,
        /// Agents
        agents: usize,
        /// Calls in flight
        in_flight: usize,
        /// Bytes of a body
        body_bytes: usize,
        /// Seconds
        seconds: f64,
        /// What loses packets
        loss: String,
    },
}

fn main() -> ExitCode {
    match process::catch_interrupts().and_then(|()| run(&Options::parse())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    match &options.part {
        None => compare(options),
        Some(Part::Serve { way, agents }) => server::run(*way, *agents),
        Some(Part::Once { way, agents, in_flight, body_bytes, seconds, loss }) => {
            let case = Case { agents: *agents, in_flight: *in_flight, body_bytes: *body_bytes };
            let measured = measure::measure(*way, case, duration(*seconds)?, Some(loss))?;
            println!("{}", serde_json::to_string(&measured)?);
            Ok(())
        }
    }
}

fn duration(seconds: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(seconds).context("--seconds must be positive")
}

fn compare(options: &Options) -> Result<()> {
    let used = cost::machine_use()?;
    println!("(the machine was {:.0} % busy with other work at the start)", used * 100.0);
    println!("{}", table::header());
    let mut all = Vec::new();
    for _ in 0..options.rounds {
        for case in cases(options) {
            for way in &options.ways {
                let measured = measure::measure(*way, case, duration(options.seconds)?, None)
                    .with_context(|| format!("{}, {case:?}", way.name()))?;
                keep(measured, &mut all);
            }
        }
        if !options.without_loss {
            with_loss(options, &mut all)?;
        }
    }
    print!("{}", table::verdict(&all));
    println!("-> {}", table::store(&options.results, &all)?.display());
    Ok(())
}

fn cases(options: &Options) -> Vec<Case> {
    let mut cases = Vec::new();
    for &agents in &options.agents {
        for &in_flight in &options.in_flight {
            for &body_bytes in &options.body_bytes {
                // Many agents differ from one by how many calls share a connection: of interest where that is small.
                let few = in_flight < agents || (agents > 1 && body_bytes > 1 << 10);
                if !few && in_flight * body_bytes <= IN_FLIGHT_BYTES_MAX {
                    cases.push(Case { agents, in_flight, body_bytes });
                }
            }
        }
    }
    cases
}

fn with_loss(options: &Options, all: &mut Vec<Measured>) -> Result<()> {
    let Some(loss) = Loss::available() else {
        println!("(left out: with packet loss; neither netem nor iptables can be used in a namespace here)");
        return Ok(());
    };
    let label = format!("{LOSS_PERCENT} % lost ({})", loss.name());
    for body_bytes in LOSS_BODIES {
        for way in &options.ways {
            let way = way.to_possible_value().context("a way without a name")?.get_name().to_owned();
            let arguments = [
                "once".to_owned(),
                way,
                1.to_string(),
                32.to_string(),
                body_bytes.to_string(),
                options.seconds.to_string(),
                label.clone(),
            ];
            keep(serde_json::from_str(&loss.inside(LOSS_PERCENT, &arguments)?)?, all);
        }
    }
    Ok(())
}

fn keep(measured: Measured, all: &mut Vec<Measured>) {
    println!("{}", table::line(&measured, table::base(&measured, all)));
    all.push(measured);
}
