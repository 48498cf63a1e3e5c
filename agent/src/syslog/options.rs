//! Options of shipping.

#![allow(clippy::doc_markdown, reason = "documentation of options is the help text that people read")]

use std::path::{Path, PathBuf};

use clap::Args;
use kiln_shared::syslog::{Target, TargetError, targets};

use super::spool::Fsync;

/// Where logs are sent, and what may be kept for sinks that are away.
#[derive(Debug, Clone, Args)]
pub struct SyslogArgs {
    /// Where logs of apps without a syslog_url of their own are sent: URLs as in tcp+tls://host:6514, separated by commas
    #[arg(long, env = "KILN_SYSLOG_URL", value_name = "URLS", value_parser = parse)]
    pub syslog_url: Option<Sinks>,
    /// Where Kiln's own log is sent besides, from level info on
    #[arg(long, env = "KILN_SYSLOG_PLATFORM_URL", value_name = "URLS", value_parser = parse)]
    pub syslog_platform_url: Option<Sinks>,
    /// PEM file of authorities that sinks over TLS may be proved by, besides the system's
    #[arg(long, env = "KILN_SYSLOG_CA_FILE", value_name = "FILE")]
    pub syslog_ca_file: Option<PathBuf>,
    /// Longest message in bytes; longer lines come in several. To UDP at most 2048
    #[arg(long, env = "KILN_SYSLOG_MESSAGE_BYTES_MAX", value_name = "BYTES", default_value_t = 8192,
        value_parser = clap::value_parser!(u32).range(2048..=65_000))]
    pub syslog_message_bytes_max: u32,
    /// Memory for messages that wait, for each sink, in MiB
    #[arg(long, env = "KILN_SYSLOG_MEMORY_MIB", value_name = "MIB", default_value_t = 8,
        value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub syslog_memory_mib: u32,
    /// Disk for messages of sinks that are away, in MiB, half of it for one sink at most; 0 spools nothing
    #[arg(long, env = "KILN_SYSLOG_SPOOL_MIB", value_name = "MIB", default_value_t = 1024)]
    pub syslog_spool_mib: u32,
    /// When the disk is forced to keep what is spooled; matters when the machine loses power
    #[arg(long, env = "KILN_SYSLOG_SPOOL_FSYNC", value_enum, value_name = "WHEN", default_value_t)]
    pub syslog_spool_fsync: Fsync,
}

/// A list of sinks.
#[derive(Debug, Clone)]
pub struct Sinks(pub Vec<Target>);

/// An empty list, as an unset variable of a unit's settings leaves it, is none.
fn parse(list: &str) -> Result<Sinks, TargetError> {
    if list.is_empty() { Ok(Sinks(Vec::new())) } else { targets(list).map(Sinks) }
}

/// What shipping needs to know.
#[derive(Debug, Clone)]
pub struct SyslogConfig {
    /// Sinks of apps that have none of their own.
    pub targets: Vec<Target>,
    /// Sinks of Kiln's own log.
    pub platform: Vec<Target>,
    /// Authorities besides the system's, as PEM.
    pub ca_file: Option<PathBuf>,
    /// Longest message, its header included.
    pub message_bytes_max: usize,
    /// Memory before each sink.
    pub memory_bytes_max: usize,
    /// Room of all spools. Zero: none.
    pub spool_bytes_max: u64,
    /// When spools are forced to the disk.
    pub fsync: Fsync,
    /// Where spools are.
    pub folder: PathBuf,
}

impl SyslogArgs {
    /// The options resolved, with spools under the agent's data folder.
    pub fn config(&self, data_dir: &Path) -> SyslogConfig {
        let sinks = |given: &Option<Sinks>| given.clone().map(|Sinks(targets)| targets).unwrap_or_default();
        SyslogConfig {
            targets: sinks(&self.syslog_url),
            platform: sinks(&self.syslog_platform_url),
            ca_file: self.syslog_ca_file.clone(),
            message_bytes_max: self.syslog_message_bytes_max as usize,
            memory_bytes_max: (self.syslog_memory_mib as usize) << 20,
            spool_bytes_max: u64::from(self.syslog_spool_mib) << 20,
            fsync: self.syslog_spool_fsync,
            folder: data_dir.join("syslog"),
        }
    }
}
