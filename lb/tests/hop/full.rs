//! Nodes that are full, from a caller's side: the next node answers, and a caller is told only when none can.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_agent::container::{Container, ContainerPlan, Driver, DriverFuture};
use kiln_agent::slots::SlotsConfig;
use kiln_agent::{Agent as NodeAgent, AgentConfig};
use kiln_api::{ApiState, Catalog};
use kiln_lb::edge::{Edge, EdgeConfig};
use kiln_lb::fleet::{Address, Fleet, FleetReader, LivenessPolicy, NodeConfig};
use kiln_lb::forward::{Forwarder, PoolConfig};
use kiln_lb::nodes::Nodes;
use kiln_lb::route::follow;
use kiln_shared::call::{CallHop, Refusal};
use kiln_shared::contract::Limits;
use kiln_shared::identity::Role;
use kiln_shared::ids::{FunctionId, NodeId};
use kiln_shared::listen::{Workers, bind};
use kiln_shared::model::{AppInput, FunctionInput};
use kiln_shared::record::{Record, RecordSink};
use kiln_shared::story::Reason;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::support::{Agent, LONG, Node, answer, credentials, fleet, metrics};

/// A driver whose containers never come.
struct Stuck;

impl Driver for Stuck {
    fn ensure_image<'a>(&'a self, _image: &'a str) -> DriverFuture<'a, ()> {
        Box::pin(std::future::pending())
    }

    fn start(&self, _plan: ContainerPlan) -> DriverFuture<'_, Container> {
        Box::pin(std::future::pending())
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }
}

/// An agent whose callers wait for `wait` and get nothing.
fn full(name: &str, wait: Duration) -> NodeAgent {
    let slots = SlotsConfig { wait_timeout: wait, ..SlotsConfig::for_node(256, 1) };
    let config = AgentConfig { node: NodeId::new(name), slots, limits: Limits::default() };
    NodeAgent::start(config, Arc::new(Stuck), RecordSink::bounded(100).0)
}

async fn function(catalog: &Catalog) -> FunctionId {
    let app = AppInput { name: "demo".into(), ..AppInput::default() };
    let app = catalog.create_app(&app).await.expect("an app");
    let function = FunctionInput {
        name: "f".into(),
        app_id: app.id.as_str().into(),
        image: "me/f:1".into(),
        ..FunctionInput::default()
    };
    catalog.create_function(&function).await.expect("a function").id
}

fn fleet_of<'a>(nodes: impl IntoIterator<Item = (&'a str, Address)>) -> Fleet {
    let mut fleet = Fleet::new(LivenessPolicy::default(), Instant::now());
    let members = nodes.into_iter().map(|(name, address)| NodeConfig {
        id: NodeId::new(name),
        address,
        weight: None,
        zone: None,
    });
    fleet.set_members(members, Instant::now());
    fleet
}

/// An edge before a fleet.
struct Front {
    address: SocketAddr,
    stop: CancellationToken,
    workers: Workers,
    /// What it records of calls that no node took.
    records: mpsc::Receiver<Record>,
}

impl Front {
    async fn start(catalog: &Catalog, fleet: FleetReader, forwarder: Forwarder, config: EdgeConfig) -> Self {
        let (followed, _) = follow(catalog.clone()).await.expect("the routes are read");
        let api = kiln_api::router(ApiState::new(catalog.clone()));
        let (sink, records) = RecordSink::bounded(100);
        let edge = Edge::new(config, followed, fleet, forwarder, api, metrics(), sink);
        let listeners = bind((Ipv4Addr::LOCALHOST, 0).into(), 1).expect("a free port");
        let (address, stop) = (listeners.address(), CancellationToken::new());
        let workers = Arc::new(edge).serve(listeners, &stop, Duration::ZERO).expect("a thread");
        Self { address, stop, workers, records }
    }

    /// What it answers, whole.
    async fn ask(&self, request: &str, body: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(self.address).await.expect("connects");
        let lines = format!("Host: a\r\nConnection: close\r\nContent-Length: {}", body.len());
        let request = format!("{request} HTTP/1.1\r\n{lines}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).await.expect("is sent");
        let mut text = String::new();
        let read = tokio::time::timeout(LONG, stream.read_to_string(&mut text));
        read.await.expect("answers").expect("in order");
        text
    }

    async fn invoke(&self, function: FunctionId) -> String {
        self.ask(&format!("POST /invoke/{function}"), "body").await
    }

    async fn stop(self) {
        self.stop.cancel();
        tokio::task::spawn_blocking(|| self.workers.join()).await.expect("ends");
    }
}

#[tokio::test]
async fn a_call_that_its_home_has_no_slot_for_is_answered_by_another_node() {
    const NAMES: [&str; 2] = ["node-a", "node-b"];
    let catalog = Catalog::open("sqlite://:memory:").await.expect("a catalog in memory");
    let function = function(&catalog).await;
    let home = {
        let fleet = fleet_of(NAMES.map(|name| (name, Address::Local)));
        let home = fleet.view().ring().home(kiln_lb::fleet::RingKey::of(&function)).expect("a home");
        fleet.view().members()[home.get()].node().id().clone()
    };
    // The first call is refused at once; the second after it has waited there for as long as callers may.
    for wait in [Duration::ZERO, Duration::from_millis(50)] {
        let (told, mut placements) = mpsc::channel(1);
        let other = Node::new(move |request| {
            let told = told.clone();
            async move {
                told.try_send(request.placement).expect("one call");
                Ok(answer(200, request.body))
            }
        });
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let agents = NAMES.map(|name| {
            let hop: Arc<dyn CallHop> =
                if home.as_str() == name { Arc::new(full(name, wait)) } else { other.clone() };
            Agent::start_as(name, any, hop, Duration::ZERO)
        });
        let nodes = NAMES.into_iter().zip(&agents);
        let fleet_view =
            fleet_of(nodes.map(|(name, agent)| (name, Address::Remote(agent.address.to_string().into()))));
        let forwarder = Forwarder::remote(
            &credentials(fleet(), Role::Balancer, "lb"),
            PoolConfig { connect_timeout: LONG, ..PoolConfig::default() },
        );
        let mut front = Front::start(&catalog, fleet_view.reader(), forwarder, EdgeConfig::default()).await;
        let text = front.invoke(function).await;
        assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("body"), "{text}");
        assert!(front.records.try_recv().is_err(), "the node that took it records it");
        let told = placements.recv().await.flatten().expect("it is told");
        let [refused] = &told.refused[..] else { panic!("{told:?}") };
        assert_eq!(
            (&refused.node, refused.refusal, refused.reason),
            (&home, Refusal::Busy, Reason::RoomHome)
        );
        assert_eq!((told.tries, told.reason), (2, Some(Reason::RoomSpill)));
        assert!(told.before >= wait, "{told:?}");
        front.stop().await;
        tokio::task::spawn_blocking(|| drop(agents)).await.expect("ends");
    }
}

#[tokio::test]
async fn a_caller_of_a_single_full_node_is_told_why_and_when_to_come_back() {
    let catalog = Catalog::open("sqlite://:memory:").await.expect("a catalog in memory");
    let function = function(&catalog).await;
    let fleet = fleet_of([("alone", Address::Local)]);
    let waited = Duration::from_millis(50);
    for config in [EdgeConfig::default(), EdgeConfig { wait_max: waited, ..EdgeConfig::default() }] {
        let forwarder = Forwarder::local(Arc::new(full("alone", waited)));
        let mut front = Front::start(&catalog, fleet.reader(), forwarder, config).await;
        let text = front.invoke(function).await;
        assert!(text.starts_with("HTTP/1.1 503") && text.contains("\r\nRetry-After: 15\r\n"), "{text}");
        assert!(text.contains("server too busy: every node that was tried refused"), "{text}");
        let Ok(Record::Call(call)) = front.records.try_recv() else { panic!("it is recorded") };
        let told = call.story.placement.expect("it is told");
        assert_eq!((told.refused[0].node.as_str(), told.refused[0].refusal), ("alone", Refusal::Busy));
        assert_eq!(call.story.candidates[0].against, ["it has refused the call"]);
        assert_eq!((call.story.node, call.function_id), (None, function));
        front.stop().await;
    }
}

#[tokio::test]
async fn the_metrics_tell_of_the_fleet_and_of_what_nodes_refused() {
    let catalog = Catalog::open("sqlite://:memory:").await.expect("a catalog in memory");
    let function = function(&catalog).await;
    let agent = full("alone", Duration::ZERO);
    let fleet = fleet_of([("alone", Address::Local), ("never-heard", Address::Local)]);
    let (reader, tasks, stop) = (fleet.reader(), TaskTracker::new(), CancellationToken::new());
    let nodes = Nodes::keep(fleet, &tasks, &stop);
    nodes.follow_local(agent.reports());
    let forwarder = Forwarder::local(Arc::new(agent));
    let front = Front::start(
        &catalog,
        reader,
        forwarder,
        EdgeConfig { wait_max: Duration::ZERO, ..EdgeConfig::default() },
    )
    .await;
    assert!(front.invoke(function).await.starts_with("HTTP/1.1 503"));
    let shown = async {
        loop {
            let text = front.ask("GET /metrics", "").await;
            let value = |name: &str| -> Option<f64> {
                text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            };
            let zeros = [
                "kiln_call_refusals_total{reason=\"unreachable\"}",
                "kiln_nodes{state=\"suspect\"}",
                "kiln_nodes_ejected",
                "kiln_node_ejections_total{outcome=\"ejected\"}",
                "kiln_node_ejections_total{outcome=\"spared\"}",
                "kiln_node_silence_seconds_max",
                "kiln_calls_waiting_at_balancer",
                "kiln_functions_waiting_at_balancer",
            ];
            let more = [
                "kiln_call_refusals_total{reason=\"busy\"}",
                "kiln_nodes{state=\"up\"}",
                "kiln_node_reports_total{outcome=\"applied\"}",
                "kiln_nodes_wanted",
            ];
            let are_zero = zeros.iter().all(|name| value(name) == Some(0.0));
            if are_zero && more.iter().all(|name| value(name) >= Some(1.0)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, shown).await.expect("all are shown");
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    front.stop().await;
}
