//! Kiln in one process: catalog, API, edge and agent of one machine, joined without a socket between them.
//!
//! Owns the order in which they come up and go down. Knows only their public start functions.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use kiln_agent::container::Driver;
use kiln_agent::container::docker::{DockerConfig, DockerDriver};
use kiln_agent::slots::SlotsConfig;
use kiln_agent::{Agent, AgentConfig, capacity};
use kiln_api::{ApiState, Catalog, RecordWriter, Retention};
use kiln_lb::edge::{Drained, Edge, EdgeConfig, bind};
use kiln_lb::fleet::{Address, Fleet, LivenessPolicy, NodeConfig};
use kiln_lb::route::follow;
use kiln_shared::contract::Limits;
use kiln_shared::ids::{CallId, NodeId};
use kiln_shared::record::RecordSink;
use kiln_shared::telemetry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Call records and log pieces that may wait for the store.
const RECORDS_WAITING_MAX: usize = 16 * 1024;
/// How often the histograms are folded when nobody scrapes them.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);
/// Longest path of a directory for sockets that still leaves room for their names (`sun_path`, unix(7)).
const SOCKET_DIR_BYTES_MAX: usize = 70;

/// What a single node needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where clients reach it.
    pub listen: SocketAddr,
    /// Where it keeps its state.
    pub data_dir: PathBuf,
    /// Threads that serve clients.
    pub workers: usize,
    /// Memory for containers in MiB; `None` takes what the machine has available.
    pub memory_mib: Option<u64>,
    /// Address of the Docker engine; `None` takes the local one.
    pub docker_host: Option<String>,
    /// What endpoints show as their base; `None` takes the host that a request names.
    pub public_url: Option<String>,
    /// Largest request body of a call in bytes; 0 is no limit.
    pub request_bytes_max: u64,
    /// Largest answer of a function in bytes; 0 is no limit.
    pub response_bytes_max: u64,
    /// Callers must show this token.
    pub token: Option<String>,
    /// How long calls under way may take to end at shutdown.
    pub grace: Duration,
}

/// Brings everything up, calls `ready` with the address when calls are served, and takes everything down again
/// when `stop` is cancelled.
///
/// # Errors
/// What could not be brought up, in a sentence that says what to do.
pub async fn run(
    options: Options,
    stop: CancellationToken,
    ready: impl FnOnce(SocketAddr),
) -> anyhow::Result<Drained> {
    make_private_dir(&options.data_dir)
        .with_context(|| format!("cannot use the data directory {}", options.data_dir.display()))?;
    let listeners = bind(options.listen, options.workers)?;
    let metrics = telemetry::start_metrics()?;
    let catalog = Catalog::open(&format!("sqlite://{}", options.data_dir.join("kiln.db").display())).await?;
    let node = node_id(&options.data_dir)?;

    let tasks = TaskTracker::new();
    let stop_background = CancellationToken::new();
    let (sink, records) = RecordSink::bounded(RECORDS_WAITING_MAX);
    let writer = RecordWriter::new(catalog.clone(), Retention::default());
    tasks.spawn(writer.run(records, stop_background.clone()));

    let agent = start_agent(&options, node.clone(), sink).await?;

    let (followed, route_task) = follow(catalog.clone()).await?;
    tasks.spawn(route_task.run(stop_background.clone()));
    let mut fleet = Fleet::new(LivenessPolicy::default(), Instant::now());
    fleet.set_members(
        [NodeConfig { id: node, address: Address::Local, weight: None, zone: None }],
        Instant::now(),
    );
    let view = fleet.reader();
    let mut reports = agent.reports();
    fleet.apply([&**reports.borrow_and_update()], Instant::now());
    let stopped = stop_background.clone();
    tasks.spawn(async move {
        loop {
            // Both arms are cancel-safe: a watch remembers that it changed.
            tokio::select! {
                () = stopped.cancelled() => return,
                changed = reports.changed() => if changed.is_err() { return },
            }
            let report = Arc::clone(&reports.borrow_and_update());
            fleet.apply([&*report], Instant::now());
        }
    });

    let api = kiln_api::router(ApiState {
        public_url: options.public_url.clone(),
        ..ApiState::new(catalog.clone())
    });
    let config = EdgeConfig {
        body_bytes_max: options.request_bytes_max,
        token: options.token.clone(),
        ..EdgeConfig::default()
    };
    let edge = Arc::new(Edge::new(config, followed, view, Arc::new(agent.clone()), api, metrics.clone()));
    let address = listeners.address();
    let stop_edge = CancellationToken::new();
    let workers =
        listeners.serve(&edge, &stop_edge, options.grace).context("cannot start the edge's threads")?;
    let stopped = stop_background.clone();
    tasks.spawn(async move {
        // Keeps the histograms bounded between scrapes.
        let mut tick = tokio::time::interval(METRICS_UPKEEP);
        loop {
            // Both arms are cancel-safe.
            tokio::select! {
                () = stopped.cancelled() => return,
                _ = tick.tick() => metrics.run_upkeep(),
            }
        }
    });
    ready(address);

    stop.cancelled().await;
    tracing::info!("stopping: calls under way may end");
    stop_edge.cancel();
    let edge_ended = tokio::task::spawn_blocking(move || workers.join());
    if tokio::time::timeout(options.grace, agent.drain()).await.is_err() {
        tracing::warn!("calls that did not end in time are cut");
    }
    agent.close().await;
    let drained = edge_ended.await.context("the edge did not end")?;
    stop_background.cancel();
    tasks.close();
    tasks.wait().await;
    catalog.close().await;
    Ok(drained)
}

async fn start_agent(options: &Options, node: NodeId, sink: RecordSink) -> anyhow::Result<Agent> {
    let mut docker =
        DockerConfig::new(node.clone(), socket_dir(&options.data_dir, &node)).with_environment()?;
    if let Some(host) = &options.docker_host {
        docker.host.clone_from(host);
    }
    let driver: Arc<dyn Driver> = Arc::new(DockerDriver::connect(docker).await?);
    let memory_mib = match options.memory_mib {
        Some(memory_mib) => memory_mib,
        None => {
            capacity::memory_for_containers_mib().context("cannot read how much memory this machine has")?
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let config = AgentConfig {
        node,
        slots: SlotsConfig::for_node(memory_mib, cores),
        limits: Limits {
            request_bytes_max: options.request_bytes_max,
            response_bytes_max: options.response_bytes_max,
            ..Limits::default()
        },
        detached_body_bytes_max: 6 << 20,
    };
    Ok(Agent::start(config, driver, sink))
}

fn make_private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// The node's name: made on the first start and kept, so that a later life knows its own leftovers.
fn node_id(data_dir: &Path) -> anyhow::Result<NodeId> {
    let path = data_dir.join("node-id");
    match fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => return Ok(NodeId::new(text.trim())),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(anyhow!(error).context(format!("cannot read {}", path.display()))),
    }
    let name = CallId::generate().to_string().to_lowercase();
    let write = || -> io::Result<()> {
        use std::io::Write as _;
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        writeln!(file, "{name}")
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(NodeId::new(name))
}

/// Where the functions' sockets live: with the data if the path is short enough for a socket's address.
fn socket_dir(data_dir: &Path, node: &NodeId) -> PathBuf {
    let beside = data_dir.join("iofs");
    if beside.as_os_str().len() <= SOCKET_DIR_BYTES_MAX {
        return beside;
    }
    std::env::temp_dir().join(format!("kiln-{node}"))
}
