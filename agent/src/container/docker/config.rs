//! Settings of the Docker driver, each with its unit and default.

use std::path::PathBuf;
use std::time::Duration;

use kiln_shared::ids::NodeId;

use super::engine::DEFAULT_HOST;
use crate::image::{LoginError, RegistryLogins};

/// Longest path of the socket root in bytes: with the directory and socket names it must fit into `sun_path`
/// (`spec/container-contract.md`, A2).
pub(super) const IOFS_PATH_BYTES_MAX: usize = 80;

/// What to do with images that declare a `VOLUME`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageVolumes {
    /// Refuse them: their data would not be bounded, and nothing would keep it.
    Refused,
    /// Run them; the volume is removed with the container.
    Allowed,
}

/// Settings of the Docker driver. Start from [`DockerConfig::new`] and change what differs.
#[derive(Debug, Clone)]
pub struct DockerConfig {
    /// Address of the engine, `unix:///path` or `tcp://host:port`.
    pub host: String,
    /// This node. Everything the driver makes carries it; what an earlier life of the same node left is removed.
    pub node: NodeId,
    /// Directory for the functions' sockets; owned by the driver, at most 80 bytes long, made when missing.
    pub iofs_path: PathBuf,
    /// Where the engine sees `iofs_path`, when it sees it elsewhere (agent in a container, engine outside).
    pub iofs_engine_path: Option<PathBuf>,
    /// Size of the tmpfs under each function's socket directory in bytes, so that no function can fill the
    /// node's disk through it. `None`, or an agent whose mounts the engine does not see, leaves a plain
    /// directory.
    pub iofs_tmpfs_bytes: Option<u64>,
    /// Longest time for one image pull.
    pub pull_timeout: Duration,
    /// Longest time from the start of a container until its socket is there.
    pub init_timeout: Duration,
    /// Longest time for [`close`](crate::container::Driver::close) to remove what is left.
    pub close_timeout: Duration,
    /// User and group of `http-stream` functions, `uid:gid`.
    pub user: String,
    /// Most processes and threads of one container.
    pub pids_max: u32,
    /// Most open files of one process.
    pub open_files_max: u32,
    /// Most locked memory of one process in bytes.
    pub locked_memory_bytes_max: u64,
    /// Most signals that may wait for one user.
    pub pending_signals_max: u32,
    /// Most bytes in POSIX message queues of one user.
    pub message_queue_bytes_max: u64,
    /// Size of `/tmp` in MiB for functions that do not say. It counts towards the container's memory.
    pub tmpfs_mib: u32,
    /// Network sandboxes kept ready for the next starts; each costs the node one idle shim of a few MiB.
    pub sandboxes: usize,
    /// What to do with images that declare a `VOLUME`.
    pub image_volumes: ImageVolumes,
    /// Names and passwords for registries.
    pub registry_logins: RegistryLogins,
}

impl DockerConfig {
    /// Takes up what the environment says: `DOCKER_HOST`, and the logins of `FN_DOCKER_AUTH`. Empty is unset.
    ///
    /// # Errors
    /// When `FN_DOCKER_AUTH` holds no logins.
    pub fn with_environment(self) -> Result<Self, LoginError> {
        self.with_settings(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn with_settings(mut self, setting: &dyn Fn(&str) -> Option<String>) -> Result<Self, LoginError> {
        if let Some(host) = setting("DOCKER_HOST") {
            self.host = host;
        }
        if let Some(logins) = setting("FN_DOCKER_AUTH") {
            self.registry_logins = RegistryLogins::from_json(&logins)?;
        }
        Ok(self)
    }

    /// Whether the engine runs on this machine.
    pub(super) fn engine_is_local(&self) -> bool {
        self.host.starts_with("unix://")
    }

    /// The defaults: the contract's limits (`spec/container-contract.md`, A2 and A7), the local engine, and
    /// logins from the Docker configuration of this user.
    pub fn new(node: NodeId, iofs_path: impl Into<PathBuf>) -> Self {
        Self {
            host: DEFAULT_HOST.to_owned(),
            node,
            iofs_path: iofs_path.into(),
            iofs_engine_path: None,
            iofs_tmpfs_bytes: Some(256 << 10),
            pull_timeout: Duration::from_mins(10),
            init_timeout: Duration::from_secs(5),
            close_timeout: Duration::from_secs(30),
            user: "1000:1000".to_owned(),
            pids_max: 50,
            open_files_max: 350,
            locked_memory_bytes_max: 65_536,
            pending_signals_max: 5_000,
            message_queue_bytes_max: 819_200,
            tmpfs_mib: 64,
            sandboxes: 4,
            image_volumes: ImageVolumes::Refused,
            registry_logins: RegistryLogins::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_names_engine_and_logins() {
        let config = || DockerConfig::new(NodeId::new("n"), "/run/kiln");
        assert_eq!(config().with_settings(&|_| None).unwrap().host, DEFAULT_HOST);
        let setting = |name: &str| match name {
            "DOCKER_HOST" => Some("tcp://engine:2375".to_owned()),
            "FN_DOCKER_AUTH" => Some("{\"r.io\":{\"auth\":\"YTpi\"}}".to_owned()),
            _ => None,
        };
        let set = config().with_settings(&setting).unwrap();
        assert_eq!(set.host, "tcp://engine:2375");
        assert!(format!("{:?}", set.registry_logins).contains("r.io"));
        assert!(config().with_settings(&|_| Some("nonsense".to_owned())).is_err());
    }
}
