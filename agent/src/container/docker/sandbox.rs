//! Network sandboxes: containers that do nothing but own a network namespace, prepared ahead of starts.
//!
//! Connecting a container to a network costs the engine more than 100 ms; joining the namespace of a sandbox
//! costs next to nothing. Each sandbox serves one function container, once: a namespace that is used again would
//! carry state from one function to the next. Owns the ready ones and their refill; when none is ready, the
//! start does not wait.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bollard::errors::Error;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::config::DockerConfig;
use super::engine::{Engine, explain};
use super::exits::Exits;
use super::labels::{self, Identity};
use super::network::Network;
use super::reaper::Reaper;
use super::{blueprint, pause};
use crate::container::Exit;

/// Least time between two sandboxes that are made: ten a second.
const REFILL_INTERVAL: Duration = Duration::from_millis(100);
/// How long the refill makes way for starts that are under way.
const COURTESY_MAX: Duration = Duration::from_millis(500);
/// First and longest wait after a failure.
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// A running sandbox; removed on drop.
#[derive(Debug)]
pub(super) struct Sandbox {
    name: String,
    exit: watch::Receiver<Option<Exit>>,
    reaper: Arc<Reaper>,
}

impl Sandbox {
    /// The engine's network mode for a container that joins it.
    pub(super) fn mode(&self) -> String {
        format!("container:{}", self.name)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.reaper.reap(std::mem::take(&mut self.name), Box::new(()));
    }
}

/// The sandboxes that wait for a function.
#[derive(Debug)]
pub(super) struct SandboxPool {
    ready: Mutex<Ready>,
    size: usize,
    starts: AtomicUsize,
    /// A start has ended: there may be room to fill.
    ended: Notify,
}

#[derive(Debug, Default)]
struct Ready {
    sandboxes: VecDeque<Sandbox>,
    closed: bool,
}

/// A start under way; while there are any, the refill makes way.
#[derive(Debug)]
pub(super) struct StartUnderWay(Arc<SandboxPool>);

impl Drop for StartUnderWay {
    fn drop(&mut self) {
        self.0.starts.fetch_sub(1, Ordering::Relaxed);
        self.0.ended.notify_one();
    }
}

/// What sandboxes are made with.
#[derive(Debug, Clone)]
pub(super) struct SandboxMaker {
    pub(super) engine: Engine,
    pub(super) identity: Identity,
    pub(super) exits: Arc<Exits>,
    pub(super) reaper: Arc<Reaper>,
    pub(super) network: Arc<Network>,
    pub(super) config: DockerConfig,
    /// Architecture of the engine.
    pub(super) arch: String,
}

impl SandboxPool {
    /// An empty pool for `size` sandboxes.
    pub(super) fn new(size: usize) -> Self {
        Self { ready: Mutex::default(), size, starts: AtomicUsize::new(0), ended: Notify::new() }
    }

    /// Announces a start.
    pub(super) fn start_begins(self: &Arc<Self>) -> StartUnderWay {
        self.starts.fetch_add(1, Ordering::Relaxed);
        StartUnderWay(Arc::clone(self))
    }

    /// A sandbox for one container, when one is ready.
    pub(super) fn take(&self) -> Option<Sandbox> {
        let mut ready = self.lock();
        // One that was killed by hand is of no use; dropping it removes it.
        std::iter::from_fn(|| ready.sandboxes.pop_front()).find(|sandbox| sandbox.exit.borrow().is_none())
    }

    /// How many are ready.
    pub(super) fn ready(&self) -> usize {
        self.lock().sandboxes.len()
    }

    /// Drops what is ready and whatever comes.
    pub(super) fn close(&self) {
        let mut ready = self.lock();
        ready.closed = true;
        ready.sandboxes.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Ready> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, sandbox: Sandbox) {
        let mut ready = self.lock();
        if !ready.closed {
            ready.sandboxes.push_back(sandbox);
        }
    }

    /// Keeps the pool full until `stop`.
    pub(super) async fn refill(self: Arc<Self>, maker: SandboxMaker, stop: CancellationToken) {
        let mut retry = RETRY_MIN;
        loop {
            if stop.run_until_cancelled(self.wanted()).await.is_none() {
                return;
            }
            // Not cut short: a create that is under way must be seen through.
            let pause = match maker.make().await {
                Ok(Some(sandbox)) => {
                    self.put(sandbox);
                    retry = RETRY_MIN;
                    REFILL_INTERVAL
                }
                Ok(None) => {
                    tracing::warn!(
                        arch = maker.arch,
                        "no network sandboxes on this architecture: slower starts"
                    );
                    return;
                }
                Err(error) => {
                    tracing::warn!(error = explain(&error), "cannot make a network sandbox");
                    retry = (retry * 2).min(RETRY_MAX);
                    retry
                }
            };
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    /// Waits until a sandbox is missing and no start is under way, or the wait for those has been long enough.
    async fn wanted(&self) {
        while self.ready() >= self.size {
            self.ended.notified().await;
        }
        let quiet = async {
            while self.starts.load(Ordering::Relaxed) > 0 {
                self.ended.notified().await;
            }
        };
        // Too long is good enough: under steady load the pool is filled all the same.
        drop(tokio::time::timeout(COURTESY_MAX, quiet).await);
    }
}

impl SandboxMaker {
    /// A running sandbox; `None` where there is no program for it. Network and image are looked after each
    /// time: somebody may have pruned them.
    async fn make(&self) -> Result<Option<Sandbox>, Error> {
        let Some(image) = pause::ensure_image(&self.engine, &self.arch).await? else { return Ok(None) };
        self.network.repair(&self.engine, &self.config, &self.identity).await?;
        let name = labels::unique_name("net");
        let body = blueprint::sandbox(&self.identity, &image, self.network.mode());
        // Before the create: whatever comes of it is removed when this is dropped.
        let exit = self.exits.register(&name);
        let sandbox = Sandbox { name, exit, reaper: Arc::clone(&self.reaper) };
        self.engine.create_container(&sandbox.name, body).await?;
        self.engine.start_container(&sandbox.name).await?;
        Ok(Some(sandbox))
    }
}
