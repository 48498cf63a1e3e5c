//! This machine as a node: its options, its name, and its agent with the Docker engine behind it.

#![allow(clippy::doc_markdown, reason = "documentation of options is the help text that people read")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::Args;
use kiln_shared::contract::Limits;
use kiln_shared::ids::{CallId, NodeId};
use kiln_shared::program::DataFolder;
use kiln_shared::record::RecordSink;

use crate::container::Driver;
use crate::container::docker::{DockerConfig, DockerDriver};
use crate::drain::{DrainConfig, Shares};
use crate::slots::SlotsConfig;
use crate::syslog::{Shipping, SyslogArgs};
use crate::{Agent, AgentConfig, capacity};

/// Longest path of a directory for sockets that still leaves room for their names (`sun_path`, unix(7)).
const SOCKET_DIR_BYTES_MAX: usize = 70;

/// What a node may use and allow.
#[derive(Debug, Clone, Args)]
pub struct NodeArgs {
    /// Memory for containers in MiB [default: what the machine has available, less a tenth]
    #[arg(long, env = "KILN_MEMORY_MIB", value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
    pub memory_mib: Option<u64>,
    /// Address of the Docker engine [default: unix:///var/run/docker.sock]
    #[arg(long, env = "DOCKER_HOST", value_name = "URL")]
    pub docker_host: Option<String>,
    /// Largest answer of a function in bytes; 0 is no limit
    #[arg(long, env = "FN_MAX_RESPONSE_SIZE", value_name = "BYTES", default_value_t = 0)]
    pub response_bytes_max: u64,
    /// Most of the memory for containers that queued (detached) calls may hold, in percent; the rest is kept for callers
    /// who wait
    #[arg(long, env = "KILN_QUEUED_MEMORY_PERCENT", value_name = "PERCENT", default_value_t = 80,
        value_parser = clap::value_parser!(u8).range(0..=100))]
    pub queued_memory_percent: u8,
    /// No container is started for queued calls while more than this part of the memory for containers is in use, in
    /// percent
    #[arg(long, env = "KILN_QUEUED_HIGH_WATER_PERCENT", value_name = "PERCENT", default_value_t = 80,
        value_parser = clap::value_parser!(u8).range(0..=100))]
    pub queued_high_water_percent: u8,
    /// While something has to wait for a processor in more than this part of the time, in percent, only idle containers
    /// get queued calls; 100 is never
    #[arg(long, env = "KILN_QUEUED_CPU_PRESSURE_PERCENT", value_name = "PERCENT", default_value_t = 50,
        value_parser = clap::value_parser!(u8).range(0..=100))]
    pub queued_cpu_pressure_percent: u8,
    /// Most queued calls that this node has at a time, those that run included
    #[arg(long, env = "KILN_QUEUED_CALLS_MAX", value_name = "CALLS", default_value_t = 256,
        value_parser = clap::value_parser!(u16).range(1..))]
    pub queued_calls_max: u16,
    /// Bodies of queued calls that this node has at a time, in MiB; it takes no more calls while they are more
    #[arg(long, env = "KILN_QUEUED_BODIES_MIB", value_name = "MIB", default_value_t = 256,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub queued_bodies_mib: u32,
    /// Where logs are sent
    #[command(flatten)]
    pub syslog: SyslogArgs,
}

/// The node's name: made on the first start and kept, so that a later life knows its own leftovers.
///
/// # Errors
/// The file that keeps it cannot be read or written.
pub fn node_id(folder: &DataFolder) -> Result<NodeId> {
    Ok(NodeId::new(folder.remembered("node-id", || CallId::generate().to_string().to_lowercase())?))
}

impl NodeArgs {
    /// How the node drains the queue.
    pub fn drain(&self) -> DrainConfig {
        let shares = Shares {
            memory_percent: self.queued_memory_percent,
            high_water_percent: self.queued_high_water_percent,
            cpu_pressure_percent: self.queued_cpu_pressure_percent,
            messages_max: usize::from(self.queued_calls_max),
            payload_bytes_max: u64::from(self.queued_bodies_mib) << 20,
        };
        DrainConfig { shares, ..DrainConfig::default() }
    }

    /// Removes what an earlier life left behind and starts the agent.
    ///
    /// # Errors
    /// The engine cannot be used, the machine's memory cannot be read, or logs cannot be shipped as the options say.
    pub async fn start(&self, folder: &DataFolder, node: NodeId, sink: RecordSink) -> Result<Agent> {
        let syslog = Shipping::start(self.syslog.config(folder.path()), node.as_str())?;
        let mut docker =
            DockerConfig::new(node.clone(), socket_dir(folder.path(), &node)).with_environment()?;
        if let Some(host) = &self.docker_host {
            docker.host.clone_from(host);
        }
        let driver: Arc<dyn Driver> = Arc::new(DockerDriver::connect(docker).await?);
        let memory_mib = match self.memory_mib {
            Some(memory_mib) => memory_mib,
            None => capacity::memory_for_containers_mib()
                .context("cannot read how much memory this machine has; say it with --memory-mib")?,
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let config = AgentConfig {
            node,
            slots: SlotsConfig::for_node(memory_mib, cores),
            limits: Limits { response_bytes_max: self.response_bytes_max, ..Limits::default() },
        };
        Ok(Agent::start_shipping(config, driver, sink, syslog))
    }
}

/// Where the functions' sockets live: with the data if the path is short enough for a socket's address.
fn socket_dir(data_dir: &Path, node: &NodeId) -> PathBuf {
    let beside = data_dir.join("iofs");
    if beside.as_os_str().len() <= SOCKET_DIR_BYTES_MAX {
        return beside;
    }
    std::env::temp_dir().join(format!("kiln-{node}"))
}
