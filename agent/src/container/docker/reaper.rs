//! Ends containers: killed at once, removed off the critical path.
//!
//! Owns every container whose control was dropped, until the engine says that it is gone. Killing is quick and
//! gets its own places; removal takes the engine some 40-90 ms of work and is limited, so that it does not
//! hold up starts. While the engine is down, it tries again.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::engine::{Engine, explain, status};
use super::exits::Exits;

/// Kills under way at once.
const KILLS_MAX: usize = 8;
/// Removals under way at once.
const REMOVALS_MAX: usize = 2;
/// First and longest wait between two attempts.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What must outlive a container and goes after it: its socket directory, its sandbox.
pub(super) type Estate = Box<dyn fmt::Debug + Send + Sync>;

/// Ends containers. Its tasks are as many as there are containers to end.
#[derive(Debug)]
pub(super) struct Reaper {
    engine: Engine,
    exits: Arc<Exits>,
    runtime: Handle,
    tasks: TaskTracker,
    kills: Semaphore,
    removals: Semaphore,
    /// No more attempts after failed ones.
    give_up: CancellationToken,
}

impl Reaper {
    /// On the current runtime.
    pub(super) fn new(engine: Engine, exits: Arc<Exits>) -> Self {
        Self {
            engine,
            exits,
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
            kills: Semaphore::new(KILLS_MAX),
            removals: Semaphore::new(REMOVALS_MAX),
            give_up: CancellationToken::new(),
        }
    }

    /// Kills `name` at once and removes it, then drops `estate`. Returns immediately; for use in `drop`.
    pub(super) fn reap(self: &Arc<Self>, name: String, estate: Estate) {
        let reaper = Arc::clone(self);
        self.tasks.spawn_on(
            async move {
                reaper.end(&name).await;
                reaper.exits.forget(&name);
                drop(estate);
            },
            &self.runtime,
        );
    }

    /// Waits until everything handed over so far is gone, at most `limit`.
    pub(super) async fn finish(&self, limit: Duration) {
        self.tasks.close();
        if tokio::time::timeout(limit, self.tasks.wait()).await.is_err() {
            tracing::warn!(
                left = self.tasks.len(),
                "containers are left behind; the next start removes them"
            );
            self.give_up.cancel();
        }
    }

    async fn end(&self, name: &str) {
        {
            let _place = self.kills.acquire().await;
            // Gone (404) or not running (409) is as good; any other failure, the removal meets as well.
            if let Err(error) = self.engine.kill_container(name).await {
                tracing::debug!(name, error = explain(&error), "kill");
            }
        }
        let mut retry = RETRY_MIN;
        loop {
            let removed = {
                let _place = self.removals.acquire().await;
                self.engine.remove_container(name).await
            };
            match removed {
                Ok(()) => return,
                Err(error) if status(&error) == Some(404) => return,
                // Removal already in progress: look again soon.
                Err(error) if status(&error) == Some(409) => {}
                Err(error) => {
                    tracing::warn!(name, error = explain(&error), "cannot remove a container; trying again");
                }
            }
            tokio::select! {
                () = self.give_up.cancelled() => return,
                () = tokio::time::sleep(retry) => {}
            }
            retry = (retry * 2).min(RETRY_MAX);
        }
    }
}
