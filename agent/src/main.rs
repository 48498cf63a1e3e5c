//! `kiln-agent`: the agent of one host, for balancers elsewhere.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use jiff::Timestamp;
use kiln_agent::drain::Drain;
use kiln_agent::identity::{dial_socket, identity};
use kiln_agent::link::{self, LinkConfig, Orders, Outbox, renew};
use kiln_agent::node::NodeArgs;
use kiln_agent::serve::Endpoint;
use kiln_shared::address::{host_port, listen_address};
use kiln_shared::call::CallHop;
use kiln_shared::identity::{Role, client_config};
use kiln_shared::ids::NodeId;
use kiln_shared::link::LINK_ALPN;
use kiln_shared::link::message::{CallsAt, Hello, PROTOCOL};
use kiln_shared::link::quic;
use kiln_shared::listen::{Drained, bind, workers_default};
use kiln_shared::program::{self, DataFolder, LogArgs, stop_on_signals};
use kiln_shared::record::RecordSink;
use kiln_shared::telemetry;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Call records and log pieces that may wait for a balancer.
const RECORDS_WAITING_MAX: usize = 16 * 1024;
/// Commands of balancers that may wait.
const COMMANDS_WAITING_MAX: usize = 64;
/// How long balancers may take to notice that this agent drains, after its last call.
const NOTICE: Duration = Duration::from_millis(500);
/// How long balancers may take to store the last records.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs functions on this host for balancers elsewhere (`kiln-lb`).
#[derive(Debug, Parser)]
#[command(
    name = "kiln-agent",
    version,
    after_help = "\
Examples:
  kiln-agent --balancer 10.0.0.2:8082 --join-token-file token      the first time
  kiln-agent --balancer 10.0.0.2:8082 --listen 10.0.0.7:8081 --zone east

SIGTERM drains: no more calls are taken, those that run end, every container is removed."
)]
struct AgentArgs {
    /// Balancers' link addresses; a name of several addresses stands for all of them. Those that a balancer knows of are
    /// linked too
    #[arg(
        long = "balancer",
        env = "KILN_BALANCERS",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        value_parser = host_port,
        required = true
    )]
    balancers: Vec<String>,
    /// Address on which calls are taken
    #[arg(long, env = "KILN_AGENT_LISTEN", value_name = "ADDRESS:PORT", value_parser = listen_address, default_value = "127.0.0.1:8081")]
    listen: SocketAddr,
    /// Where balancers send calls [default: the address that this host's link comes from, and the port of --listen]
    #[arg(long, env = "KILN_AGENT_ADVERTISE", value_name = "HOST:PORT", value_parser = host_port)]
    advertise: Option<String>,
    /// Where this node stands; balancers prefer nodes of their own zone
    #[arg(long, env = "KILN_ZONE", value_name = "NAME")]
    zone: Option<String>,
    /// This node's share of the functions: 128 is a usual machine's [default: follows its memory]
    #[arg(long, env = "KILN_WEIGHT", value_name = "POINTS")]
    weight: Option<u32>,
    /// Folder of the node's name, its identity and its functions' sockets
    #[arg(long, env = "KILN_AGENT_DATA_DIR", value_name = "FOLDER", default_value = "/var/lib/kiln-agent")]
    data_dir: PathBuf,
    /// Folder of this node's certificate [default: identity in the data folder]
    #[arg(long, env = "KILN_IDENTITY_DIR", value_name = "FOLDER")]
    identity_dir: Option<PathBuf>,
    /// File with a token of `kiln node token`, for the first start
    #[arg(long, env = "KILN_JOIN_TOKEN_FILE", value_name = "FILE")]
    join_token_file: Option<PathBuf>,
    /// Threads that serve balancers [default: one a core]
    #[arg(long, env = "KILN_WORKERS", value_name = "THREADS")]
    workers: Option<usize>,
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    log: LogArgs,
    /// Seconds that calls under way may take to end when the agent stops
    #[arg(long, env = "KILN_GRACE_SECONDS", value_name = "SECONDS", default_value_t = 30)]
    grace_seconds: u64,
}

fn main() -> ExitCode {
    let args = AgentArgs::parse();
    program::run("kiln-agent", serve(args))
}

async fn serve(args: AgentArgs) -> Result<()> {
    args.log.start()?;
    let listeners = bind(args.listen, args.workers.unwrap_or_else(workers_default))?;
    let folder = DataFolder::open(&args.data_dir)?;
    let metrics = telemetry::start_metrics()?;
    let dialer = dial_socket()?;
    let identity_dir = args.identity_dir.clone().unwrap_or_else(|| folder.path().join("identity"));
    let credentials =
        identity(&identity_dir, args.join_token_file.as_deref(), &args.balancers, &folder, &dialer).await?;
    let node = NodeId::new(credentials.current().peer().name());
    let (sink, records) = RecordSink::bounded(RECORDS_WAITING_MAX);
    let agent = args.node.start(&folder, node.clone(), sink).await?;

    let (tasks, stop_tasks) = (TaskTracker::new(), CancellationToken::new());
    let address = listeners.address();
    let hello = Hello {
        protocol: PROTOCOL,
        node: node.clone(),
        epoch: agent.reports().borrow().epoch,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        calls_at: match args.advertise {
            Some(address) => CallsAt::Address(address),
            None => CallsAt::Port(address.port()),
        },
        zone: args.zone,
        weight: args.weight,
        clock: Timestamp::now(),
    };
    let tls = quic::client_config(client_config(&credentials, Role::Balancer, LINK_ALPN))?;
    let drain = Drain::new(agent.clone(), node.to_string(), args.node.drain());
    let config = LinkConfig { hello, balancers: args.balancers, tls, drain: Some(drain.clone()) };
    let outbox = Outbox::start(records, &tasks, &stop_tasks);
    let (commands, waiting) = mpsc::channel(COMMANDS_WAITING_MAX);
    let orders = Orders::new(agent.clone(), folder.path());
    let linked =
        link::start(config, dialer.clone(), agent.reports(), outbox.clone(), commands, &tasks, &stop_tasks);
    for task in [
        Box::pin(orders.run(waiting)) as std::pin::Pin<Box<dyn Future<Output = ()> + Send>>,
        Box::pin(renew(credentials.clone(), linked.clone())),
        Box::pin(credentials.clone().watch(stop_tasks.clone())),
    ] {
        tasks.spawn(stop_tasks.clone().run_until_cancelled_owned(task));
    }

    let grace = Duration::from_secs(args.grace_seconds);
    let (stop, stop_endpoint) = (stop_on_signals()?, CancellationToken::new());
    let hop: Arc<dyn CallHop> = Arc::new(agent.clone());
    let endpoint = Arc::new(Endpoint::new(hop, &credentials, linked, metrics.clone()));
    let serving =
        endpoint.serve(listeners, &stop_endpoint, grace).context("cannot start the agent's threads")?;
    let upkeep = telemetry::keep_up(metrics);
    tracing::info!(%address, %node, "the agent takes calls; stop it with SIGTERM");

    stop.cancelled().await;
    tracing::info!("draining: calls under way may end");
    // Ends of queued calls are told while balancers are still linked.
    let finishing = async { tokio::join!(agent.finish(), drain.finish()) };
    if tokio::time::timeout(grace, finishing).await.is_err() {
        tracing::warn!("calls that did not end in time are cut");
    }
    // Until they know, balancers still send calls here and are told to go elsewhere.
    tokio::time::sleep(NOTICE).await;
    agent.close().await;
    if tokio::time::timeout(FLUSH_TIMEOUT, outbox.emptied()).await.is_err() {
        tracing::warn!("call records are lost: no balancer stored them in time");
    }
    stop_tasks.cancel();
    tasks.close();
    tasks.wait().await;
    stop_endpoint.cancel();
    let ended = tokio::task::spawn_blocking(move || serving.join()).await?;
    upkeep.abort();
    if let Drained::Forced { connections } = ended {
        tracing::warn!(connections, "connections were cut");
    }
    Ok(())
}
