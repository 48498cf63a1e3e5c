//! Shipping: what functions write, line by line, to the syslog sinks of their apps (ADR 0012).
//!
//! Handing over a line is a copy into memory; it never waits and never fails a call. Each sink has one owner task
//! (`sink.rs`), which writes to it, keeps what may not have arrived (`window.rs`), and moves what waits to disk (`spool/`)
//! while the sink is away. What finds no room is dropped and counted.

mod connection;
mod lines;
mod message;
mod options;
mod platform;
mod queue;
mod sink;
mod spool;
mod status;
mod tls;
mod window;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiln_shared::function::FunctionSpec;
use kiln_shared::syslog::{Target, targets};
use kiln_shared::telemetry::TelemetryError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use xxhash_rust::xxh3::xxh3_64;

pub(crate) use self::lines::Tap;
pub use self::options::{SyslogArgs, SyslogConfig};
pub use self::spool::Fsync;
pub use self::tls::CaFileError;

use self::connection::DATAGRAM_BYTES_MAX;
use self::lines::Origin;
use self::queue::Queue;
use self::sink::Sink;
use self::spool::Room;
use self::tls::Authorities;

/// Most sinks that an agent has at a time.
const SINKS_MAX: usize = 256;
/// The file in a spool's folder that tells whose it is.
const URL_FILE: &str = "url";

/// Why shipping cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// See [`CaFileError`].
    #[error(transparent)]
    CaFile(#[from] CaFileError),
    /// The folder of spools cannot be used.
    #[error("cannot use the folder of syslog spools {}: {problem}", folder.display())]
    Folder {
        /// Where it is.
        folder: PathBuf,
        /// What the system says.
        problem: io::Error,
    },
    /// See [`TelemetryError`].
    #[error(transparent)]
    Platform(#[from] TelemetryError),
}

/// The way to syslog. Cheap to clone; the default ships nothing.
#[derive(Debug, Clone, Default)]
pub struct Shipping {
    shared: Option<Arc<Shared>>,
}

struct Shared {
    config: SyslogConfig,
    origin: Arc<Origin>,
    authorities: Authorities,
    room: Arc<Room>,
    sinks: Mutex<HashMap<Target, Arc<Queue>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shared").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Shipping {
    /// Starts shipping for this node, and sends what an earlier life left in the spools. Needs a runtime. Reads a few small
    /// files.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(config: SyslogConfig, node: &str) -> Result<Self, StartError> {
        let authorities = Authorities::new(config.ca_file.as_deref())?;
        let host = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
        let shared = Arc::new(Shared {
            origin: Arc::new(Origin { host, node: node.to_owned() }),
            authorities,
            room: Room::new(config.spool_bytes_max),
            sinks: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            config,
        });
        let left = left_behind(&shared.config.folder).map_err(|problem| {
            let folder = shared.config.folder.clone();
            StartError::Folder { folder, problem }
        })?;
        for target in left {
            shared.queue(&target);
        }
        if !shared.config.platform.is_empty() {
            let queues = shared.config.platform.iter().filter_map(|target| shared.queue(target)).collect();
            platform::relay(&shared.origin, queues)?;
        }
        Ok(Self { shared: Some(shared) })
    }

    /// The way of one container's output; none if its app's logs are sent nowhere.
    pub(crate) fn tap(&self, spec: &FunctionSpec) -> Option<Tap> {
        let shared = self.shared.as_ref()?;
        let own = spec.syslog_url.as_deref().map(targets).transpose();
        let own = own.inspect_err(|error| {
            tracing::warn!(app = %spec.app_name, %error, "the app's logs go to the sinks of all apps");
        });
        let own = own.ok().flatten();
        let targets = own.as_ref().unwrap_or(&shared.config.targets);
        let queues: Vec<_> = targets.iter().filter_map(|target| shared.queue(target)).collect();
        if queues.is_empty() {
            return None;
        }
        let network = targets.iter().any(|target| matches!(target, Target::Udp(_)));
        let bytes_max = shared.config.message_bytes_max;
        let bytes_max = if network { bytes_max.min(DATAGRAM_BYTES_MAX) } else { bytes_max };
        Some(Tap::new(Arc::clone(&shared.origin), spec, queues, bytes_max))
    }

    /// Sends what there is, for a few seconds, and spools the rest. Call it when nothing writes any more.
    pub async fn close(&self) {
        let Some(shared) = &self.shared else { return };
        shared.stop.cancel();
        shared.tasks.close();
        shared.tasks.wait().await;
    }
}

impl Shared {
    fn sinks(&self) -> MutexGuard<'_, HashMap<Target, Arc<Queue>>> {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The memory before a sink, whose task is started if it does not run. None if there are too many.
    fn queue(self: &Arc<Self>, target: &Target) -> Option<Arc<Queue>> {
        let mut sinks = self.sinks();
        if let Some(queue) = sinks.get(target) {
            return Some(Arc::clone(queue));
        }
        if sinks.len() >= SINKS_MAX {
            tracing::warn!(sink = %target, "nothing is sent to this syslog sink: there are {SINKS_MAX} others");
            return None;
        }
        let queue = Arc::new(Queue::new(self.config.memory_bytes_max));
        sinks.insert(target.clone(), Arc::clone(&queue));
        let folder = (self.config.spool_bytes_max > 0).then(|| folder_of(&self.config.folder, target));
        let sink = Sink::new(target.clone(), Arc::clone(&queue), Arc::clone(self), folder);
        self.tasks.spawn(sink.run());
        Some(queue)
    }

    /// Forgets a sink, if nobody but its task has its queue, and nothing is in it.
    fn forget(&self, target: &Target, queue: &Arc<Queue>) -> bool {
        let mut sinks = self.sinks();
        // Ours and the task's. Nobody gets another one while the sinks are locked.
        let unused = Arc::strong_count(queue) == 2 && queue.bytes() == 0;
        if unused {
            sinks.remove(target);
        }
        unused
    }
}

/// Where a sink's spool is.
fn folder_of(folder: &Path, target: &Target) -> PathBuf {
    folder.join(format!("{:016x}", xxh3_64(target.to_string().as_bytes())))
}

/// Sinks that have a spool. What is no spool is passed over.
fn left_behind(folder: &Path) -> io::Result<Vec<Target>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let url = std::fs::read_to_string(entry?.path().join(URL_FILE)).unwrap_or_default();
        found.extend(url.parse());
    }
    Ok(found)
}
