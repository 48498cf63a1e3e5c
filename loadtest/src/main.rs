//! `bench`: runs the benchmarks, prints their tables and writes `target/bench/NAME.json`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use kiln_loadtest::kiln::Binaries;
use kiln_loadtest::suite::{ALL, Bench, Entry};
use kiln_loadtest::{cost, process, report};

/// Measures Kiln beside HAProxy, nginx, Pingora and Docker on this machine
#[derive(Debug, Parser)]
struct Options {
    /// Benchmarks to run: edge, warm, split, cold, fleet, async, catalog, memory; all of them if none is named
    names: Vec<String>,
    /// Rounds; each measures Kiln and its peers one after the other
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of each load in a round, in seconds
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Messages of a burst of detached calls; of the benchmark async
    #[arg(long, default_value_t = 100_000)]
    messages: usize,
    /// Functions of a large catalog; of the benchmark catalog
    #[arg(long, default_value_t = 100_000)]
    functions: usize,
    /// Folder of Kiln's binaries
    #[arg(long, default_value = "target/release")]
    binaries: PathBuf,
    /// The example function `echo`, linked statically
    #[arg(long, default_value = "target/static/x86_64-unknown-linux-gnu/release/echo")]
    function: PathBuf,
    /// The proxy made with Pingora
    #[arg(long, default_value = "target/peers/release/pingora-peer")]
    pingora: PathBuf,
    /// Folder for the results
    #[arg(long, default_value = "target/bench")]
    results: PathBuf,
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
    let chosen = choose(&options.names)?;
    let duration = Duration::try_from_secs_f64(options.seconds).context("--seconds must be positive")?;
    if options.rounds == 0 || options.messages == 0 || options.functions == 0 || duration.is_zero() {
        bail!("--rounds, --messages, --functions and --seconds must be larger than 0");
    }
    for Entry { name, what, needs, run: benchmark } in chosen {
        println!("{name}: {what}");
        let binaries = Binaries(options.binaries.clone());
        if let Some(missing) = needs.iter().find(|binary| binaries.path(binary).is_err()) {
            if !options.names.is_empty() {
                binaries.path(missing)?;
            }
            println!("(left out: it measures {missing}, which is not built)\n");
            continue;
        }
        let used = cost::machine_use()?;
        if used > 0.1 {
            println!("(the machine is {:.0} % busy with other work: figures will be off)", used * 100.0);
        }
        let folder =
            tempfile::Builder::new().prefix("kiln-bench-").tempdir().context("no temporary folder")?;
        let bench = Bench {
            binaries,
            function: options.function.clone(),
            pingora: options.pingora.clone(),
            folder: folder.path().to_owned(),
            rounds: options.rounds,
            duration,
            messages: options.messages,
            functions: options.functions,
            results: options.results.clone(),
        };
        let rows = benchmark(&bench).with_context(|| format!("benchmark {name}"))?;
        print!("{}", report::table(&rows));
        println!("-> {}\n", report::store(&options.results, name, &rows)?.display());
    }
    Ok(())
}

fn choose(names: &[String]) -> Result<Vec<Entry>> {
    if names.is_empty() {
        return Ok(ALL.to_vec());
    }
    names
        .iter()
        .map(|name| {
            ALL.into_iter().find(|entry| entry.name == name).with_context(|| {
                let known: Vec<&str> = ALL.iter().map(|entry| entry.name).collect();
                format!("unknown benchmark '{name}'; known are {}", known.join(", "))
            })
        })
        .collect()
}
