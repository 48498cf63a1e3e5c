//! Balancers with queues, and agents whose containers follow a script.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use kiln_agent::container::{
    Container, ContainerControl, ContainerPlan, Driver, DriverFuture, Exit, Output, OutputSource, StartStages,
};
use kiln_agent::drain::{Drain, DrainConfig};
use kiln_agent::link::{self, LinkConfig, Linked, Outbox};
use kiln_agent::slots::SlotsConfig;
use kiln_agent::{Agent, AgentConfig};
use kiln_api::Catalog;
use kiln_lb::detached::{Dispatcher, Known};
use kiln_lb::fleet::FleetConfig;
use kiln_shared::call::CallKind;
use kiln_shared::contract::Limits;
use kiln_shared::http1::HeaderBlock;
use kiln_shared::identity::{Role, client_config};
use kiln_shared::ids::{CallId, NodeId};
use kiln_shared::link::{LINK_ALPN, quic};
use kiln_shared::model::{AppInput, FunctionInput, FunctionResource};
use kiln_shared::queue::{List, MessageView, NewMessage, PAGE_MAX, Queue, State, StoredCall};
use kiln_shared::record::RecordSink;
use tokio::io::{AsyncBufReadExt as _, BufReader, DuplexStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::fleet::hello;
use crate::support::{Authority, Balancer, LONG, open_catalog};

/// A payload that fills a fourth of what one reserve gives.
pub(crate) const PAYLOAD: usize = 8 << 20;
/// Memory of a node, in MiB: room for some containers.
pub(crate) const NODE_MIB: u64 = 1024;
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(5);

/// A balancer with a queue and four functions: `plain`, `told` whose answers go to the third, and `large` that most nodes
/// are too small for.
pub(crate) struct Drained {
    balancer: Balancer,
    queue: Arc<dyn Queue>,
    tasks: TaskTracker,
    stop: CancellationToken,
    pub(crate) plain: FunctionResource,
    pub(crate) told: FunctionResource,
    pub(crate) large: FunctionResource,
}

impl Drained {
    pub(crate) async fn start(authority: &Authority, name: &str, catalog: &str, queue: &str) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self::start_at(authority, name, catalog, queue, any).await
    }

    /// Balancers with the same names of `catalog` or `queue` share them.
    pub(crate) async fn start_at(
        authority: &Authority,
        name: &str,
        catalog: &str,
        queue: &str,
        address: SocketAddr,
    ) -> Self {
        let functions = functions(authority, catalog).await;
        let named = |name: &str| functions.iter().find(|function| function.name == name).cloned();
        let url = format!("sqlite://{}", authority.path(queue).display());
        let queue = kiln_queue::open(&url, kiln_queue::Options::default()).await.expect("a queue");
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let fleet = FleetConfig::default();
        let balancer = Balancer::start_giving(authority, name, address, catalog, fleet, |routes| {
            let dispatcher = Dispatcher::new(Arc::clone(&queue), Known::of(routes));
            tasks.spawn(dispatcher.clone().run(stop.clone()));
            Some(dispatcher)
        });
        Self {
            balancer: balancer.await,
            queue,
            plain: named("plain").expect("is there"),
            told: named("told").expect("is there"),
            large: named("large").expect("is there"),
            tasks,
            stop,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.balancer.address
    }

    pub(crate) async fn enqueue(&self, messages: Vec<NewMessage>) {
        self.queue.enqueue(messages).await.expect("is stored");
    }

    /// The message once it is in that state.
    pub(crate) async fn ends(&self, id: CallId, state: State) -> MessageView {
        let deadline = Instant::now() + LONG;
        loop {
            let view = self.queue.inspect(id).await.expect("answers").expect("is there");
            if view.state == state {
                return view;
            }
            assert!(Instant::now() < deadline, "it never became {state:?}: {view:?}");
            sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until no worker has others than these.
    pub(crate) async fn until_only_these_run(&self, these: impl Fn(CallId) -> bool) {
        let deadline = Instant::now() + LONG;
        let list = List { state: Some(State::Running), messages_max: PAGE_MAX, ..List::default() };
        loop {
            let page = self.queue.list(list.clone()).await.expect("answers");
            if page.messages.iter().all(|message| these(message.id)) {
                return;
            }
            assert!(Instant::now() < deadline, "others run: {page:?}");
            sleep(LOOK_EVERY).await;
        }
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.balancer.stop().await;
        self.queue.close().await;
    }
}

/// The functions of a catalog, which are made if they are not there.
async fn functions(authority: &Authority, catalog: &str) -> Vec<FunctionResource> {
    let catalog = open_catalog(&authority.path(catalog)).await;
    if catalog.snapshot().await.expect("reads").functions.is_empty() {
        make_functions(&catalog).await;
    }
    let functions = catalog.snapshot().await.expect("reads").functions;
    catalog.close().await;
    functions
}

async fn make_functions(catalog: &Catalog) {
    let app = AppInput { name: "demo".into(), ..AppInput::default() };
    let app = catalog.create_app(&app).await.expect("an app");
    for (name, destination, memory) in [
        ("plain", None, 128),
        ("listener", None, 128),
        ("told", Some("demo/listener"), 128),
        ("large", None, NODE_MIB + 1),
    ] {
        let mut function = FunctionInput {
            name: name.into(),
            app_id: app.id.as_str().into(),
            image: "me/f:1".into(),
            format: "json".into(),
            memory_mib: memory,
            ..FunctionInput::default()
        };
        if let Some(destination) = destination {
            function.annotations.insert("kiln.dev/on-success".to_owned(), serde_json::json!(destination));
        }
        catalog.create_function(&function).await.expect("a function");
    }
}

pub(crate) fn message(function: &FunctionResource, payload: &str) -> NewMessage {
    let stored = StoredCall {
        kind: CallKind::Invoke,
        method: http::Method::POST,
        url: "http://kiln/invoke".to_owned(),
        path: "/invoke".to_owned(),
        headers: HeaderBlock::new(),
    };
    let new = NewMessage::new(CallId::generate(), function.id, function.app_id, payload.to_owned());
    NewMessage { envelope: stored.to_envelope().expect("is written"), ..new }
}

#[derive(Default)]
struct Seen {
    runs: HashMap<CallId, usize>,
    bodies: Vec<String>,
}

/// Containers of a node: they answer at once, unless the body says `hold` and nothing is let go yet.
struct Containers {
    seen: Mutex<Seen>,
    is_open: watch::Sender<bool>,
}

impl Containers {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(self: Arc<Self>, input: DuplexStream, output: mpsc::Sender<Output>) {
        let mut lines = BufReader::new(input).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if line.is_empty() {
                continue;
            }
            let call: serde_json::Value = serde_json::from_str(&line).expect("a call");
            let id = call["call_id"].as_str().and_then(|id| id.parse().ok()).expect("its id");
            let body = call["body"].as_str().expect("a body").to_owned();
            *self.seen().runs.entry(id).or_default() += 1;
            if body == "hold" && self.is_open.subscribe().wait_for(|is_open| *is_open).await.is_err() {
                return;
            }
            let answer = format!("answer to {}", &body[..body.len().min(100)]);
            self.seen().bodies.push(body);
            let answer = serde_json::json!({"body": answer, "protocol": {"status_code": 200}});
            let bytes = Bytes::from(answer.to_string());
            if output.send(Output { source: OutputSource::Stdout, bytes }).await.is_err() {
                return;
            }
        }
    }
}

struct Control;

impl ContainerControl for Control {
    fn freeze(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn thaw(&self) -> io::Result<()> {
        Ok(())
    }
}

struct Scripted(Arc<Containers>);

impl Driver for Scripted {
    fn ensure_image<'a>(&'a self, _image: &'a str) -> DriverFuture<'a, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn start(&self, _plan: ContainerPlan) -> DriverFuture<'_, Container> {
        let (stdin, input) = tokio::io::duplex(64 << 10);
        let (sender, output) = mpsc::channel(8);
        let (exited, exit) = watch::channel(None);
        let containers = Arc::clone(&self.0);
        tokio::spawn(async move {
            containers.serve(input, sender).await;
            exited.send_replace(Some(Exit::Code(0)));
        });
        let container = Container {
            name: "scripted".to_owned(),
            socket: None,
            stdin: Some(Box::pin(stdin)),
            output: Some(output),
            exit,
            control: Box::new(Control),
            stages: StartStages::default(),
        };
        Box::pin(std::future::ready(Ok(container)))
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }
}

/// An agent that is linked to balancers and drains them.
pub(crate) struct Node {
    pub(crate) agent: Agent,
    pub(crate) linked: Linked,
    drain: Drain,
    containers: Arc<Containers>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Node {
    pub(crate) fn start(
        authority: &Authority,
        name: &str,
        balancers: &[SocketAddr],
        drain: DrainConfig,
    ) -> Self {
        Self::start_with(authority, name, balancers, drain, NODE_MIB)
    }

    /// One with this much memory for containers, in MiB.
    pub(crate) fn start_with(
        authority: &Authority,
        name: &str,
        balancers: &[SocketAddr],
        drain: DrainConfig,
        memory_mib: u64,
    ) -> Self {
        let credentials = authority.credentials(Role::Agent, name);
        let containers = Arc::new(Containers { seen: Mutex::default(), is_open: watch::Sender::new(false) });
        let slots = SlotsConfig::for_node(memory_mib, 2);
        let config = AgentConfig { node: NodeId::new(name), slots, limits: Limits::default() };
        let (sink, records) = RecordSink::bounded(1024);
        let agent = Agent::start(config, Arc::new(Scripted(Arc::clone(&containers))), sink);
        let drain = Drain::new(agent.clone(), name, drain);
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let tls = quic::client_config(client_config(&credentials, Role::Balancer, LINK_ALPN));
        let config = LinkConfig {
            hello: hello(name, agent.reports().borrow().epoch),
            balancers: balancers.iter().map(ToString::to_string).collect(),
            tls: tls.expect("settings"),
            drain: Some(drain.clone()),
        };
        let dialer = quic::dialer(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a socket");
        let outbox = Outbox::start(records, &tasks, &stop);
        let (commands, _) = mpsc::channel(8);
        let linked = link::start(config, dialer, agent.reports(), outbox, commands, &tasks, &stop);
        Self { agent, linked, drain, containers, tasks, stop }
    }

    /// How often a call's function ran here.
    pub(crate) fn runs(&self, id: CallId) -> usize {
        self.containers.seen().runs.get(&id).copied().unwrap_or(0)
    }

    /// The bodies of the calls that ended here.
    pub(crate) fn bodies(&self) -> Vec<String> {
        self.containers.seen().bodies.clone()
    }

    /// Calls that are held end, and others are not held any more.
    pub(crate) fn let_go(&self) {
        self.containers.is_open.send_replace(true);
    }

    /// Stops the draining in order, as the agent does when it is told to stop.
    pub(crate) fn finishing(&self) -> impl Future<Output = ()> + use<> {
        let (agent, drain) = (self.agent.clone(), self.drain.clone());
        async move {
            let finishing = async { tokio::join!(agent.finish(), drain.finish()) };
            timeout(LONG, finishing).await.expect("ends");
        }
    }

    pub(crate) async fn stop(self) {
        self.let_go();
        self.finishing().await;
        self.agent.close().await;
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
