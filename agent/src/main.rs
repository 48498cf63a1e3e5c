//! `kiln-agent`: the agent of one host, for balancers elsewhere.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use kiln_agent::node::{NodeArgs, node_id};
use kiln_agent::serve::Endpoint;
use kiln_shared::call::CallHop;
use kiln_shared::listen::{Drained, bind, workers_default};
use kiln_shared::program::{self, DataFolder, FleetTokenArgs, LogArgs, stop_on_signals};
use kiln_shared::record::RecordSink;
use kiln_shared::telemetry;
use tokio_util::sync::CancellationToken;

/// Call records and log pieces that may wait for a balancer.
const RECORDS_WAITING_MAX: usize = 16 * 1024;
/// How long balancers may take to notice that this agent drains, after its last call.
const NOTICE: Duration = Duration::from_millis(500);
/// How long balancers may take to fetch the last records.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs functions on this host for balancers elsewhere (`kiln-lb`).
#[derive(Debug, Parser)]
#[command(
    name = "kiln-agent",
    version,
    after_help = "\
Examples:
  kiln-agent                                     for a balancer on this machine
  kiln-agent --listen 10.0.0.7:8081 --fleet-token-file /etc/kiln/fleet-token

SIGTERM drains: no more calls are taken, those that run end, every container is removed."
)]
struct AgentArgs {
    /// Address that balancers reach
    #[arg(long, env = "KILN_AGENT_LISTEN", value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8081")]
    listen: SocketAddr,
    /// Folder of the node's name and its functions' sockets
    #[arg(long, env = "KILN_AGENT_DATA_DIR", value_name = "FOLDER", default_value = "/var/lib/kiln-agent")]
    data_dir: PathBuf,
    /// Threads that serve balancers [default: one a core]
    #[arg(long, env = "KILN_WORKERS", value_name = "THREADS")]
    workers: Option<usize>,
    #[command(flatten)]
    fleet_token: FleetTokenArgs,
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
    let token = args.fleet_token.token()?;
    ensure!(
        token.is_some() || args.listen.ip().is_loopback(),
        "{} can be reached from other machines, and whoever reaches it can run functions; \
         give a secret with --fleet-token-file or listen on 127.0.0.1",
        args.listen
    );
    let listeners = bind(args.listen, args.workers.unwrap_or_else(workers_default))?;
    let folder = DataFolder::open(&args.data_dir)?;
    let metrics = telemetry::start_metrics()?;
    let node = node_id(&folder)?;
    let (sink, records) = RecordSink::bounded(RECORDS_WAITING_MAX);
    let agent = args.node.start(&folder, node.clone(), sink).await?;

    let grace = Duration::from_secs(args.grace_seconds);
    let (stop, stop_endpoint) = (stop_on_signals()?, CancellationToken::new());
    let address = listeners.address();
    let hop: Arc<dyn CallHop> = Arc::new(agent.clone());
    let endpoint = Arc::new(Endpoint::new(hop, agent.reports(), token, records, metrics.clone()));
    let serving =
        endpoint.serve(listeners, &stop_endpoint, grace).context("cannot start the agent's threads")?;
    let upkeep = telemetry::keep_up(metrics);
    tracing::info!(%address, %node, "the agent takes calls; stop it with SIGTERM");

    stop.cancelled().await;
    tracing::info!("draining: calls under way may end");
    if tokio::time::timeout(grace, agent.drain()).await.is_err() {
        tracing::warn!("calls that did not end in time are cut");
    }
    // Until they know, balancers still send calls here and are told to go elsewhere.
    tokio::time::sleep(NOTICE).await;
    agent.close().await;
    endpoint.flush(FLUSH_TIMEOUT).await;
    stop_endpoint.cancel();
    let ended = tokio::task::spawn_blocking(move || serving.join()).await?;
    upkeep.abort();
    if let Drained::Forced { connections } = ended {
        tracing::warn!(connections, "connections were cut");
    }
    Ok(())
}
