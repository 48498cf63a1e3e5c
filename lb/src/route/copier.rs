//! When the catalog's copy on disk is written: soon after a change, but seldom enough to cost little.

use std::path::PathBuf;
use std::time::Duration;

use kiln_api::DatabaseId;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::disk::{self, CopyError};
use super::table::Contents;

/// Shortest time between two writes.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Of the time of a large catalog, this share at most is spent on writing it: one in so many.
const SHARE: u32 = 20;
/// Time until the next try after a write that failed.
const RETRY_PAUSE: Duration = Duration::from_secs(30);

/// Writes the copy, one write at a time, on a thread that may block.
#[derive(Debug)]
pub(super) struct Copier {
    path: PathBuf,
    /// True if there are changes that the file does not have.
    changed: bool,
    /// The next write begins no earlier.
    next: Instant,
    writing: JoinSet<(Result<(), CopyError>, Duration)>,
}

impl Copier {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, changed: false, next: Instant::now(), writing: JoinSet::new() }
    }

    /// There is something to write.
    pub(super) fn changed(&mut self) {
        self.changed = true;
    }

    /// Waits until [`Self::write`] shall be called; for ever if nothing changes. Cancel-safe.
    pub(super) async fn due(&mut self) {
        self.written().await;
        if !self.changed {
            return std::future::pending().await;
        }
        sleep_until(self.next).await;
    }

    /// Begins to write.
    pub(super) fn write(&mut self, database: DatabaseId, contents: Contents) {
        self.changed = false;
        let path = self.path.clone();
        self.writing.spawn_blocking(move || {
            let begin = Instant::now();
            (disk::write(&path, &database, &contents), begin.elapsed())
        });
    }

    /// Waits for a write that is under way. Cancel-safe.
    async fn written(&mut self) {
        while let Some(ended) = self.writing.join_next().await {
            match ended {
                Ok((Ok(()), took)) => self.next = Instant::now() + PAUSE_MIN.max(took * SHARE),
                Ok((Err(error), _)) => {
                    tracing::warn!(%error, "the catalog's copy on disk cannot be written");
                    self.changed = true;
                    self.next = Instant::now() + RETRY_PAUSE;
                }
                Err(error) => tracing::error!(%error, "writing the catalog's copy on disk failed"),
            }
        }
    }

    /// Writes what is not written yet, for the last time.
    pub(super) async fn finish(&mut self, last: impl FnOnce() -> (DatabaseId, Contents)) {
        self.written().await;
        if self.changed {
            let (database, contents) = last();
            self.write(database, contents);
            self.written().await;
        }
    }
}
