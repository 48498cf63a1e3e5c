//! What a line costs on its way from a container's output to a syslog receiver over TCP: lines a second, and CPU time of the
//! agent for each. The receiver is a thread that reads and throws away; its time is taken off.
//!
//! `cargo bench -p kiln-agent --bench syslog`

use std::io::{self, Read as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kiln_agent::container::{
    Container, ContainerControl, ContainerPlan, Driver, DriverFuture, Exit, Output, OutputSource, StartStages,
};
use kiln_agent::slots::SlotsConfig;
use kiln_agent::syslog::{Fsync, Shipping, SyslogConfig};
use kiln_agent::{Agent, AgentConfig};
use kiln_shared::contract::Limits;
use kiln_shared::function::{Function, FunctionSpec};
use kiln_shared::ids::{AppId, FunctionId, NodeId};
use kiln_shared::record::RecordSink;
use kiln_shared::syslog::targets;
use kiln_shared::telemetry::{self, MetricsHandle};
use nix::time::{ClockId, clock_gettime};
use tokio::sync::{mpsc, watch};

/// Rounds of each row; the median counts.
const ROUNDS: usize = 5;
/// Lines of a round.
const LINES: usize = if cfg!(debug_assertions) { 100_000 } else { 500_000 };
/// A line with its end.
const LINE_BYTES: usize = 100;

/// Makes containers whose output comes from here.
struct OutputDriver {
    outputs: mpsc::Sender<mpsc::Sender<Output>>,
}

struct Control {
    _ended: watch::Sender<Option<Exit>>,
}

impl ContainerControl for Control {
    fn freeze(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn thaw(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Driver for OutputDriver {
    fn ensure_image<'a>(&'a self, _image: &'a str) -> DriverFuture<'a, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn start(&self, plan: ContainerPlan) -> DriverFuture<'_, Container> {
        let (sender, output) = mpsc::channel(4);
        self.outputs.try_send(sender).expect("one container");
        let (ended, exit) = watch::channel(None);
        Box::pin(std::future::ready(Ok(Container {
            name: plan.function.spec.name.clone(),
            socket: Some(PathBuf::from("/nowhere")),
            stdin: None,
            output: Some(output),
            exit,
            control: Box::new(Control { _ended: ended }),
            stages: StartStages::default(),
        })))
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }
}

fn cpu(clock: ClockId) -> Duration {
    clock_gettime(clock).expect("there is such a clock").into()
}

/// A receiver of one connection. Tells what it cost.
fn receiver() -> (String, JoinHandle<Duration>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("tcp://{}", listener.local_addr().expect("an address"));
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut buffer = vec![0; 1 << 20];
        while stream.read(&mut buffer).expect("is read") > 0 {}
        cpu(ClockId::CLOCK_THREAD_CPUTIME_ID)
    });
    (url, thread)
}

fn sent(metrics: &MetricsHandle, url: &str) -> usize {
    let text = metrics.render();
    let found = text
        .lines()
        .find_map(|line| line.strip_prefix(&format!("kiln_syslog_sent_total{{sink=\"{url}\"}} ")));
    found.map_or(0, |value| value.parse().expect("a number"))
}

/// A round with so many lines in each piece of output. Returns its time and the agent's CPU time.
async fn round(metrics: &MetricsHandle, lines_a_piece: usize) -> (Duration, Duration) {
    let (url, receiver) = receiver();
    let folder = tempfile::tempdir().expect("a folder");
    let shipping = Shipping::start(
        SyslogConfig {
            targets: targets(&url).expect("a sink"),
            platform: Vec::new(),
            ca_file: None,
            message_bytes_max: 8192,
            memory_bytes_max: 1 << 30,
            spool_bytes_max: 1 << 30,
            fsync: Fsync::Second,
            folder: folder.path().to_owned(),
        },
        "node",
    );
    let (outputs, mut made) = mpsc::channel(1);
    let (sink, _records) = RecordSink::bounded(1);
    let config = AgentConfig {
        node: NodeId::new("node"),
        slots: SlotsConfig::for_node(1024, 1),
        limits: Limits::default(),
    };
    let driver = Arc::new(OutputDriver { outputs });
    let agent = Agent::start_shipping(config, driver, sink, shipping.expect("ships"));
    let mut spec = FunctionSpec::with_defaults(FunctionId::generate(), AppId::generate(), "i");
    spec.idle_timeout = Duration::from_hours(1);
    agent.prewarm(&Arc::new(Function::new(spec)), 1);
    let output = made.recv().await.expect("a container");
    let line = [&[b'x'; LINE_BYTES - 1][..], b"\n"].concat();
    let bytes = Bytes::from(line.repeat(lines_a_piece));
    let (began, cpu_before) = (Instant::now(), cpu(ClockId::CLOCK_PROCESS_CPUTIME_ID));
    for _ in 0..LINES / lines_a_piece {
        let piece = Output { source: OutputSource::Stderr, bytes: bytes.clone() };
        output.send(piece).await.expect("the agent listens");
    }
    while sent(metrics, &url) < LINES {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (time, cpu_all) =
        (began.elapsed(), cpu(ClockId::CLOCK_PROCESS_CPUTIME_ID).saturating_sub(cpu_before));
    drop(output);
    agent.close().await;
    (time, cpu_all.saturating_sub(receiver.join().expect("it ended")))
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let metrics = telemetry::start_metrics().expect("is the first");
    let build = if cfg!(debug_assertions) { " (debug build: not to be compared)" } else { "" };
    println!("{LINES} lines of {LINE_BYTES} bytes, medians of {ROUNDS} rounds{build}");
    for lines_a_piece in [1, 10, 100] {
        let mut rounds: Vec<_> =
            (0..ROUNDS).map(|_| runtime.block_on(round(&metrics, lines_a_piece))).collect();
        let micros = |time: Duration| time.as_secs_f64() * 1e6 / LINES as f64;
        rounds.sort_by_key(|(time, _)| *time);
        let lines_a_second = 1e6 / micros(rounds[ROUNDS / 2].0);
        rounds.sort_by_key(|(_, cpu)| *cpu);
        let cpu = micros(rounds[ROUNDS / 2].1);
        println!(
            "{lines_a_piece:>4} lines a piece: {lines_a_second:>9.0} lines/s, {cpu:.2} us of CPU a line, {:.0} lines/s a core",
            1e6 / cpu
        );
    }
}
