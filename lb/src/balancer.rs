//! A balancer as a whole: catalog, API, routes, nodes and edge, in the order in which they come up and go down.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;
use kiln_api::{ApiState, Catalog, RecordWriter, Retention, StoredBatches};
use kiln_shared::link::BEAT;
use kiln_shared::listen::{Drained, Listeners, Workers, bind, workers_default};
use kiln_shared::program::DataFolder;
use kiln_shared::queue::Queue;
use kiln_shared::record::RecordSink;
use kiln_shared::telemetry::{self, MetricsHandle};
use kiln_shared::token::Token;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{self, Admin};
use crate::detached::{Concurrency, Detached, Dispatcher, Known, QueueArgs, Scheduler};
use crate::edge::{Affinity, Edge, EdgeConfig, ServerTiming};
use crate::fleet::{Fleet, FleetConfig, Limits, LivenessPolicy, NodeConfig, PlacementPolicy, PolicyName};
use crate::fleet_options::FleetSettings;
use crate::forward::Forwarder;
use crate::link::{LinkParts, PreparedLink, RemovedNodes};
use crate::nodes::Nodes;
use crate::route::{disk, follow, follow_with_copy};
use crate::scale_hook::ScaleHook;

/// How long agents of a balancer's earlier life may take to notice that it is gone, and to link up with this one.
const NODES_WITHIN: Duration = Duration::from_secs(5);
/// Call records and log pieces that may wait for the store.
const RECORDS_WAITING_MAX: usize = 16 * 1024;

/// What callers may do, and where state is kept.
#[derive(Debug, Clone, Args)]
pub struct EdgeArgs {
    /// Database of apps, functions, triggers and call records: SQLite, or Postgres, MySQL or MariaDB
    /// for several balancers
    /// [default: kiln.db in the data folder]
    #[arg(long, env = "FN_DB_URL", value_name = "URL", hide_env_values = true)]
    pub db_url: Option<String>,
    /// Base of the endpoints that functions and triggers show [default: the host that a request names]
    #[arg(long, env = "FN_PUBLIC_LB_URL", value_name = "URL")]
    pub public_url: Option<String>,
    /// Largest request body of a call in bytes; 0 is no limit
    #[arg(long, env = "FN_MAX_REQUEST_SIZE", value_name = "BYTES", default_value_t = 0)]
    pub request_bytes_max: u64,
    /// Callers of functions must show this token (Authorization: Bearer) [default: none is asked for]
    #[arg(long, env = "KILN_CALL_TOKEN", value_name = "TOKEN", hide_env_values = true, value_parser = Token::new)]
    pub token: Option<Token>,
    /// How a node is chosen for a call: warm-ch, ch-bl, least-loaded, p2c or random; all but the first are there to
    /// compare it with
    #[arg(long, env = "KILN_PLACEMENT", value_name = "NAME", default_value_t)]
    pub placement: PolicyName,
    /// Calls of one function that show one Kiln-Affinity header (up to 256 bytes) share a home node
    #[arg(long, env = "KILN_AFFINITY_HEADER")]
    pub affinity_header: bool,
    /// Tell callers where their calls' time went, in the header Server-Timing
    #[arg(long, env = "KILN_SERVER_TIMING")]
    pub server_timing: bool,
    /// Seconds that a call may wait for a place on a node; 0 answers 503 at once
    #[arg(long, env = "KILN_WAIT_SECONDS", value_name = "SECONDS", default_value_t = 30)]
    pub wait_seconds: u64,
    /// Threads that serve clients [default: one a core]
    #[arg(long, env = "KILN_WORKERS", value_name = "THREADS")]
    pub workers: Option<usize>,
    /// Seconds that calls under way may take to end at shutdown
    #[arg(long, env = "KILN_GRACE_SECONDS", value_name = "SECONDS", default_value_t = 30)]
    pub grace_seconds: u64,
    /// The queue of detached calls.
    #[command(flatten)]
    pub queue: QueueArgs,
}

impl EdgeArgs {
    /// How long calls under way may take to end at shutdown.
    pub fn grace(&self) -> Duration {
        Duration::from_secs(self.grace_seconds)
    }

    fn fleet_config(&self, fleet: FleetConfig) -> FleetConfig {
        FleetConfig {
            liveness: LivenessPolicy::of_beat(BEAT),
            placement: PlacementPolicy { name: self.placement, ..fleet.placement },
            ..fleet
        }
    }

    fn edge_config(&self) -> EdgeConfig {
        EdgeConfig {
            body_bytes_max: self.request_bytes_max,
            token: self.token.clone(),
            wait_max: Duration::from_secs(self.wait_seconds),
            server_timing: if self.server_timing { ServerTiming::Shown } else { ServerTiming::Hidden },
            affinity: if self.affinity_header { Affinity::ByHeader } else { Affinity::Ignored },
            ..EdgeConfig::default()
        }
    }
}

/// A balancer that has its port and its database, and serves nobody yet.
#[derive(Debug)]
pub struct Prepared {
    args: EdgeArgs,
    fleet: FleetSettings,
    listeners: Listeners,
    catalog: Catalog,
    /// Where the catalog's copy is, if its database can be away.
    copy: Option<PathBuf>,
    queue: Arc<dyn Queue>,
    metrics: MetricsHandle,
    records: RecordSink,
    batches: StoredBatches,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// A balancer that serves.
#[derive(Debug)]
pub struct Balancer {
    address: SocketAddr,
    nodes: Nodes,
    workers: Workers,
    stop_edge: CancellationToken,
    catalog: Catalog,
    detached: Detached,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Takes the port, opens the database, and starts what stores call records.
///
/// # Errors
/// What is in the way, with the remedy.
pub async fn prepare(
    args: EdgeArgs,
    fleet: FleetSettings,
    listen: SocketAddr,
    folder: &DataFolder,
) -> Result<Prepared> {
    let listeners = bind(listen, args.workers.unwrap_or_else(workers_default))?;
    let metrics = telemetry::start_metrics()?;
    let url = match &args.db_url {
        Some(url) => url.clone(),
        None => format!("sqlite://{}", folder.path().join("kiln.db").display()),
    };
    let catalog = Catalog::open(&url).await?;
    let copy = catalog.is_remote().then(|| folder.path().join(disk::FILE_NAME));
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let (records, waiting) = RecordSink::bounded(RECORDS_WAITING_MAX);
    let (writer, batches) = RecordWriter::new(catalog.clone(), Retention::default());
    tasks.spawn(writer.run(waiting, stop.clone()));
    let queue = args.queue.open(folder, args.db_url.as_deref(), &tasks, &stop).await?;
    let upkeep = telemetry::keep_up(metrics.clone());
    let stopped = stop.clone();
    tasks.spawn(async move {
        stopped.cancelled().await;
        upkeep.abort();
    });
    Ok(Prepared { args, fleet, listeners, catalog, copy, queue, metrics, records, batches, tasks, stop })
}

impl Prepared {
    /// Where the call records of an agent in this process go.
    pub fn records(&self) -> RecordSink {
        self.records.clone()
    }

    /// Serves clients with these nodes, and with those that link up.
    ///
    /// # Errors
    /// Neither the catalog nor its copy on disk can be read, or the threads cannot be made.
    pub async fn serve(
        self,
        members: impl IntoIterator<Item = NodeConfig>,
        forwarder: Forwarder,
        link: Option<PreparedLink>,
    ) -> Result<Balancer> {
        let Self {
            args,
            fleet: settings,
            listeners,
            catalog,
            copy,
            queue,
            metrics,
            records,
            batches,
            tasks,
            stop,
        } = self;
        let (followed, route_task) = match copy {
            Some(copy) => follow_with_copy(catalog.clone(), copy).await?,
            None => follow(catalog.clone()).await?,
        };
        tasks.spawn(route_task.run(stop.clone()));
        let mut fleet = Fleet::new(args.fleet_config(settings.config), Instant::now());
        fleet.set_members(members, Instant::now());
        let view = fleet.reader();
        let nodes = Nodes::keep(fleet, &tasks, &stop);
        let balancer = link.as_ref().map_or_else(|| "local".to_owned(), PreparedLink::name);
        let nodes_within = if link.is_some() { NODES_WITHIN } else { Duration::ZERO };
        let limits: Arc<Limits> = Arc::default();
        let known = Known {
            routes: followed.routes.clone(),
            catalog: Some(catalog.clone()),
            concurrency: Some(Concurrency::new(Arc::clone(&limits), view.clone())),
        };
        let detached = args.queue.start(queue, balancer.clone(), known, &tasks, &stop)?;
        let removed = RemovedNodes::default();
        let scheduler =
            Scheduler::new(catalog.clone(), Arc::clone(detached.queue()), followed.routes.clone(), &balancer);
        tasks.spawn(scheduler.run(stop.clone()));
        if let Some(link) = link {
            let parts = LinkParts {
                nodes: nodes.clone(),
                records: batches,
                removed: removed.clone(),
                dispatcher: Some(detached.dispatcher().clone()),
                catalog: catalog.clone(),
            };
            let speaks = link.serve(parts, &tasks, &stop);
            if let Some(hook) = settings.hook {
                let hook = ScaleHook::new(hook, balancer.clone(), nodes.clone(), speaks)
                    .context("the scale webhook cannot be used")?;
                tasks.spawn(stop.clone().run_until_cancelled_owned(hook.run()));
            }
        }
        let api = kiln_api::router(ApiState {
            public_url: args.public_url.clone(),
            queue: Some(Arc::clone(detached.queue())),
            ..ApiState::new(catalog.clone())
        });
        let admin = Admin {
            balancer: balancer.clone(),
            nodes: nodes.clone(),
            routes: followed.routes.clone(),
            fleet: view.clone(),
            catalog: catalog.clone(),
            removed,
            queue: Arc::clone(detached.queue()),
        };
        let api = admin::router(admin).merge(api);
        let grace = args.grace();
        let config = EdgeConfig {
            balancer: balancer.into(),
            nodes_within,
            intake: Some(detached.intake().clone()),
            limits,
            ..args.edge_config()
        };
        let edge = Arc::new(Edge::new(config, followed, view, forwarder, api, metrics, records));
        let (address, stop_edge) = (listeners.address(), CancellationToken::new());
        let workers = edge.serve(listeners, &stop_edge, grace).context("cannot start the edge's threads")?;
        Ok(Balancer { address, nodes, workers, stop_edge, catalog, detached, tasks, stop })
    }
}

impl Balancer {
    /// Where clients reach it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What gives queued calls to nodes.
    pub fn dispatcher(&self) -> &Dispatcher {
        self.detached.dispatcher()
    }

    /// What keeps its view of the nodes.
    pub fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// Takes no more connections and lets calls under way end while `meanwhile` runs, then stores what is left to
    /// store. How it ended.
    ///
    /// # Errors
    /// A thread panicked.
    pub async fn stop(self, meanwhile: impl Future<Output = ()>) -> Result<Drained> {
        let Self { workers, stop_edge, catalog, detached, tasks, stop, .. } = self;
        stop_edge.cancel();
        let ended = tokio::task::spawn_blocking(move || workers.join());
        meanwhile.await;
        let drained = ended.await.context("the edge did not end")?;
        stop.cancel();
        tasks.close();
        tasks.wait().await;
        detached.queue().close().await;
        catalog.close().await;
        Ok(drained)
    }
}
