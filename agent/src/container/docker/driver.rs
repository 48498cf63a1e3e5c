//! The driver as the slots see it: connects, hands out containers, closes.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_shared::call::Failure;
use kiln_shared::ids::NodeId;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::config::{DockerConfig, IOFS_PATH_BYTES_MAX};
use super::engine::{self, Engine, EngineError, explain};
use super::exits::{Exits, watch_exits};
use super::labels::Identity;
use super::network::Network;
use super::reaper::Reaper;
use super::sandbox::{SandboxMaker, SandboxPool};
use super::{leftovers, start};
use crate::container::iofs::{self, Backing, SocketDirectory};
use crate::container::{Container, ContainerPlan, Driver, DriverFuture};
use crate::image::{ImageStore, ImageStoreConfig};

/// How long to wait for the lock of the socket root: another node of this machine may be clearing up what this one left,
/// and the engine takes its time to remove containers.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_INTERVAL: Duration = Duration::from_millis(50);

/// Why the driver cannot work.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The socket root's path.
    #[error(
        "the socket directory {path} is {length} bytes long; choose one of at most {IOFS_PATH_BYTES_MAX}, so that \
         the sockets' paths fit into what the kernel allows"
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// The socket root cannot be made.
    #[error("cannot use {path} for the functions' sockets; choose a directory this user may write")]
    SocketRoot {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another driver uses the socket root.
    #[error(
        "another agent of this machine uses {path}; stop it, or give this one its own directory and node name"
    )]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Another agent has this node's name.
    #[error(
        "another agent of this machine is called {node}, with its sockets in {path}; give this one a data folder and a name of its own"
    )]
    SameNode {
        /// The name.
        node: NodeId,
        /// The other one's sockets.
        path: PathBuf,
    },
    /// What an earlier life left cannot be removed.
    #[error(
        "cannot remove the containers that an earlier run left: {cause}; remove them with: docker rm -f $(docker ps -aq --filter label={label})"
    )]
    Leftovers {
        /// The engine's words.
        cause: String,
        /// The label of what is to be removed.
        label: String,
    },
}

/// What every start needs.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: DockerConfig,
    pub(super) backing: Backing,
    pub(super) identity: Identity,
    pub(super) engine: Engine,
    pub(super) images: Arc<ImageStore>,
    pub(super) exits: Arc<Exits>,
    pub(super) reaper: Arc<Reaper>,
    pub(super) network: Arc<Network>,
    pub(super) sandboxes: Arc<SandboxPool>,
    /// Starts, output pumps, the exit watch and the looks for stragglers.
    pub(super) tasks: TaskTracker,
    pub(super) runtime: Handle,
    pub(super) stop: CancellationToken,
}

/// Makes containers through the Docker engine.
pub struct DockerDriver {
    shared: Arc<Shared>,
    /// Held for as long as the driver lives: one driver per socket root.
    _lock: File,
    _stop: DropGuard,
}

impl fmt::Debug for DockerDriver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DockerDriver")
            .field("node", &self.shared.identity.node)
            .finish_non_exhaustive()
    }
}

impl DockerDriver {
    /// Connects to the engine and removes what an earlier life of this node left behind. The driver's work runs
    /// on the current runtime, whoever asks for it.
    ///
    /// # Errors
    /// When the engine does not answer, when the socket directory cannot be used, or when leftovers stay.
    pub async fn connect(config: DockerConfig) -> Result<Self, ConnectError> {
        engine::describe_metrics();
        let lock = claim_socket_root(&config).await?;
        let (engine, version) = Engine::connect(&config.host).await?;
        let identity = Identity::new(config.node.clone());
        let cannot_remove =
            |error| ConnectError::Leftovers { cause: explain(&error), label: identity.node_filter() };
        let twin = leftovers::living_twin(&engine, &identity, &config.iofs_path).await;
        if let Some(path) = twin.map_err(cannot_remove)? {
            return Err(ConnectError::SameNode { node: identity.node, path });
        }
        let removed = leftovers::remove_containers(&engine, &identity).await.map_err(cannot_remove)?;
        iofs::remove_leftovers(&config.iofs_path);
        leftovers::remove_dead_nodes(&engine, &identity).await;
        let backing = choose_backing(&config).await;
        tracing::info!(
            host = config.host,
            version = version.version,
            leftovers = removed,
            "connected to Docker"
        );

        let images = ImageStoreConfig {
            pull_timeout: config.pull_timeout,
            volumes: config.image_volumes,
            logins: config.registry_logins.clone(),
        };
        let exits = Arc::new(Exits::default());
        let reaper = Arc::new(Reaper::new(engine.clone(), Arc::clone(&exits)));
        let network = Arc::new(Network::ensure(&engine, &config, &identity).await);
        let sandboxes = Arc::new(SandboxPool::new(config.sandboxes));
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        tasks.spawn(watch_exits(
            Arc::clone(&exits),
            engine.clone(),
            identity.clone(),
            tasks.clone(),
            stop.clone(),
        ));
        tasks.spawn(leftovers::remove_stragglers(engine.clone(), identity.clone(), stop.clone()));
        if config.sandboxes > 0 {
            let maker = SandboxMaker {
                engine: engine.clone(),
                identity: identity.clone(),
                exits: Arc::clone(&exits),
                reaper: Arc::clone(&reaper),
                network: Arc::clone(&network),
                config: config.clone(),
                arch: version.arch,
            };
            tasks.spawn(Arc::clone(&sandboxes).refill(maker, stop.clone()));
        }
        let images = Arc::new(ImageStore::new(engine.clone(), images));
        tasks.spawn(stop.clone().run_until_cancelled_owned(images.watch()));
        let shared = Arc::new(Shared {
            images,
            runtime: Handle::current(),
            stop: stop.clone(),
            backing,
            config,
            identity,
            engine,
            exits,
            reaper,
            network,
            sandboxes,
            tasks,
        });
        Ok(Self { shared, _lock: lock, _stop: stop.drop_guard() })
    }
}

/// Makes the socket root and takes it for this driver alone.
async fn claim_socket_root(config: &DockerConfig) -> Result<File, ConnectError> {
    let path = &config.iofs_path;
    let length = path.as_os_str().len();
    if length > IOFS_PATH_BYTES_MAX {
        return Err(ConnectError::PathTooLong { path: path.clone(), length });
    }
    let unusable = |source| ConnectError::SocketRoot { path: path.clone(), source };
    iofs::make_root(path).map_err(unusable)?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        if let Some(lock) = iofs::lock_root(path).map_err(unusable)? {
            return Ok(lock);
        }
        if Instant::now() >= deadline {
            return Err(ConnectError::InUse { path: path.clone() });
        }
        tokio::time::sleep(LOCK_INTERVAL).await;
    }
}

/// A tmpfs for each socket directory, where it is asked for, this process may mount, and the engine sees the
/// mount: else a function's socket would be made where nobody looks.
async fn choose_backing(config: &DockerConfig) -> Backing {
    let Some(bytes) = config.iofs_tmpfs_bytes else { return Backing::Plain };
    let backing = Backing::Tmpfs { bytes };
    let probe = || SocketDirectory::create(&config.iofs_path, "probe", backing).map(drop);
    let usable = engine_shares_mounts(config).await.and_then(|()| probe());
    match usable {
        Ok(()) => backing,
        Err(error) => {
            let path = &config.iofs_path;
            tracing::info!(path = %path.display(), %error, "socket directories are plain: functions could fill the disk");
            Backing::Plain
        }
    }
}

/// Fails unless the engine runs in this process's mount namespace.
async fn engine_shares_mounts(config: &DockerConfig) -> io::Result<()> {
    let Some(socket) = config.host.strip_prefix("unix://").filter(|_| config.iofs_engine_path.is_none())
    else {
        return Err(io::Error::other("the engine is elsewhere"));
    };
    let engine = tokio::net::UnixStream::connect(socket).await?.peer_cred()?.pid();
    let engine = engine.ok_or_else(|| io::Error::other("the engine's process is not known"))?;
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/mnt"));
    if namespace(&engine.to_string())? == namespace("self")? {
        Ok(())
    } else {
        Err(io::Error::other("the engine has its own mounts"))
    }
}

impl Driver for DockerDriver {
    fn ensure_image<'a>(&'a self, image: &'a str) -> DriverFuture<'a, ()> {
        Box::pin(async move { self.shared.images.ensure(image).await.map(drop) })
    }

    fn images(&self) -> watch::Receiver<Arc<[Arc<str>]>> {
        self.shared.images.present()
    }

    fn start(&self, plan: ContainerPlan) -> DriverFuture<'_, Container> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let caller = CancellationToken::new();
            // In a task of its own: a create that is under way must be seen through, or its container is lost.
            let task = shared
                .tasks
                .spawn_on(start::start(Arc::clone(&shared), plan, caller.clone()), &shared.runtime);
            let _leaving = caller.drop_guard();
            task.await
                .unwrap_or_else(|error| Err(Failure::internal(format!("a container's start broke: {error}"))))
        })
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            let shared = &self.shared;
            let limit = shared.config.close_timeout;
            shared.stop.cancel();
            shared.sandboxes.close();
            shared.tasks.close();
            shared.reaper.finish(limit).await;
            // A start or a sandbox that was under way ends in the reaper's hands.
            if tokio::time::timeout(limit, shared.tasks.wait()).await.is_ok() {
                shared.reaper.finish(limit).await;
            }
            shared.network.remove(&shared.engine).await;
        })
    }
}
