//! The agents' process: as many links as are asked for, each with a certificate of its own, from a few sockets.

use std::future::ready;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use kiln_agent::AgentConfig;
use kiln_agent::container::{Container, ContainerPlan, Driver, DriverFuture};
use kiln_agent::drain::{Drain, DrainConfig};
use kiln_agent::link::{self, LinkConfig, Outbox};
use kiln_agent::slots::SlotsConfig;
use kiln_shared::call::Failure;
use kiln_shared::contract::Limits;
use kiln_shared::function::Revision;
use kiln_shared::identity::{Role, client_config};
use kiln_shared::ids::NodeId;
use kiln_shared::link::message::{CallsAt, Hello, PROTOCOL};
use kiln_shared::link::{LINK_ALPN, quic};
use kiln_shared::record::RecordSink;
use kiln_shared::report::{FunctionReport, NodeReport, ReportScope};
use quinn::Endpoint;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, interval_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{answer, credentials, lines, moment};

/// Sockets that the agents share.
const SOCKETS: usize = 4;
/// Functions with containers on every node.
const FUNCTIONS: u64 = 10;
/// Images on every node.
const IMAGES: usize = 5;

/// What agents do with a balancer's queue of detached calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Queued {
    /// They leave it alone.
    Leave,
    /// They wait for work from it.
    Drain,
}

impl Queued {
    /// How such agents' names begin.
    fn prefix(self) -> &'static str {
        match self {
            Self::Leave => "node",
            Self::Drain => "drain",
        }
    }
}

/// Links `count` agents with `balancer` until standard input ends. `rate N` lets each change its state N times a
/// second from then on.
///
/// # Errors
/// The sockets or the folder cannot be used, or a line is none of these.
pub async fn run(folder: &Path, balancer: SocketAddr, count: usize, queued: Queued) -> Result<()> {
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let dial = |_| quic::dialer(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let dialers = (0..SOCKETS).map(dial).collect::<std::io::Result<Vec<Endpoint>>>()?;
    let rate = watch::Sender::new(0.0_f64);
    for number in 0..count {
        let agent = Agent::new(folder, number, queued)?;
        let dialer = dialers[number % SOCKETS].clone();
        tasks.spawn(agent.run(balancer, dialer, rate.subscribe(), tasks.clone(), stop.clone()));
    }
    answer("started")?;
    let mut lines = lines();
    while let Some(line) = lines.recv().await {
        let Some(("rate", changes)) = line.split_once(' ') else { bail!("what is '{line}'?") };
        rate.send_replace(changes.parse().context("a number of changes per second")?);
        answer("changed")?;
    }
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(())
}

struct Agent {
    number: usize,
    hello: Hello,
    tls: quinn::ClientConfig,
    state: watch::Sender<Arc<NodeReport>>,
    drain: Option<Drain>,
}

impl Agent {
    fn new(folder: &Path, number: usize, queued: Queued) -> Result<Self> {
        let name = format!("{}-{number:04}", queued.prefix());
        let credentials = credentials(folder, Role::Agent, &name)?;
        let tls = quic::client_config(client_config(&credentials, Role::Balancer, LINK_ALPN))?;
        let hello = Hello {
            protocol: PROTOCOL,
            node: NodeId::new(name),
            epoch: 1,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            calls_at: CallsAt::Port(8081),
            zone: None,
            weight: None,
            clock: Timestamp::now(),
        };
        let state = watch::Sender::new(Arc::new(report(&hello.node)?));
        let drain = (queued == Queued::Drain).then(|| idle_drain(&hello.node));
        Ok(Self { number, hello, tls, state, drain })
    }

    /// Changes the state at the rate that is asked for.
    async fn run(
        self,
        balancer: SocketAddr,
        dialer: Endpoint,
        mut rate: watch::Receiver<f64>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Result<()> {
        let Self { number, hello, tls, state, drain } = self;
        let config = LinkConfig { hello, balancers: vec![balancer.to_string()], tls, drain };
        let (_sink, records) = RecordSink::bounded(8);
        let outbox = Outbox::start(records, &tasks, &stop);
        let (sender, mut commands) = mpsc::channel(8);
        let _linked = link::start(config, dialer, state.subscribe(), outbox, sender, &tasks, &stop);
        loop {
            let per_second = *rate.borrow_and_update();
            let mut changes = (per_second > 0.0).then(|| {
                let every = Duration::from_secs_f64(1.0 / per_second);
                // Spread over the time, so that they do not all change at once.
                interval_at(Instant::now() + every.mul_f64(spread(number)), every)
            });
            loop {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    Some(_command) = commands.recv() => {}
                    Ok(()) = rate.changed() => break,
                    _ = async { changes.as_mut().expect("is there").tick().await }, if changes.is_some() => {
                        change(&state)?;
                    }
                }
            }
        }
    }
}

/// The drain of a node that has room and no containers.
fn idle_drain(node: &NodeId) -> Drain {
    let slots = SlotsConfig::for_node(8192, 4);
    let config = AgentConfig { node: node.clone(), slots, limits: Limits::default() };
    let (sink, _no_records) = RecordSink::bounded(8);
    let agent = kiln_agent::Agent::start(config, Arc::new(NoContainers), sink);
    Drain::new(agent, node.as_str(), DrainConfig::default())
}

/// Makes none.
struct NoContainers;

impl Driver for NoContainers {
    fn ensure_image<'a>(&'a self, _image: &'a str) -> DriverFuture<'a, ()> {
        Box::pin(ready(Ok(())))
    }

    fn start(&self, _plan: ContainerPlan) -> DriverFuture<'_, Container> {
        Box::pin(ready(Err(Failure::busy())))
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(ready(()))
    }
}

/// A number from 0 to 1 that is far from those of the neighbours.
fn spread(number: usize) -> f64 {
    (number as f64 * 0.618_034).fract()
}

/// A call has come and one of the functions has a container more or less.
fn change(state: &watch::Sender<Arc<NodeReport>>) -> Result<()> {
    let now = moment()?;
    state.send_modify(|report| {
        let mut next = (**report).clone();
        next.sequence += 1;
        next.calls = now;
        let function = (next.sequence % FUNCTIONS) as usize;
        next.functions[function].idle = 1 + (next.sequence % 3) as u32;
        *report = Arc::new(next);
    });
    Ok(())
}

fn report(node: &NodeId) -> Result<NodeReport> {
    let function = |number: u64| {
        let id = format!("{number:026}").parse()?;
        Ok(FunctionReport { id, revision: Revision(number), idle: 1, busy: 0, starting: 0, waiting: 0 })
    };
    let images = (0..IMAGES).map(|number| format!("registry.example/team/function-{number}:1.0").into());
    Ok(NodeReport {
        node: node.clone(),
        epoch: 1,
        sequence: 1,
        scope: ReportScope::Whole,
        draining: false,
        memory_total_mib: 8192,
        memory_committed_mib: 1024,
        memory_idle_mib: 1024,
        cpu_total_millis: 4000,
        cpu_committed_millis: 0,
        calls: moment()?,
        functions: (0..FUNCTIONS).map(function).collect::<Result<_>>()?,
        gone: Vec::new(),
        images: Some(images.collect()),
    })
}
