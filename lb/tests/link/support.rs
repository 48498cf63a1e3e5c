//! Balancers, and agents without containers.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kiln_agent::link::{self, LinkConfig, Linked, Outbox};
use kiln_api::{Catalog, RecordWriter, Retention};
use kiln_lb::detached::Dispatcher;
use kiln_lb::fleet::{Fleet, FleetConfig, NodeState, View};
use kiln_lb::link::{LinkArgs, LinkParts, RemovedNodes};
use kiln_lb::nodes::Nodes;
use kiln_lb::route::{RouteReader, follow};
use kiln_shared::identity::{Credentials, Role, client_config};
use kiln_shared::link::frame::{MessageReader, write_message};
use kiln_shared::link::message::{BalancerMessage, Command, Hello, Opening, Refused};
use kiln_shared::link::{LINK_ALPN, MESSAGE_BYTES_MAX, SERVER_NAME, quic};
use kiln_shared::program::DataFolder;
use kiln_shared::record::RecordSink;
use kiln_shared::report::NodeReport;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use crate::fleet::{Authority, hello, idle, record, report, warm};

/// Longer than anything here takes.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// Waits until `holds`.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LONG, "it never came about: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A balancer's link, fleet and store.
pub(crate) struct Balancer {
    pub(crate) address: SocketAddr,
    pub(crate) nodes: Nodes,
    pub(crate) catalog: Catalog,
    pub(crate) removed: RemovedNodes,
    pub(crate) fleet: kiln_lb::fleet::FleetReader,
    /// Whether it is the one that speaks for the fleet.
    pub(crate) speaks: watch::Receiver<bool>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Balancer {
    pub(crate) async fn start(authority: &Authority, name: &str) -> Self {
        Self::start_at(authority, name, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await
    }

    pub(crate) async fn start_at(authority: &Authority, name: &str, address: SocketAddr) -> Self {
        Self::start_with(authority, name, address, &format!("data-{name}"), FleetConfig::default()).await
    }

    /// With a catalog that others use too.
    pub(crate) async fn start_sharing(authority: &Authority, name: &str, catalog: &str) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self::start_with(authority, name, any, catalog, FleetConfig::default()).await
    }

    /// Whose fleet is watched as this says.
    pub(crate) async fn start_watching(authority: &Authority, name: &str, fleet: FleetConfig) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self::start_with(authority, name, any, &format!("data-{name}"), fleet).await
    }

    async fn start_with(
        authority: &Authority,
        name: &str,
        address: SocketAddr,
        catalog: &str,
        fleet: FleetConfig,
    ) -> Self {
        Self::start_giving(authority, name, address, catalog, fleet, |_| None).await
    }

    /// With what gives work to its agents, made with its routes.
    pub(crate) async fn start_giving(
        authority: &Authority,
        name: &str,
        address: SocketAddr,
        catalog: &str,
        fleet: FleetConfig,
        dispatcher: impl FnOnce(RouteReader) -> Option<Dispatcher>,
    ) -> Self {
        let folder = authority.path(catalog);
        let catalog = open_catalog(&folder).await;
        let args = LinkArgs {
            link_listen: address,
            link_advertise: None,
            name: Some(name.to_owned()),
            identity_dir: Some(authority.path(&format!("identity-{name}"))),
            ca_dir: Some(authority.path("ca")),
        };
        let data = DataFolder::open(&folder).expect("a data folder");
        let link = args.prepare(&data).expect("prepares");
        drop(data);
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let fleet = Fleet::new(fleet, Instant::now());
        let reader = fleet.reader();
        let nodes = Nodes::keep(fleet, &tasks, &stop);
        let (writer, batches) = RecordWriter::new(catalog.clone(), Retention::default());
        let (_, waiting) = RecordSink::bounded(8);
        tasks.spawn(writer.run(waiting, stop.clone()));
        let address = link.address().expect("is bound");
        let removed = RemovedNodes::default();
        let (followed, _) = follow(catalog.clone()).await.expect("reads");
        let dispatcher = dispatcher(followed.routes);
        let parts = LinkParts {
            nodes: nodes.clone(),
            records: batches,
            removed: removed.clone(),
            dispatcher,
            catalog: catalog.clone(),
        };
        let speaks = link.serve(parts, &tasks, &stop);
        Self { address, nodes, catalog, removed, fleet: reader, speaks, tasks, stop }
    }

    pub(crate) fn view<T>(&self, look: impl FnOnce(&View) -> T) -> T {
        look(self.fleet.clone().view())
    }

    /// A node's state, if it is a member.
    pub(crate) fn state(&self, node: &str) -> Option<NodeState> {
        self.view(|view| {
            let member = view.members().iter().find(|member| member.node().id().as_str() == node);
            member.map(|member| member.node().state())
        })
    }

    /// Calls of a node, by its last report.
    pub(crate) fn load(&self, node: &str) -> Option<u32> {
        self.view(|view| {
            let member = view.members().iter().find(|member| member.node().id().as_str() == node);
            member.map(|member| member.node().load())
        })
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.catalog.close().await;
    }
}

pub(crate) async fn open_catalog(folder: &Path) -> Catalog {
    std::fs::create_dir_all(folder).expect("a folder");
    Catalog::open(&format!("sqlite://{}", folder.join("kiln.db").display())).await.expect("opens")
}

/// An agent's link with what stands for the agent.
pub(crate) struct Agent {
    pub(crate) reports: watch::Sender<Arc<NodeReport>>,
    pub(crate) records: RecordSink,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) linked: Linked,
    pub(crate) outbox: Outbox,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Agent {
    pub(crate) fn start(authority: &Authority, node: &str, balancers: &[SocketAddr]) -> Self {
        let credentials = authority.credentials(Role::Agent, node);
        Self::start_as(&credentials, hello(node, 1), balancers)
    }

    pub(crate) fn start_as(credentials: &Credentials, hello: Hello, balancers: &[SocketAddr]) -> Self {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let tls =
            quic::client_config(client_config(credentials, Role::Balancer, LINK_ALPN)).expect("settings");
        let first = report(hello.node.as_str(), hello.epoch, 1);
        let balancers = balancers.iter().map(ToString::to_string).collect();
        let config = LinkConfig { hello, balancers, tls, drain: None };
        let dialer = quic::dialer(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a socket");
        let reports = watch::Sender::new(Arc::new(first));
        let (records, waiting) = RecordSink::bounded(1024);
        let outbox = Outbox::start(waiting, &tasks, &stop);
        let (sender, commands) = mpsc::channel(8);
        let linked = link::start(config, dialer, reports.subscribe(), outbox.clone(), sender, &tasks, &stop);
        Self { reports, records, commands, linked, outbox, tasks, stop }
    }

    /// Changes the state that is reported.
    pub(crate) fn report(&self, change: impl FnOnce(&mut NodeReport)) {
        self.reports.send_modify(|report| {
            let mut next = (**report).clone();
            next.sequence += 1;
            change(&mut next);
            *report = Arc::new(next);
        });
    }

    /// Ends with a goodbye.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// A stranger's state stream to a balancer.
pub(crate) struct Stranger {
    connection: quinn::Connection,
    writer: quinn::SendStream,
    reader: MessageReader<quinn::RecvStream>,
    _dialer: quinn::Endpoint,
}

impl Stranger {
    pub(crate) async fn dial(authority: &Authority, name: &str, balancer: &Balancer) -> Self {
        let credentials = authority.credentials(Role::Agent, name);
        let tls = kiln_shared::identity::client_config(&credentials, Role::Balancer, LINK_ALPN);
        let dialer = quic::dialer("127.0.0.1:0".parse().expect("an address")).expect("a socket");
        let tls = quic::client_config(tls).expect("settings");
        let connecting = dialer.connect_with(tls, balancer.address, SERVER_NAME).expect("dials");
        let connection = connecting.await.expect("connects");
        let (writer, reader) = connection.open_bi().await.expect("opens");
        Self { connection, writer, reader: MessageReader::new(reader, MESSAGE_BYTES_MAX), _dialer: dialer }
    }

    pub(crate) async fn say(&mut self, message: &impl serde::Serialize) {
        write_message(&mut self.writer, message).await.expect("is sent");
    }

    /// What the balancer says, but for where the others are.
    pub(crate) async fn hear(&mut self) -> BalancerMessage {
        loop {
            let heard = tokio::time::timeout(LONG, self.reader.next()).await.expect("an answer");
            match heard.expect("can be read").expect("a message") {
                BalancerMessage::Balancers(_) => {}
                message => return message,
            }
        }
    }

    /// Opens a stream with this; what is answered, or the code with which the balancer breaks off.
    pub(crate) async fn ask(&self, opening: &Opening) -> Result<Vec<u8>, Option<quinn::VarInt>> {
        let opened = self.connection.open_bi().await;
        let Ok((mut writer, mut reader)) = opened else { return Err(None) };
        write_message(&mut writer, opening).await.map_err(|_| None)?;
        let answer = tokio::time::timeout(LONG, reader.read_to_end(1024)).await.expect("it ends");
        answer.map_err(|error| match error {
            quinn::ReadToEndError::Read(quinn::ReadError::Reset(code)) => Some(code),
            _ => None,
        })
    }

    /// Sends this as a batch of records; the code with which the balancer ends that stream.
    pub(crate) async fn hand(&self, batch: &[u8]) -> Option<quinn::VarInt> {
        let (mut writer, mut reader) = self.connection.open_bi().await.expect("opens");
        write_message(&mut writer, &Opening::Records).await.expect("is sent");
        writer.write_all(batch).await.expect("is sent");
        let ended = tokio::time::timeout(LONG, reader.read_to_end(64)).await.expect("it ends");
        match ended {
            Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(code))) => Some(code),
            _ => None,
        }
    }

    pub(crate) async fn refused(mut self) -> Refused {
        let refused = match self.hear().await {
            BalancerMessage::Refused(refused) => refused,
            other => panic!("expected a refusal, got {other:?}"),
        };
        tokio::time::timeout(LONG, self.connection.closed()).await.expect("the connection ends");
        refused
    }
}

/// A way between an agent and a balancer that can be cut, without either being told.
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    cut: Arc<AtomicBool>,
    _task: AbortOnDrop,
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Wire {
    /// For one agent, to the balancer at `to`.
    pub(crate) async fn new(to: SocketAddr) -> Self {
        let near = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
        let far = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
        far.connect(to).await.expect("connects");
        let address = near.local_addr().expect("is bound");
        let cut = Arc::new(AtomicBool::new(false));
        let is_cut = Arc::clone(&cut);
        let task = tokio::spawn(async move {
            let (mut out, mut back) = (vec![0; 65_536], vec![0; 65_536]);
            let mut agent = None;
            loop {
                // Receiving is cancel-safe. What does not arrive is lost: it is UDP.
                tokio::select! {
                    Ok((length, from)) = near.recv_from(&mut out) => {
                        agent = Some(from);
                        if !is_cut.load(Ordering::Relaxed) {
                            drop(far.send(&out[..length]).await);
                        }
                    }
                    Ok(length) = far.recv(&mut back) => {
                        if let (Some(agent), false) = (agent, is_cut.load(Ordering::Relaxed)) {
                            drop(near.send_to(&back[..length], agent).await);
                        }
                    }
                }
            }
        });
        Self { address, cut, _task: AbortOnDrop(task) }
    }

    pub(crate) fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }

    pub(crate) fn mend(&self) {
        self.cut.store(false, Ordering::Relaxed);
    }
}
