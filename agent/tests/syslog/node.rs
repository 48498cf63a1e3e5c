//! An agent with a function that writes lines, without containers.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use kiln_agent::container::{
    Container, ContainerControl, ContainerPlan, Driver, DriverFuture, Exit, Output, OutputSource, StartStages,
};
use kiln_agent::slots::SlotsConfig;
use kiln_agent::syslog::{Fsync, Shipping, SyslogConfig};
use kiln_agent::{Agent, AgentConfig};
use kiln_shared::body::Body;
use kiln_shared::call::{CallHop as _, CallKind, CallRequest};
use kiln_shared::contract::Limits;
use kiln_shared::function::{Function, FunctionSpec};
use kiln_shared::http1::HeaderBlock;
use kiln_shared::ids::{AppId, CallId, FunctionId, NodeId};
use kiln_shared::record::RecordSink;
use kiln_shared::syslog::targets;
use kiln_shared::telemetry::{self, MetricsHandle};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;

/// Makes containers whose function is a task. It writes as many lines as a call's body says, then answers.
struct WritingDriver {
    folder: TempDir,
    started: AtomicUsize,
    functions: TaskTracker,
}

/// Keeps the container's end untold until it is dropped.
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

impl Driver for WritingDriver {
    fn ensure_image<'a>(&'a self, _image: &'a str) -> DriverFuture<'a, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn start(&self, plan: ContainerPlan) -> DriverFuture<'_, Container> {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.path().join(format!("{number}.sock"));
        let listener = UnixListener::bind(&path).expect("the folder is ours");
        let (output, receiver) = mpsc::channel(4);
        self.functions.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // The agent closes connections that it does not need.
                drop(serve(stream, &output).await);
            }
        });
        let (ended, exit) = watch::channel(None);
        Box::pin(std::future::ready(Ok(Container {
            name: plan.function.spec.name.clone(),
            socket: Some(path),
            stdin: None,
            output: Some(receiver),
            exit,
            control: Box::new(Control { _ended: ended }),
            stages: StartStages::default(),
        })))
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }
}

async fn serve(mut stream: UnixStream, output: &mpsc::Sender<Output>) -> io::Result<()> {
    let mut request = Vec::new();
    loop {
        request.clear();
        let body = loop {
            if stream.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
            let text = String::from_utf8_lossy(&request);
            if let Some((_, body)) = text.split_once("\r\n\r\n").filter(|(_, body)| body.ends_with('.')) {
                break body.trim_end_matches('.').to_owned();
            }
        };
        let lines: u64 = body.parse().expect("a number");
        let mut text = Vec::new();
        for line in 1..=lines {
            text.extend_from_slice(text_of(line).as_bytes());
            text.push(b'\n');
            // In pieces that do not end with lines, nor with letters.
            if text.len() > 1000 || line == lines {
                let rest = if line == lines { Vec::new() } else { text.split_off(1000) };
                let bytes = Bytes::from(std::mem::replace(&mut text, rest));
                // An agent that ends listens no more.
                drop(output.send(Output { source: OutputSource::Stderr, bytes }).await);
            }
        }
        // What a function wrote reaches the agent on another way than its answer.
        while output.capacity() < output.max_capacity() {
            tokio::task::yield_now().await;
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await?;
    }
}

/// What the function writes as this line.
pub(crate) fn text_of(line: u64) -> String {
    format!("line {line} of what a function says at some length, with ünïcödé and [brackets]")
}

/// An agent that ships as `config` says.
pub(crate) struct Node {
    agent: Agent,
    // Records that nobody takes are dropped.
    _records: mpsc::Receiver<kiln_shared::record::Record>,
}

/// What ships nothing by itself, with spools in a folder.
pub(crate) fn config(folder: &Path) -> SyslogConfig {
    SyslogConfig {
        targets: Vec::new(),
        platform: Vec::new(),
        ca_file: None,
        message_bytes_max: 8192,
        memory_bytes_max: 8 << 20,
        spool_bytes_max: 1 << 30,
        fsync: Fsync::Second,
        folder: folder.to_owned(),
    }
}

impl Node {
    pub(crate) fn start(config: SyslogConfig) -> Self {
        metrics();
        let driver = WritingDriver {
            folder: tempfile::tempdir().expect("a folder"),
            started: AtomicUsize::new(0),
            functions: TaskTracker::new(),
        };
        let (sink, records) = RecordSink::bounded(1);
        let slots = SlotsConfig::for_node(8192, 4);
        let limits = Limits { log_bytes_max: 1 << 30, ..Limits::default() };
        let agent = AgentConfig { node: NodeId::new("node-1"), slots, limits };
        let shipping = Shipping::start(config, "node-1").expect("ships");
        Self { agent: Agent::start_shipping(agent, Arc::new(driver), sink, shipping), _records: records }
    }

    /// Calls a function, which writes so many lines. Returns the call's id.
    pub(crate) async fn call(&self, function: &Arc<Function>, lines: u64) -> String {
        let request = CallRequest {
            id: CallId::generate(),
            function: Arc::clone(function),
            kind: CallKind::Invoke,
            method: http::Method::POST,
            url: "http://localhost/invoke/x".to_owned(),
            path: "/invoke".into(),
            headers: HeaderBlock::new(),
            body: Body::from(Bytes::from(format!("{lines}."))),
            received: Instant::now(),
            placement: None,
        };
        let id = request.id.to_string();
        let response = self.agent.call(Box::new(request)).await.expect("is answered");
        assert_eq!(response.status, 200);
        response.body.collect(16).await.expect("a whole answer");
        id
    }

    /// Ends the agent as SIGTERM does.
    pub(crate) async fn close(self) {
        self.agent.finish().await;
        self.agent.close().await;
    }
}

/// A function of an app with these sinks.
pub(crate) fn function(syslog_url: Option<&str>) -> Arc<Function> {
    let spec = FunctionSpec::with_defaults(FunctionId::generate(), AppId::generate(), "i");
    Arc::new(Function::new(FunctionSpec { syslog_url: syslog_url.map(str::to_owned), ..spec }))
}

/// A sink's counter or gauge; 0 if it has none.
pub(crate) fn metric(name: &str, sink: &str) -> u64 {
    let sink = targets(sink).expect("a sink")[0].to_string();
    let text = metrics().render();
    let found = text.lines().find_map(|line| line.strip_prefix(&format!("{name}{{sink=\"{sink}\"}} ")));
    found.map_or(0, |value| value.parse().expect("a number"))
}

fn metrics() -> &'static MetricsHandle {
    static METRICS: OnceLock<MetricsHandle> = OnceLock::new();
    METRICS.get_or_init(|| telemetry::start_metrics().expect("is the first"))
}
