//! Containers as the slots see them: made by a [`Driver`], ready to serve, gone when dropped.
//!
//! A driver owns how a container comes to be and how it ends. It knows nothing of calls, slots or who asked.

pub mod docker;
mod freezer;
mod iofs;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kiln_shared::call::Failure;
use kiln_shared::function::Function;
use tokio::io::AsyncWrite;
use tokio::sync::{mpsc, watch};

/// What a driver makes a container from.
#[derive(Debug, Clone)]
pub struct ContainerPlan {
    /// The function it is for: image, memory, CPU, tmpfs.
    pub function: Arc<Function>,
    /// Environment in the order of the contract; no name twice.
    pub environment: Vec<(String, String)>,
    /// How calls reach it.
    pub transport: Transport,
}

/// How calls reach a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// HTTP over the unix socket that the function makes in `/tmp/iofs` (`http-stream`).
    Socket,
    /// Frames on stdin and stdout (the formats of 2018).
    Pipes,
}

/// Which of a container's outputs wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputSource {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Who wrote it.
    pub source: OutputSource,
    /// What was written, at most 32 KiB, not aligned to lines.
    pub bytes: Bytes,
}

/// How a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Its first process ended with this code (128 + signal when killed).
    Code(i64),
    /// The kernel killed it, or a process in it, for its memory.
    OutOfMemory,
    /// It is gone and nobody knows how (removed by hand, engine restarted).
    Unknown,
}

/// How long the steps of a start took.
#[derive(Debug, Clone, Copy, Default)]
pub struct StartStages {
    /// Waiting for the image: zero when it was there.
    pub pull: Duration,
    /// Making the container.
    pub create: Duration,
    /// Starting its first process.
    pub start: Duration,
    /// From there until the socket was there (zero for pipes).
    pub init: Duration,
}

/// A container that is ready to serve. Dropping it kills and removes it.
pub struct Container {
    /// Its name at the driver.
    pub name: String,
    /// The socket to connect to; `None` for pipes.
    pub socket: Option<PathBuf>,
    /// Its standard input; `None` for sockets.
    pub stdin: Option<Pin<Box<dyn AsyncWrite + Send + Sync>>>,
    /// What it writes; ends when it ends. Bounded: a container that writes faster than it is read is slowed down.
    pub output: Option<mpsc::Receiver<Output>>,
    /// How it ended, once it has.
    pub exit: watch::Receiver<Option<Exit>>,
    /// Freezes, thaws and removes it.
    pub control: Box<dyn ContainerControl>,
    /// How long its start took.
    pub stages: StartStages,
}

impl fmt::Debug for Container {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Container").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Power over one container. Dropping it kills the container at once and removes it in the background, off
/// the critical path and limited in rate.
pub trait ContainerControl: Send + Sync {
    /// Stops every process of the container where it is. Costs tens of microseconds; does not block.
    ///
    /// # Errors
    /// If the freezer cannot be written; the container is unchanged. [`io::ErrorKind::WouldBlock`] says that it
    /// is not known yet, which passes: try again later. [`io::ErrorKind::Unsupported`] does not pass.
    fn freeze(&self) -> io::Result<()>;

    /// Lets a frozen container run on. Costs tens of microseconds; does not block.
    ///
    /// # Errors
    /// If the freezer cannot be written; the container must not be used any more.
    fn thaw(&self) -> io::Result<()>;
}

/// A start or an image under way.
pub type DriverFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 'a>>;

/// Makes containers.
pub trait Driver: Send + Sync + 'static {
    /// Makes sure that the image is on this node: pulls it when it is missing (one pull per image however many
    /// ask), and refuses images that declare a volume.
    ///
    /// # Errors
    /// The registry's message and 4xx status or 502; 504 after the pull timeout; 400 for a volume.
    fn ensure_image<'a>(&'a self, image: &'a str) -> DriverFuture<'a, ()>;

    /// References of the images that are on this node, sorted, as they change: what balancers are told. None, unless the
    /// driver knows.
    fn images(&self) -> watch::Receiver<Arc<[Arc<str>]>> {
        watch::channel(Arc::default()).1
    }

    /// Makes and starts a container and returns when it is ready: with [`Transport::Socket`] when the socket is
    /// there, with [`Transport::Pipes`] when the process runs. Dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// The contract's failures of a start (`spec/container-contract.md`, A2).
    fn start(&self, plan: ContainerPlan) -> DriverFuture<'_, Container>;

    /// Waits until everything this driver made is removed. Called once, at shutdown, after the last container
    /// was dropped.
    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}
