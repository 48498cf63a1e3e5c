//! A node that follows a script, reached in this process or through an agent's endpoint on loopback.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use kiln_agent::link::Linked;
use kiln_agent::serve::Endpoint;
use kiln_lb::fleet::{Address, Fleet, LivenessPolicy, NodeConfig};
use kiln_lb::forward::{Forwarder, PoolConfig};
use kiln_shared::body::{Body, BodyError};
use kiln_shared::call::{
    CallError, CallFuture, CallHop, CallKind, CallRequest, CallResponse, Refusal, Stages,
};
use kiln_shared::function::{Function, FunctionSpec};
use kiln_shared::http1::HeaderBlock;
use kiln_shared::identity::{CertificateAuthority, Credentials, Peer, Role};
use kiln_shared::ids::{AppId, CallId, FunctionId, NodeId};
use kiln_shared::listen::{Workers, bind};
use kiln_shared::telemetry::{MetricsHandle, start_metrics};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::fed::fed;

/// Longer than anything here takes.
pub(crate) const LONG: Duration = Duration::from_secs(20);

type Script = dyn Fn(Box<CallRequest>) -> Pin<Box<dyn Future<Output = Result<CallResponse, CallError>> + Send>>
    + Send
    + Sync;

/// What a node does with each call.
pub(crate) struct Node {
    script: Box<Script>,
    pub(crate) calls: AtomicUsize,
}

impl Node {
    pub(crate) fn new<F>(script: impl Fn(Box<CallRequest>) -> F + Send + Sync + 'static) -> Arc<Self>
    where
        F: Future<Output = Result<CallResponse, CallError>> + Send + 'static,
    {
        Arc::new(Self {
            script: Box::new(move |request| Box::pin(script(request))),
            calls: AtomicUsize::new(0),
        })
    }
}

impl CallHop for Node {
    fn call(&self, request: Box<CallRequest>) -> CallFuture<'_> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        (self.script)(request)
    }
}

/// The name of the node that agents here are the agents of.
pub(crate) const NODE: &str = "n";

/// A fleet's CA.
pub(crate) fn authority() -> CertificateAuthority {
    let folder = tempfile::tempdir().expect("a folder");
    CertificateAuthority::init(folder.path(), SystemTime::now()).expect("a CA")
}

/// The CA of the fleet that all here belong to.
pub(crate) fn fleet() -> &'static CertificateAuthority {
    static FLEET: OnceLock<CertificateAuthority> = OnceLock::new();
    FLEET.get_or_init(authority)
}

pub(crate) fn credentials(fleet: &CertificateAuthority, role: Role, name: &str) -> Credentials {
    let folder = tempfile::tempdir().expect("a folder");
    let peer = Peer::new(role, name).expect("a name");
    let identity = fleet.issue(&peer, Duration::from_mins(10), SystemTime::now()).expect("is issued");
    identity.save(folder.path()).expect("is kept");
    Credentials::open(folder.path(), role, SystemTime::now()).expect("is good")
}

/// An agent's endpoint in front of a node.
pub(crate) struct Agent {
    pub(crate) address: SocketAddr,
    stop: CancellationToken,
    workers: Option<Workers>,
}

impl Agent {
    pub(crate) fn start(node: &Arc<Node>) -> Self {
        Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), node)
    }

    pub(crate) fn start_at(address: SocketAddr, node: &Arc<Node>) -> Self {
        Self::start_with(address, node, Duration::ZERO)
    }

    /// One that lets its calls end for so long when it is dropped.
    pub(crate) fn start_with(address: SocketAddr, node: &Arc<Node>, grace: Duration) -> Self {
        Self::start_as(NODE, address, node.clone(), grace)
    }

    /// The agent of the node `name`, in front of anything that takes calls.
    pub(crate) fn start_as(name: &str, address: SocketAddr, hop: Arc<dyn CallHop>, grace: Duration) -> Self {
        let listeners = bind(address, 1).expect("a free port");
        let address = listeners.address();
        let credentials = credentials(fleet(), Role::Agent, name);
        let endpoint = Arc::new(Endpoint::new(hop, &credentials, Linked::default(), metrics()));
        let stop = CancellationToken::new();
        let workers = endpoint.serve(listeners, &stop, grace).expect("serves");
        Self { address, stop, workers: Some(workers) }
    }
}

impl Drop for Agent {
    /// Returns when its port is free and its connections are cut.
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(workers) = self.workers.take() {
            workers.join();
        }
    }
}

pub(crate) fn metrics() -> MetricsHandle {
    static METRICS: OnceLock<MetricsHandle> = OnceLock::new();
    METRICS.get_or_init(|| start_metrics().expect("once a process")).clone()
}

/// A way to a node, and what keeps the node alive.
pub(crate) struct Way {
    pub(crate) hop: Arc<dyn CallHop>,
    _agent: Option<Agent>,
}

/// Every way there is to `node`, with its name.
pub(crate) fn ways(node: &Arc<Node>) -> [(&'static str, Way); WAYS] {
    let remote = |carrier| {
        let agent = Agent::start(node);
        let hop = hop_over(carrier, agent.address);
        Way { hop, _agent: Some(agent) }
    };
    [
        ("in process", Way { hop: node.clone(), _agent: None }),
        ("a connection a call", remote(Carrier::Pooled)),
        ("side by side", remote(Carrier::Multiplexed)),
    ]
}

/// The balancer that calls, but for [`hop_as`].
pub(crate) const BALANCER: &str = "lb";

/// How many [`ways`] there are.
pub(crate) const WAYS: usize = 3;

/// What small calls go over.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Carrier {
    Pooled,
    Multiplexed,
}

impl Carrier {
    pub(crate) fn pools(self) -> PoolConfig {
        match self {
            Self::Pooled => PoolConfig { mux_connections_max: 0, ..PoolConfig::default() },
            Self::Multiplexed => PoolConfig::default(),
        }
    }
}

pub(crate) const CARRIERS: [Carrier; 2] = [Carrier::Pooled, Carrier::Multiplexed];

/// The way over the network to the agent at `address`, as it is by default.
pub(crate) fn remote_hop(address: SocketAddr) -> Arc<dyn CallHop> {
    hop_over(Carrier::Multiplexed, address)
}

pub(crate) fn hop_over(carrier: Carrier, address: SocketAddr) -> Arc<dyn CallHop> {
    hop_with(carrier.pools(), address)
}

pub(crate) fn hop_with(pools: PoolConfig, address: SocketAddr) -> Arc<dyn CallHop> {
    hop_as(&credentials(fleet(), Role::Balancer, BALANCER), NODE, pools, address)
}

/// The way of the balancer with these credentials to `node` at the address.
pub(crate) fn hop_as(
    credentials: &Credentials,
    node: &str,
    pools: PoolConfig,
    address: SocketAddr,
) -> Arc<dyn CallHop> {
    let mut fleet = Fleet::new(LivenessPolicy::default(), Instant::now());
    let address = Address::Remote(address.to_string().into());
    fleet.join(NodeConfig { id: NodeId::new(node), address, weight: None, zone: None }, Instant::now());
    let view = fleet.view();
    // A busy machine is no unreachable agent.
    let forwarder = Forwarder::remote(credentials, PoolConfig { connect_timeout: LONG, ..pools });
    forwarder.hop(view.members()[0].node(), &view).expect("a way")
}

/// Calls, and tells the node what the function is if it asks: what the edge does.
pub(crate) async fn call(hop: &dyn CallHop, request: Box<CallRequest>) -> Result<CallResponse, CallError> {
    let function = Arc::clone(&request.function);
    match hop.call(request).await {
        Err(CallError::Refused { reason: Refusal::UnknownFunction, request }) => {
            hop.define(&function).await;
            hop.call(request).await
        }
        other => other,
    }
}

pub(crate) fn request(body: Body) -> Box<CallRequest> {
    let spec = FunctionSpec {
        config: BTreeMap::from([("KEY".to_owned(), "value".to_owned())]),
        ..FunctionSpec::with_defaults(FunctionId::generate(), AppId::generate(), "example/f:1")
    };
    let mut headers = HeaderBlock::new();
    headers.push_valid(b"Authorization", b"Bearer the-clients-own");
    headers.push_valid(b"Kiln-Token", b"forged");
    Box::new(CallRequest {
        id: CallId::generate(),
        function: Arc::new(Function::new(spec)),
        kind: CallKind::Invoke,
        method: http::Method::PATCH,
        url: "http://example.com/t/a/s?q=1".to_owned(),
        path: "/s".into(),
        headers,
        body,
        received: Instant::now(),
        placement: None,
    })
}

pub(crate) fn answer(status: u16, body: Body) -> CallResponse {
    let mut headers = HeaderBlock::new();
    headers.push_valid(b"X-Answer", b"yes");
    CallResponse {
        status,
        headers,
        body,
        stages: Stages {
            cold: true,
            wait: Duration::from_micros(7),
            start: Duration::from_micros(6),
            run: Duration::from_micros(8),
        },
    }
}

/// A body whose pieces a test sends one by one. Dropping the sender ends it.
pub(crate) fn piecewise() -> (mpsc::Sender<Result<Bytes, BodyError>>, Body) {
    fed(None, 1)
}

/// Waits until the counter has reached `count`.
pub(crate) async fn reached(counter: &AtomicUsize, count: usize) {
    let reached = async {
        while counter.load(Ordering::Relaxed) < count {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, reached).await.expect("the counter moves");
}
