//! Kiln in one process: balancer and agent of one machine, joined without a socket between them.
//!
//! Knows only their public start functions.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use kiln_agent::drain::Drain;
use kiln_agent::node::{NodeArgs, node_id};
use kiln_lb::balancer::{EdgeArgs, prepare};
use kiln_lb::fleet::{Address, NodeConfig};
use kiln_lb::fleet_options::FleetSettings;
use kiln_lb::forward::Forwarder;
use kiln_shared::listen::Drained;
use kiln_shared::program::DataFolder;
use tokio_util::sync::CancellationToken;

/// What a single node needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where clients reach it.
    pub listen: SocketAddr,
    /// Where it keeps its state.
    pub data_dir: PathBuf,
    /// What callers may do.
    pub edge: EdgeArgs,
    /// What functions may use.
    pub node: NodeArgs,
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
) -> Result<Drained> {
    let folder = DataFolder::open(&options.data_dir)?;
    let grace = options.edge.grace();
    let prepared = prepare(options.edge, FleetSettings::default(), options.listen, &folder).await?;
    let node = node_id(&folder)?;
    let agent = options.node.start(&folder, node.clone(), prepared.records()).await?;
    let drained_as = node.to_string();
    let member = NodeConfig { id: node, address: Address::Local, weight: None, zone: None };
    let balancer = prepared.serve([member], Forwarder::local(Arc::new(agent.clone())), None).await?;
    balancer.nodes().follow_local(agent.reports());
    let drain = Drain::new(agent.clone(), drained_as, options.node.drain());
    let draining = tokio::spawn({
        let (drain, dispatcher) = (drain.clone(), balancer.dispatcher().clone());
        async move { drain.tap("local", &dispatcher).await }
    });
    ready(balancer.address());

    stop.cancelled().await;
    tracing::info!("stopping: calls under way may end");
    let agent_ends = async {
        let finishing = async { tokio::join!(agent.finish(), drain.finish()) };
        if tokio::time::timeout(grace, finishing).await.is_err() {
            tracing::warn!("calls that did not end in time are cut");
        }
        draining.abort();
        agent.close().await;
    };
    balancer.stop(agent_ends).await
}
