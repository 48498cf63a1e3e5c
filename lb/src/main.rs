//! `kiln-lb`: the edge balancer and the API, in front of agents elsewhere.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use kiln_lb::balancer::{EdgeArgs, prepare};
use kiln_lb::fleet_options::FleetArgs;
use kiln_lb::forward::{Forwarder, PoolConfig};
use kiln_lb::link::LinkArgs;
use kiln_shared::listen::Drained;
use kiln_shared::program::{self, DataFolder, LogArgs, stop_on_signals};

/// Takes calls, and sends each to a node where its function is warm (`kiln-agent`).
#[derive(Debug, Parser)]
#[command(
    name = "kiln-lb",
    version,
    after_help = "\
Examples:
  kiln ca init --dir /etc/kiln/ca                once for the fleet
  kiln-lb --ca-dir /etc/kiln/ca                  with agents on this machine
  kiln-lb --listen 0.0.0.0:8080 --link-listen 0.0.0.0:8082 --ca-dir /etc/kiln/ca

Whoever reaches the port can deploy functions; put a firewall before it. SIGTERM lets calls under way end."
)]
struct BalancerArgs {
    /// Address of the API and of calls
    #[arg(long, env = "KILN_LB_LISTEN", value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    #[command(flatten)]
    link: LinkArgs,
    /// Folder of the database and of this balancer's identity
    #[arg(long, env = "KILN_LB_DATA_DIR", value_name = "FOLDER", default_value = "/var/lib/kiln-lb")]
    data_dir: PathBuf,
    #[command(flatten)]
    edge: EdgeArgs,
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    fleet: FleetArgs,
}

fn main() -> ExitCode {
    let args = BalancerArgs::parse();
    program::run("kiln-lb", serve(args))
}

async fn serve(args: BalancerArgs) -> Result<()> {
    args.log.start()?;
    let fleet = args.fleet.settings()?;
    let folder = DataFolder::open(&args.data_dir)?;
    let link = args.link.prepare(&folder)?;
    let link_address = link.address()?;
    let prepared = prepare(args.edge, fleet, args.listen, &folder).await?;
    let forwarder = Forwarder::remote(link.credentials(), PoolConfig::default());
    let balancer = prepared.serve([], forwarder, Some(link)).await?;
    let stop = stop_on_signals()?;
    let address = balancer.address();
    tracing::info!(%address, %link_address, "the balancer takes calls; stop it with SIGTERM");

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
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory as _;
        BalancerArgs::command().debug_assert();
    }
}
