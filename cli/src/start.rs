//! `kiln start`: edge, API and agent in one process.
//!
//! Owns the options and the composition. Detaching, the pid file and the env file are done before [`run`] is called
//! (see [`crate::daemon`]); [`run`] serves until it is told to stop.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use kiln_lb::edge::Drained;
use kiln_shared::telemetry;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

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
    /// Form of Kiln's own log
    #[arg(long, env = "FN_LOG_FORMAT", value_enum, value_name = "FORMAT", default_value_t)]
    pub log_format: LogFormat,
    /// What is logged: error, warn, info, debug or trace, also per module as in info,kiln_agent=debug
    #[arg(long, env = "FN_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
    /// File of NAME=VALUE lines that are put into the environment first
    #[arg(long, value_name = "FILE")]
    pub env_file: Option<PathBuf>,
    /// Memory for containers in MiB [default: what the machine has available, less a tenth]
    #[arg(long, env = "KILN_MEMORY_MIB", value_name = "MIB")]
    pub memory_mib: Option<u64>,
    /// Address of the Docker engine [default: unix:///var/run/docker.sock]
    #[arg(long, env = "DOCKER_HOST", value_name = "URL")]
    pub docker_host: Option<String>,
    /// Base of the endpoints that functions and triggers show [default: the host that a request names]
    #[arg(long, env = "FN_PUBLIC_LB_URL", value_name = "URL")]
    pub public_url: Option<String>,
    /// Largest request body of a call in bytes; 0 is no limit
    #[arg(long, env = "FN_MAX_REQUEST_SIZE", value_name = "BYTES", default_value_t = 0)]
    pub request_bytes_max: u64,
    /// Largest answer of a function in bytes; 0 is no limit
    #[arg(long, env = "FN_MAX_RESPONSE_SIZE", value_name = "BYTES", default_value_t = 0)]
    pub response_bytes_max: u64,
    /// Callers of functions must show this token (Authorization: Bearer) [default: none is asked for]
    #[arg(long, env = "KILN_CALL_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Seconds that calls under way may take to end when Kiln stops
    #[arg(long, env = "KILN_GRACE_SECONDS", value_name = "SECONDS", default_value_t = 30)]
    pub grace_seconds: u64,
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
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
    let format = match args.log_format {
        LogFormat::Text => telemetry::LogFormat::Text,
        LogFormat::Json => telemetry::LogFormat::Json,
    };
    telemetry::start_logs(format, &args.log_level)?;
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let options = single_node::Options {
        listen: args.address(),
        data_dir: args.data_folder()?,
        workers,
        memory_mib: args.memory_mib,
        docker_host: args.docker_host.clone(),
        public_url: args.public_url.clone(),
        request_bytes_max: args.request_bytes_max,
        response_bytes_max: args.response_bytes_max,
        token: args.token.clone(),
        grace: Duration::from_secs(args.grace_seconds),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let signalled = stop.clone();
        let signals = async move {
            // Both are cancel-safe; either ends Kiln.
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            signalled.cancel();
            std::future::pending::<()>().await;
        };
        let serve = single_node::run(options, stop, |address| {
            tracing::info!(%address, "Kiln takes calls; stop it with Ctrl-C or `kiln stop`");
        });
        let drained = tokio::select! {
            served = serve => served?,
            () = signals => unreachable!("the signals' task never ends"),
        };
        if let Drained::Forced { connections } = drained {
            tracing::warn!(connections, "connections were cut");
        }
        Ok(())
    })
}
