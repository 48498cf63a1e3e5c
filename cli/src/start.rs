//! `kiln start`: edge, API and agent in one process.
//!
//! Owns the options and the composition. Detaching, the pid file and the env file are done before [`run`] is called
//! (see [`crate::daemon`]); [`run`] serves until it is told to stop.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use kiln_agent::node::NodeArgs;
use kiln_lb::balancer::EdgeArgs;
use kiln_shared::listen::Drained;
use kiln_shared::program::{LogArgs, stop_on_signals};

use crate::contexts::kiln_home;
use crate::single_node;

/// `kiln start`
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  kiln start                          in the foreground; stop it with Ctrl-C
  kiln start --detach                 in the background; stop it with `kiln stop`
  kiln start --listen 0.0.0.0         reachable from other machines

Whoever reaches the port can deploy and call functions; keep it to this machine or put a firewall before it.")]
pub struct StartArgs {
    /// Port of the API and of calls
    #[arg(long, short, env = "FN_PORT", default_value_t = 8080)]
    pub port: u16,
    /// Address to listen on; 0.0.0.0 for all of this machine's
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub listen: IpAddr,
    /// Folder of the database, queue and logs [default: ~/.kiln/data]
    #[arg(long, env = "KILN_DATA_DIR", value_name = "FOLDER")]
    pub data_dir: Option<PathBuf>,
    /// Run in the background; returns when calls are taken
    #[arg(long, short)]
    pub detach: bool,
    /// Kiln's own log
    #[command(flatten)]
    pub log: LogArgs,
    /// File of NAME=VALUE lines that are put into the environment first
    #[arg(long, value_name = "FILE")]
    pub env_file: Option<PathBuf>,
    /// What functions may use
    #[command(flatten)]
    pub node: NodeArgs,
    /// What callers may do
    #[command(flatten)]
    pub edge: EdgeArgs,
}

impl StartArgs {
    /// Where to listen.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.listen, self.port)
    }

    /// Where this machine's programs reach it.
    pub fn url(&self) -> String {
        let host = match self.listen {
            IpAddr::V4(address) if address.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(address) if address.is_unspecified() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
            address => address,
        };
        format!("http://{}", SocketAddr::new(host, self.port))
    }

    /// The data folder, given or default.
    pub fn data_folder(&self) -> Result<PathBuf> {
        data_folder(self.data_dir.as_deref())
    }
}

/// The data folder that was given, else `~/.kiln/data`.
pub fn data_folder(given: Option<&std::path::Path>) -> Result<PathBuf> {
    match given {
        Some(folder) => Ok(std::path::absolute(folder)?),
        None => Ok(kiln_home()?.join("data")),
    }
}

/// Serves until it is told to stop by SIGTERM or Ctrl-C. The data folder exists and is ours alone when this is
/// called.
pub fn run(args: &StartArgs) -> Result<()> {
    args.log.start()?;
    let options = single_node::Options {
        listen: args.address(),
        data_dir: args.data_folder()?,
        edge: args.edge.clone(),
        node: args.node.clone(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let stop = stop_on_signals()?;
        let drained = single_node::run(options, stop, |address| {
            tracing::info!(%address, "Kiln takes calls; stop it with Ctrl-C or `kiln stop`");
        });
        if let Drained::Forced { connections } = drained.await? {
            tracing::warn!(connections, "connections were cut");
        }
        Ok(())
    })
}
