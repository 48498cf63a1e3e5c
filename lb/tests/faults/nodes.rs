//! What runs on the simulation's hosts: balancers' links with fleet and placement, and agents' links.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use kiln_agent::link::{self, LinkConfig, Linked, Outbox};
use kiln_api::{StoredBatches, WaitingBatch};
use kiln_lb::fleet::{Fleet, FleetReader, LivenessPolicy, TriedSet};
use kiln_lb::link::{Answers, LinkServer, RemovedNodes};
use kiln_lb::nodes::Nodes;
use kiln_shared::identity::{ClientAuth, Role, client_config, server_config};
use kiln_shared::link::frame::{MessageReader, write_message};
use kiln_shared::link::message::{BalancerMessage, Opening};
use kiln_shared::link::{BEAT, JOIN_ALPN, LINK_ALPN, MESSAGE_BYTES_MAX, SERVER_NAME, quic};
use kiln_shared::record::{Record, RecordSink};
use kiln_shared::report::NodeReport;
use quinn::Connection;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, advance, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::fleet::{demand, hello, report, warm};
use crate::world::Shared;

pub(crate) const LINK_PORT: u16 = 8082;
/// Where a balancer is found too.
const SECOND_PORT: u16 = 8083;
/// A node that was silent for this long gets no calls.
pub(crate) const SUSPECT_AFTER: Duration = Duration::from_millis(7 * BEAT.as_millis() as u64 / 2);
/// What a balancer may take to notice: a look at everybody, and a probe.
pub(crate) const SLACK: Duration = Duration::from_millis(100);
/// How often placement is asked.
const PROBE_EVERY: Duration = Duration::from_millis(20);
/// Functions that are placed in each probe; the node of that number has the function warm.
const FUNCTIONS: u64 = 6;
/// Calls that an agent reports tell its life: this many times its epoch, and some.
const CALLS_PER_LIFE: u32 = 10_000;

pub(crate) type Outcome = Result<(), Box<dyn std::error::Error>>;

/// How a host is told to stop, or that its clock jumps.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    pub(crate) stop: CancellationToken,
    pub(crate) jumps: mpsc::Sender<Duration>,
}

impl Control {
    fn new() -> (Self, mpsc::Receiver<Duration>) {
        let (jumps, waiting) = mpsc::channel(4);
        (Self { stop: CancellationToken::new(), jumps }, waiting)
    }
}

/// A running balancer, seen from outside.
pub(crate) struct BalancerLife {
    pub(crate) control: Control,
    pub(crate) fleet: FleetReader,
}

/// A running agent, seen from outside.
pub(crate) struct AgentLife {
    pub(crate) control: Control,
    pub(crate) reports: watch::Sender<Arc<NodeReport>>,
    pub(crate) records: RecordSink,
    pub(crate) linked: Linked,
    /// The texts of its records so far.
    pub(crate) written: Vec<String>,
}

impl AgentLife {
    pub(crate) fn report(&self, change: impl FnOnce(&mut NodeReport)) {
        self.reports.send_modify(|report| {
            let mut next = (**report).clone();
            next.sequence += 1;
            change(&mut next);
            *report = Arc::new(next);
        });
    }

    /// Changes the numbers, and the containers, of what it reports.
    pub(crate) fn work(&self, number: usize) {
        self.report(|report| {
            report.calls += 1;
            report.functions = vec![warm(number as u64, report.calls % 7)];
        });
    }
}

/// A balancer on the host of that name, until it is told to stop.
pub(crate) async fn balancer(shared: Arc<Shared>, name: String) -> Outcome {
    let credentials = shared.authority.credentials(Role::Balancer, &name);
    let tls = server_config(&credentials, &[LINK_ALPN, JOIN_ALPN], ClientAuth::Optional);
    let tls = quic::server_config(tls)?;
    let endpoint = shared.network.endpoint(&name, LINK_PORT, Some(tls.clone())).await?;
    let second = shared.network.endpoint(&name, SECOND_PORT, Some(tls)).await?;
    let (control, mut jumps) = Control::new();
    let tasks = TaskTracker::new();
    let liveness = LivenessPolicy::of_beat(BEAT);
    let fleet = Fleet::new(liveness, Instant::now().into_std());
    let reader = fleet.reader();
    let nodes = Nodes::keep(fleet, &tasks, &control.stop);
    let (records, batches) = StoredBatches::bounded();
    tasks.spawn(control.stop.clone().run_until_cancelled_owned(store(
        Arc::clone(&shared),
        name.clone(),
        batches,
    )));
    let (_balancers, balancers) = watch::channel(Vec::new());
    let server = LinkServer {
        nodes,
        records,
        answers: Answers::default(),
        dispatcher: None,
        removed: RemovedNodes::default(),
        balancers,
        registrar: None,
    };
    server.clone().serve(endpoint, &tasks, &control.stop);
    server.serve(second, &tasks, &control.stop);
    let life = BalancerLife { control: control.clone(), fleet: reader.clone() };
    shared.book().balancers.insert(name.clone(), life);
    let mut prober =
        Prober { shared: Arc::clone(&shared), name: name.clone(), reader, lives: BTreeMap::new() };
    loop {
        tokio::select! {
            () = control.stop.cancelled() => break,
            Some(by) = jumps.recv() => advance(by).await,
            () = sleep(PROBE_EVERY) => prober.probe(),
        }
    }
    tasks.close();
    tasks.wait().await;
    Ok(())
}

/// Text of a record that no store takes.
pub(crate) const POISON: &str = "poison";

/// Remembers what agents hand over, while the balancer's store works.
async fn store(shared: Arc<Shared>, name: String, mut batches: mpsc::Receiver<WaitingBatch>) {
    while let Some(batch) = batches.recv().await {
        let mut book = shared.book();
        if book.broken_stores.contains(&name) {
            continue;
        }
        let is_poison = |record: &Record| matches!(record, Record::Log(chunk) if chunk.text == POISON);
        if batch.records().iter().any(is_poison) {
            batch.refused();
            continue;
        }
        for record in batch.records() {
            if let Record::Log(chunk) = record {
                book.stored.insert(chunk.text.clone());
            }
        }
        batch.stored();
    }
}

/// Asks for placement all the time and looks at what comes of it.
struct Prober {
    shared: Arc<Shared>,
    name: String,
    reader: FleetReader,
    /// The newest life of each node whose reports were believed.
    lives: BTreeMap<String, u32>,
}

impl Prober {
    fn probe(&mut self) {
        let network = &self.shared.network;
        let own = turmoil::lookup(self.name.as_str());
        for number in 0..FUNCTIONS {
            let now = Instant::now().into_std();
            let Ok(seat) = self.reader.seat(&demand(number), &TriedSet::new(), now) else { continue };
            let node = seat.node().id().as_str();
            let heard = network.heard_at(turmoil::lookup(node), own).unwrap_or_default();
            let silence = network.now().saturating_sub(heard);
            if silence > SUSPECT_AFTER + SLACK {
                self.shared.violated(format!("{} gave a call to {node}, silent for {silence:?}", self.name));
            }
        }
        for member in self.reader.view().members() {
            let node = member.node().id().as_str();
            let life = member.node().load() / CALLS_PER_LIFE;
            let newest = self.lives.entry(node.to_owned()).or_default();
            if life > 0 && life < *newest {
                let name = &self.name;
                self.shared.violated(format!("{name} believes life {life} of {node} after life {newest}"));
            }
            *newest = life.max(*newest);
        }
    }
}

/// An agent on the host of that name, until it is told to stop.
pub(crate) async fn agent(shared: Arc<Shared>, name: String, number: usize) -> Outcome {
    let credentials = shared.authority.credentials(Role::Agent, &name);
    let tls = quic::client_config(client_config(&credentials, Role::Balancer, LINK_ALPN))?;
    let dialer = shared.network.endpoint(&name, 0, None).await?;
    let (control, mut jumps) = Control::new();
    let epoch = shared.book().next_life(&name);
    let mut first = report(&name, u64::from(epoch), 1);
    first.calls = epoch * CALLS_PER_LIFE;
    first.functions = vec![warm(number as u64, 1)];
    let reports = watch::Sender::new(Arc::new(first));
    let tasks = TaskTracker::new();
    let (records, waiting) = RecordSink::bounded(1024);
    let outbox = Outbox::start(waiting, &tasks, &control.stop);
    let (sender, mut commands) = mpsc::channel(8);
    let ports: &[u16] = if shared.book().two_addresses { &[LINK_PORT, SECOND_PORT] } else { &[LINK_PORT] };
    let addresses = |balancer: &String| {
        let host = turmoil::lookup(balancer.as_str());
        ports.iter().map(move |&port| SocketAddr::new(host, port).to_string())
    };
    let balancers = shared.balancers.iter().flat_map(addresses).collect();
    let config = LinkConfig { hello: hello(&name, u64::from(epoch)), balancers, tls, drain: None };
    let linked = link::start(config, dialer, reports.subscribe(), outbox, sender, &tasks, &control.stop);
    let life = AgentLife { control: control.clone(), reports, records, linked, written: Vec::new() };
    shared.book().agents.insert(name, life);
    loop {
        tokio::select! {
            () = control.stop.cancelled() => break,
            Some(by) = jumps.recv() => advance(by).await,
            Some(_command) = commands.recv() => {}
        }
    }
    tasks.close();
    tasks.wait().await;
    Ok(())
}

/// Says hello to the first balancer as an agent whose clock is so far off: the answer, and the connection.
pub(crate) async fn greeted(
    shared: &Shared,
    name: &str,
    off: SignedDuration,
) -> Result<(BalancerMessage, Connection), Box<dyn std::error::Error>> {
    let credentials = shared.authority.credentials(Role::Agent, name);
    let tls = quic::client_config(client_config(&credentials, Role::Balancer, LINK_ALPN))?;
    let dialer = shared.network.endpoint(name, 0, None).await?;
    let balancer = SocketAddr::new(turmoil::lookup("lb1"), LINK_PORT);
    let connection = dialer.connect_with(tls, balancer, SERVER_NAME)?.await?;
    let (mut writer, reader) = connection.open_bi().await?;
    let mut hello = hello(name, 1);
    hello.clock += off;
    write_message(&mut writer, &Opening::State(hello)).await?;
    let greeting = MessageReader::new(reader, MESSAGE_BYTES_MAX).next().await?;
    Ok((greeting.ok_or("no greeting")?, connection))
}
