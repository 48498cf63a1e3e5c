//! An edge on a free port, with one app, function and trigger, before a node that a test scripts.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kiln_api::{ApiState, Catalog};
use kiln_lb::edge::{Edge, EdgeConfig};
use kiln_lb::fleet::{Address, Fleet, LivenessPolicy, NodeConfig};
use kiln_lb::forward::Forwarder;
use kiln_lb::route::follow;
use kiln_shared::body::Body;
use kiln_shared::call::{CallError, CallFuture, CallHop, CallRequest, CallResponse, Failure, Stages};
use kiln_shared::http1::HeaderBlock;
use kiln_shared::ids::NodeId;
use kiln_shared::listen::{Workers, bind};
use kiln_shared::model::{AppInput, CONCURRENCY_MAX, FunctionInput, TriggerInput};
use kiln_shared::record::{CallRecord, Record, RecordSink};
use kiln_shared::report::{NodeReport, ReportScope};
use kiln_shared::story::Placement;
use kiln_shared::telemetry::{MetricsHandle, start_metrics};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Longest wait for anything; well below the edge's own idle limit.
pub(crate) const WAIT: Duration = Duration::from_secs(20);

/// Records that a test can look at later.
const RECORDS_MAX: usize = 1024;

/// A call as the node got it, with its whole body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) url: String,
    pub(crate) body: Bytes,
    pub(crate) placement: Option<Placement>,
}

type Script = Box<dyn Fn(&Seen) -> Result<CallResponse, Failure> + Send + Sync>;

/// A node that counts calls, reads their bodies to the end and answers by a script.
pub(crate) struct ScriptedNode {
    calls: AtomicUsize,
    whole: Mutex<Vec<Seen>>,
    script: Script,
}

impl ScriptedNode {
    /// Calls that came, whole or not.
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// Calls whose body came to its end, in order.
    pub(crate) fn whole(&self) -> Vec<Seen> {
        self.whole.lock().expect("no test panics with it").clone()
    }
}

impl CallHop for ScriptedNode {
    fn call(&self, request: Box<CallRequest>) -> CallFuture<'_> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            let CallRequest { method, url, body, placement, .. } = *request;
            let Ok(body) = body.collect(1 << 24).await else {
                return Err(CallError::Failed(Failure::cancelled()));
            };
            let seen = Seen { method: method.to_string(), url, body, placement };
            self.whole.lock().expect("no test panics with it").push(seen.clone());
            Ok((self.script)(&seen)?)
        })
    }
}

/// The answer of a function.
pub(crate) fn answer(status: u16, headers: &[(&str, &str)], body: Body) -> CallResponse {
    let mut block = HeaderBlock::new();
    for (name, value) in headers {
        block.push(name.as_bytes(), value.as_bytes()).expect("a valid header");
    }
    CallResponse { status, headers: block, body, stages: Stages::default() }
}

/// The edge under test. The function is called at `/t/demo/hello`, `/t/demo` and [`TestEdge::invoke_path`].
pub(crate) struct TestEdge {
    pub(crate) node: Arc<ScriptedNode>,
    pub(crate) invoke_path: String,
    pub(crate) address: SocketAddr,
    /// What the edge records of calls that no node took.
    kept: mpsc::Receiver<Record>,
    stop: CancellationToken,
    workers: Option<Workers>,
}

impl TestEdge {
    pub(crate) async fn start(script: impl Fn(&Seen) -> CallResponse + Send + Sync + 'static) -> Self {
        Self::start_with(EdgeConfig::default(), script).await
    }

    pub(crate) async fn start_with(
        config: EdgeConfig,
        script: impl Fn(&Seen) -> CallResponse + Send + Sync + 'static,
    ) -> Self {
        Self::start_limited(config, serde_json::Value::Null, script).await
    }

    /// With a limit on the function's calls.
    pub(crate) async fn start_limited(
        config: EdgeConfig,
        concurrency_max: serde_json::Value,
        script: impl Fn(&Seen) -> CallResponse + Send + Sync + 'static,
    ) -> Self {
        Self::start_failing(config, concurrency_max, move |seen| Ok(script(seen))).await
    }

    /// With a limit on the function's calls, unless that is null, and a node that may fail.
    pub(crate) async fn start_failing(
        config: EdgeConfig,
        concurrency_max: serde_json::Value,
        script: impl Fn(&Seen) -> Result<CallResponse, Failure> + Send + Sync + 'static,
    ) -> Self {
        let catalog = Catalog::open("sqlite://:memory:").await.expect("a catalog in memory");
        let invoke_path = format!("/invoke/{}", fill(&catalog, &concurrency_max).await);
        let (followed, _) = follow(catalog.clone()).await.expect("the routes are read");
        let node = Arc::new(ScriptedNode {
            calls: AtomicUsize::new(0),
            whole: Mutex::default(),
            script: Box::new(script),
        });
        let (records, kept) = RecordSink::bounded(RECORDS_MAX);
        let edge = Edge::new(
            config,
            followed,
            one_node().reader(),
            Forwarder::local(Arc::clone(&node) as Arc<dyn CallHop>),
            kiln_api::router(ApiState::new(catalog)),
            metrics(),
            records,
        );
        let listeners = bind(([127, 0, 0, 1], 0).into(), 1).expect("a free port");
        let (address, stop) = (listeners.address(), CancellationToken::new());
        let workers = Arc::new(edge).serve(listeners, &stop, Duration::ZERO).expect("a thread");
        Self { node, invoke_path, address, kept, stop, workers: Some(workers) }
    }

    pub(crate) async fn connect(&self) -> Client {
        Client { stream: TcpStream::connect(self.address).await.expect("connects"), read: Vec::new() }
    }

    /// What the edge has recorded of calls since it was asked last.
    pub(crate) fn recorded(&mut self) -> Vec<CallRecord> {
        let records = std::iter::from_fn(|| self.kept.try_recv().ok());
        let calls = records.filter_map(|record| match record {
            Record::Call(call) => Some(call),
            Record::Log(_) => None,
        });
        calls.collect()
    }

    /// Sends all of it on a new connection; everything that comes until the edge closes the connection.
    pub(crate) async fn exchange(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut client = self.connect().await;
        client.send(bytes).await;
        client.rest().await
    }

    /// One request without a body on a connection of its own.
    pub(crate) async fn request(&self, method: &str, path: &str) -> Reply {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: kiln.test\r\nConnection: close\r\n\r\n");
        Reply::parse(&self.exchange(head).await)
    }
}

impl Drop for TestEdge {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(workers) = self.workers.take() {
            workers.join();
        }
    }
}

/// A client that writes bytes as they are.
pub(crate) struct Client {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Client {
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let sent = self.stream.write_all(bytes.as_ref());
        tokio::time::timeout(WAIT, sent).await.expect("the edge reads").expect("the edge is there");
    }

    /// Reads until what came and was not yet taken ends with `end`, and takes it.
    pub(crate) async fn until(&mut self, end: &str) -> String {
        let read = async {
            while !self.read.ends_with(end.as_bytes()) {
                let read_bytes = self.stream.read_buf(&mut self.read).await.expect("reads");
                assert!(read_bytes > 0, "closed after {:?}", String::from_utf8_lossy(&self.read));
            }
        };
        let in_time = tokio::time::timeout(WAIT, read).await.is_ok();
        assert!(in_time, "waited in vain for {end:?} after {:?}", String::from_utf8_lossy(&self.read));
        String::from_utf8(std::mem::take(&mut self.read)).expect("text")
    }

    /// Reads until the edge closes the connection.
    pub(crate) async fn rest(&mut self) -> String {
        let read = self.stream.read_to_end(&mut self.read);
        tokio::time::timeout(WAIT, read).await.expect("the edge closes the connection").expect("in order");
        String::from_utf8(std::mem::take(&mut self.read)).expect("text")
    }
}

/// An answer, taken apart.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    #[track_caller]
    pub(crate) fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no whole head: {text:?}"));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Self {
            status: status.unwrap_or_else(|| panic!("no status: {head}")),
            head: format!("{head}\r\n"),
            body: body.to_owned(),
        }
    }

    /// The only value of a header; `None` if it is absent.
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.head.lines().skip(1).filter_map(|line| {
            let (other, value) = line.split_once(": ")?;
            other.eq_ignore_ascii_case(name).then_some(value)
        });
        let value = values.next();
        assert_eq!(values.next(), None, "{name} twice in {}", self.head);
        value
    }

    /// Asserts a refusal with these words, to the byte.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, message: &str) {
        let body = serde_json::json!({ "message": message }).to_string() + "\n";
        assert_eq!((self.status, self.body.as_str()), (status, body.as_str()), "{self:?}");
        assert_eq!(self.header("Content-Type"), Some("application/json; charset=utf-8"));
    }
}

/// Creates the app, the function, with a limit on its calls unless that is null, and its triggers; the function's id.
async fn fill(catalog: &Catalog, concurrency_max: &serde_json::Value) -> String {
    let app = AppInput { name: "demo".into(), ..AppInput::default() };
    let app = catalog.create_app(&app).await.expect("an app");
    let limit =
        [(CONCURRENCY_MAX, concurrency_max.clone())].into_iter().filter(|(_, value)| !value.is_null());
    let function = FunctionInput {
        name: "hello".into(),
        app_id: app.id.as_str().into(),
        image: "me/hello:1".into(),
        annotations: limit.collect(),
        ..FunctionInput::default()
    };
    let function = catalog.create_function(&function).await.expect("a function");
    for (name, source) in [("hello", "/hello"), ("root", "/")] {
        let trigger = TriggerInput {
            name: name.into(),
            app_id: app.id.as_str().into(),
            fn_id: function.id.as_str().into(),
            kind: "http".into(),
            source: source.into(),
            ..TriggerInput::default()
        };
        catalog.create_trigger(&trigger).await.expect("a trigger");
    }
    function.id.to_string()
}

/// A fleet of this process alone, with room.
fn one_node() -> Fleet {
    let (now, id) = (Instant::now(), NodeId::new("node"));
    let mut fleet = Fleet::new(LivenessPolicy::default(), now);
    fleet
        .set_members([NodeConfig { id: id.clone(), address: Address::Local, weight: None, zone: None }], now);
    let report = NodeReport {
        node: id,
        epoch: 1,
        sequence: 1,
        scope: ReportScope::Whole,
        draining: false,
        memory_total_mib: 8192,
        memory_committed_mib: 0,
        memory_idle_mib: 0,
        cpu_total_millis: 4000,
        cpu_committed_millis: 0,
        calls: 0,
        functions: Vec::new(),
        gone: Vec::new(),
        images: Some(Arc::default()),
    };
    fleet.apply([&report], now);
    fleet
}

/// The recorder, of which a process has one.
fn metrics() -> MetricsHandle {
    static METRICS: OnceLock<MetricsHandle> = OnceLock::new();
    METRICS.get_or_init(|| start_metrics().expect("the first recorder")).clone()
}
