//! The link at scale: one balancer and a thousand agents.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::Bench;
use crate::cost::{self, CpuMeter};
use crate::load::median;
use crate::process::{interrupted, spawn};
use crate::report::{Goal, Row};

const AGENTS: usize = 1000;
/// All agents have this long to link up.
const START_TIMEOUT: Duration = Duration::from_mins(1);
/// After linking up: more than between two whole reports.
const SETTLE: Duration = Duration::from_secs(7);
/// Changes of each agent per second. Without any there are beats only.
const RATES: [u32; 3] = [0, 1, 5];

/// Runs it.
///
/// # Errors
/// If a process does not start, or an agent does not link up.
pub fn run(bench: &Bench) -> Result<Vec<Row>> {
    let program = bench.binaries.path("fleet-peer")?;
    let folder = bench.folder.join("fleet");
    let mut command = Command::new(&program);
    command.arg("balancer").arg(&folder);
    let mut balancer = Peer::start(command, 0)?;
    let address = balancer.hear()?;
    pause(Duration::from_secs(1))?;
    let bytes_before = cost::resident_bytes(balancer.pid())?;
    let mut command = Command::new(&program);
    command.arg("agents").arg(&folder).arg(address).arg(AGENTS.to_string());
    let mut agents = Peer::start(command, cost::cores() - 1)?;
    agents.hear()?;
    let begun = Instant::now();
    while balancer.ask("up")? != AGENTS.to_string() {
        ensure!(begun.elapsed() < START_TIMEOUT, "not all agents link up: {} do", balancer.ask("up")?);
        pause(Duration::from_millis(100))?;
    }
    let linked = begun.elapsed().as_secs_f64();
    pause(SETTLE)?;
    let mut cpu_percent = [(); RATES.len()].map(|()| Vec::new());
    let mut ages = [(); RATES.len()].map(|()| Vec::<[f64; 3]>::new());
    for _ in 0..bench.rounds {
        for (index, rate) in RATES.into_iter().enumerate() {
            agents.ask(&format!("rate {rate}"))?;
            pause(Duration::from_secs(1))?;
            let (meter, begun) = (CpuMeter::start(&[balancer.pid()]), Instant::now());
            pause(bench.duration)?;
            cpu_percent[index].push(100.0 * meter.used().as_secs_f64() / begun.elapsed().as_secs_f64());
            if rate > 0 {
                ages[index].push(balancer.sample(bench.duration)?);
            }
        }
    }
    let bytes_per_node = (cost::resident_bytes(balancer.pid())? - bytes_before) / AGENTS as u64;
    ensure!(balancer.ask("up")? == AGENTS.to_string(), "links broke meanwhile");
    let mut rows = vec![
        Row::of("fleet: memory per node (KiB)", bytes_per_node as f64 / 1024.0).goal(Goal::ValueMax(100.0)),
        Row::of(format!("fleet: all {AGENTS} agents link up (s)"), linked),
    ];
    for (rate, (cpu_percent, ages)) in RATES.into_iter().zip(cpu_percent.iter().zip(&ages)) {
        let cpu = median(cpu_percent);
        if ages.is_empty() {
            let name = "fleet: CPU of the link, beats only (% of a core)";
            rows.push(Row::of(name, cpu).goal(Goal::ValueMax(10.0)));
            continue;
        }
        let middle = |which: usize| median(&ages.iter().map(|ages| ages[which]).collect::<Vec<_>>());
        let changes = format!("{rate} change{} per agent and second", if rate == 1 { "" } else { "s" });
        rows.push(Row::of(format!("fleet: CPU of the link, {changes} (% of a core)"), cpu));
        rows.push(Row::of(format!("fleet: age of a change when seen, {changes}, p50 (ms)"), middle(0)));
        rows.push(Row::of("fleet: the same, p99 (ms)", middle(1)).goal(Goal::ValueMax(100.0)));
        rows.push(Row::of("fleet: the same, largest (ms)", middle(2)));
    }
    Ok(rows)
}

/// A process that is steered by lines. It ends when it is dropped.
pub(super) struct Peer {
    child: Child,
    lines: BufReader<ChildStdout>,
    /// Closed to end it.
    commands: Option<ChildStdin>,
}

impl Peer {
    pub(super) fn start(mut command: Command, core: usize) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = spawn(command, Some(core))?;
        let lines = BufReader::new(child.stdout.take().context("no output")?);
        let commands = child.stdin.take();
        Ok(Self { child, lines, commands })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line)?;
        ensure!(read > 0, "a process of the fleet has ended");
        Ok(line.trim_end().to_owned())
    }

    fn ask(&mut self, question: &str) -> Result<String> {
        let commands = self.commands.as_mut().context("no input")?;
        writeln!(commands, "{question}")?;
        commands.flush()?;
        self.hear()
    }

    /// Median, 99th percentile and maximum of the age of changes when the view shows them, in milliseconds.
    fn sample(&mut self, time: Duration) -> Result<[f64; 3]> {
        let answer = self.ask(&format!("sample {}", time.as_secs_f64()))?;
        let numbers =
            answer.split(' ').map(str::parse).collect::<Result<Vec<f64>, _>>().context("no numbers")?;
        let &[count, median, p99, max] = numbers.as_slice() else { anyhow::bail!("no four numbers") };
        ensure!(count > 0.0, "no change was seen");
        Ok([median, p99, max])
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.commands.take());
        if let Err(error) = self.child.wait() {
            eprintln!("a process of the fleet does not end: {error}");
        }
    }
}

fn pause(time: Duration) -> Result<()> {
    let until = Instant::now() + time;
    while let Some(rest) = until.checked_duration_since(Instant::now()) {
        ensure!(!interrupted(), "interrupted");
        thread::sleep(rest.min(Duration::from_millis(50)));
    }
    Ok(())
}
