//! One measurement: an answering process on one core, callers on another, CPU time of both over the same seconds.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::task::{JoinSet, LocalSet};

use super::call::Call;
use super::client::Client;
use super::server::Ready;
use super::{Case, Measured, Way};
use crate::process::interrupted;
use crate::{cost, process};

/// Calls before anything is counted: connections are made, buffers have grown.
const WARM_UP: Duration = Duration::from_millis(300);
/// Longest time for the last answers.
const TAIL_TIMEOUT: Duration = Duration::from_mins(1);
const CLIENT_CORE: usize = 0;
const SERVER_CORE: usize = 1;

/// The answering process; ended when dropped.
struct Answering(Child);

impl Answering {
    fn start(way: Way, agents: usize) -> Result<(Self, Ready)> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["serve", &serde_json::to_string(&way)?.replace('"', ""), &agents.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let core = (cost::cores() > SERVER_CORE).then_some(SERVER_CORE);
        let mut child = process::spawn(command, core)?;
        let stdout = child.stdout.take().context("no output")?;
        let answering = Self(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let ready = serde_json::from_str(&line).context("the answering process did not start")?;
        Ok((answering, ready))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        // It ends with its input; killing it is for one that hangs.
        drop(self.0.stdin.take());
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Measures one way in one case for so long. Pins the calling thread.
///
/// # Errors
/// If something does not work: a call that fails ends the run.
pub fn measure(way: Way, case: Case, duration: Duration, loss: Option<&str>) -> Result<Measured> {
    let (answering, ready) = Answering::start(way, case.agents)?;
    cost::pin_to_core(CLIENT_CORE)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let client = Rc::new(Client::new(way, ready).await?);
        let call = Rc::new(Call::new(case.body_bytes));
        run(&client, &call, case, WARM_UP).await?;
        let pids = [std::process::id(), answering.0.id()];
        let meters = pids.map(|pid| cost::CpuMeter::start(&[pid]));
        let begun = Instant::now();
        let mut latencies = run(&client, &call, case, duration).await?;
        let elapsed = begun.elapsed();
        let used = meters.map(|meter| meter.used());
        ensure!(!latencies.is_empty(), "no call ended in {duration:?}");
        latencies.sort_unstable();
        let percentile = |share: f64| {
            let last = latencies.len() - 1;
            f64::from(latencies[(last as f64 * share).round() as usize]) / 1000.0
        };
        let per_call = |used: Duration| used.as_secs_f64() * 1e6 / latencies.len() as f64;
        Ok(Measured {
            way,
            case,
            loss: loss.map(str::to_owned),
            calls: latencies.len(),
            calls_per_second: latencies.len() as f64 / elapsed.as_secs_f64(),
            client_us: per_call(used[0]),
            server_us: per_call(used[1]),
            p50_us: percentile(0.5),
            p99_us: percentile(0.99),
        })
    })
}

/// Keeps so many calls in flight for so long; how long each took, in nanoseconds.
async fn run(client: &Rc<Client>, call: &Rc<Call>, case: Case, duration: Duration) -> Result<Vec<u32>> {
    let until = Instant::now() + duration;
    let mut callers = JoinSet::new();
    for number in 0..case.in_flight {
        let (client, call) = (Rc::clone(client), Rc::clone(call));
        callers.spawn_local(async move {
            let mut latencies = Vec::with_capacity(1 << 12);
            let mut sent = Instant::now();
            while sent < until && !interrupted() {
                client.call(number % case.agents, &call).await?;
                let now = Instant::now();
                latencies.push(u32::try_from((now - sent).as_nanos()).unwrap_or(u32::MAX));
                sent = now;
            }
            anyhow::Ok(latencies)
        });
    }
    let mut all = Vec::new();
    let ended = async {
        while let Some(ended) = callers.join_next().await {
            all.extend(ended.context("a caller panicked")??);
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(duration + TAIL_TIMEOUT, ended).await.context("calls do not end")??;
    Ok(all)
}
