//! `kiln-lb`: the edge balancer and the API, in front of agents elsewhere.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Result, ensure};
use clap::Parser;
use kiln_lb::balancer::{EdgeArgs, prepare};
use kiln_lb::fleet::{Address, NodeConfig, Weight};
use kiln_lb::forward::{Control, Forwarder, PoolConfig};
use kiln_shared::ids::NodeId;
use kiln_shared::listen::Drained;
use kiln_shared::program::{self, DataFolder, FleetTokenArgs, LogArgs, stop_on_signals};

/// Takes calls, and sends each to a node where its function is warm (`kiln-agent`).
#[derive(Debug, Parser)]
#[command(
    name = "kiln-lb",
    version,
    after_help = "\
Examples:
  kiln-lb --node 127.0.0.1:8081                  with an agent on this machine
  kiln-lb --listen 0.0.0.0:8080 --node a=10.0.0.7:8081 --node b=10.0.0.8:8081,weight=200 \\
          --fleet-token-file /etc/kiln/fleet-token

Whoever reaches the port can deploy functions; put a firewall before it. SIGTERM lets calls under way end."
)]
struct BalancerArgs {
    /// Address of the API and of calls
    #[arg(long, env = "KILN_LB_LISTEN", value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// An agent: its address, and if wanted a name and a weight (100 is a usual machine's; the default follows the memory
    /// that the agent reports). All balancers of a fleet give their agents the same names
    #[arg(
        long = "node",
        env = "KILN_NODES",
        value_name = "[NAME=]HOST:PORT[,weight=N]",
        value_delimiter = ' ',
        required = true
    )]
    nodes: Vec<NodeArg>,
    /// Folder of the database
    #[arg(long, env = "KILN_LB_DATA_DIR", value_name = "FOLDER", default_value = "/var/lib/kiln-lb")]
    data_dir: PathBuf,
    #[command(flatten)]
    fleet_token: FleetTokenArgs,
    #[command(flatten)]
    edge: EdgeArgs,
    #[command(flatten)]
    log: LogArgs,
}

/// An agent as the command line names it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct NodeArg {
    name: NodeId,
    address: Arc<str>,
    weight: Option<Weight>,
}

/// A text that names no agent.
#[derive(Debug, PartialEq, Eq)]
struct BadNode;

impl fmt::Display for BadNode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(
            "not an agent: write HOST:PORT, NAME=HOST:PORT or NAME=HOST:PORT,weight=N with N from 8 to 4096",
        )
    }
}

impl std::error::Error for BadNode {}

impl FromStr for NodeArg {
    type Err = BadNode;

    fn from_str(text: &str) -> Result<Self, BadNode> {
        let (text, weight) = match text.split_once(",weight=") {
            None => (text, None),
            Some((text, weight)) => {
                let points = weight.parse::<u32>().ok().ok_or(BadNode)?;
                let in_bounds = (Weight::MIN.points()..=Weight::MAX.points()).contains(&points);
                (text, Some(in_bounds.then(|| Weight::new(points)).ok_or(BadNode)?))
            }
        };
        let (name, address) = text.split_once('=').unwrap_or((text, text));
        let (host, port) = address.rsplit_once(':').ok_or(BadNode)?;
        let port_is_good = port.parse::<u16>().is_ok_and(|port| port > 0);
        if name.is_empty() || host.is_empty() || !port_is_good || text.contains(',') {
            return Err(BadNode);
        }
        Ok(Self { name: NodeId::new(name), address: address.into(), weight })
    }
}

fn main() -> ExitCode {
    let args = BalancerArgs::parse();
    program::run("kiln-lb", serve(args))
}

async fn serve(args: BalancerArgs) -> Result<()> {
    args.log.start()?;
    let token = args.fleet_token.token()?;
    for (index, node) in args.nodes.iter().enumerate() {
        let twice = args.nodes[..index].iter().any(|other| other.name == node.name);
        ensure!(!twice, "two nodes are called {}; give each a name of its own", node.name);
    }
    let folder = DataFolder::open(&args.data_dir)?;
    let prepared = prepare(args.edge, args.listen, &folder).await?;
    let records = prepared.records();
    let pools = PoolConfig::default();
    let members = args.nodes.iter().map(|node| NodeConfig {
        id: node.name.clone(),
        address: Address::Remote(Arc::clone(&node.address)),
        weight: node.weight,
        zone: None,
    });
    let balancer = prepared.serve(members, Forwarder::remote(token.clone(), pools)).await?;
    for node in &args.nodes {
        let control = Control::new(Arc::clone(&node.address), token.clone(), pools.connect_timeout);
        balancer.nodes().follow_remote(&node.name, &control, records.clone());
    }
    // Records come from the agents alone from here on.
    drop(records);
    let stop = stop_on_signals()?;
    let (address, nodes) = (balancer.address(), args.nodes.len());
    tracing::info!(%address, nodes, "the balancer takes calls; stop it with SIGTERM");

    stop.cancelled().await;
    tracing::info!("stopping: calls under way may end");
    if let Drained::Forced { connections } = balancer.stop(std::future::ready(())).await? {
        tracing::warn!(connections, "connections were cut");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_are_named_by_their_address_unless_they_have_a_name() {
        let node = |name: &str, address: &str, weight: Option<u32>| {
            Ok(NodeArg { name: NodeId::new(name), address: address.into(), weight: weight.map(Weight::new) })
        };
        for (text, expected) in [
            ("10.0.0.7:8081", node("10.0.0.7:8081", "10.0.0.7:8081", None)),
            ("a=10.0.0.7:8081", node("a", "10.0.0.7:8081", None)),
            ("a=host.example:81,weight=200", node("a", "host.example:81", Some(200))),
            ("[::1]:8081", node("[::1]:8081", "[::1]:8081", None)),
            ("host", Err(BadNode)),
            ("host:0", Err(BadNode)),
            ("host:x", Err(BadNode)),
            ("=host:1", Err(BadNode)),
            ("a=:1", Err(BadNode)),
            ("a=host:1,weight=0", Err(BadNode)),
            ("a=host:1,zone=z", Err(BadNode)),
        ] {
            assert_eq!(text.parse(), expected, "{text}");
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory as _;
        BalancerArgs::command().debug_assert();
    }
}
