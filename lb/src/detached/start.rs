//! The queue of a balancer: its options, and what comes up with it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use kiln_queue::{OpenError, Options};
use kiln_shared::program::DataFolder;
use kiln_shared::queue::{PAYLOAD_BYTES_MAX, Purge, Queue};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::deliver::Deliverer;
use super::late::LateQueue;
use super::watch::watch;
use super::{Dispatcher, Enqueuer, Intake, Known};

/// How often ended messages are forgotten.
const PURGE_EVERY: Duration = Duration::from_mins(1);
/// Pause between two rounds while there are more to forget.
const PURGE_PAUSE: Duration = Duration::from_millis(50);

/// Where detached calls wait.
#[derive(Debug, Clone, Args)]
pub struct QueueArgs {
    /// Queue of detached calls; balancers that share it drain it together [default: the database of --db-url if that is a
    /// server, else queue.db in the data folder]
    #[arg(long, env = "KILN_QUEUE_URL", value_name = "URL", hide_env_values = true)]
    pub queue_url: Option<String>,
    /// Most detached calls that wait or run; further ones get 503 [default: as many as the queue holds]
    #[arg(long, env = "KILN_QUEUE_CALLS_MAX", value_name = "CALLS")]
    pub queue_calls_max: Option<u64>,
    /// Largest body of a detached call in bytes
    #[arg(long, env = "KILN_DETACHED_BODY_BYTES_MAX", value_name = "BYTES", default_value_t = 6 << 20,
        value_parser = clap::value_parser!(u64).range(0..=PAYLOAD_BYTES_MAX as u64))]
    pub detached_body_bytes_max: u64,
    /// Memory for bodies of detached calls from their arrival until they are stored, in MiB; calls beyond get 503
    #[arg(long, env = "KILN_DETACHED_MEMORY_MIB", value_name = "MIB", default_value_t = 256,
        value_parser = clap::value_parser!(u64).range(PAYLOAD_BYTES_MAX as u64 >> 20..))]
    pub detached_memory_mib: u64,
    /// Hours for which detached calls that ended are remembered, with their idempotency keys
    #[arg(long, env = "KILN_QUEUE_KEEP_HOURS", value_name = "HOURS", default_value_t = 24,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub queue_keep_hours: u32,
    /// Days for which detached calls that failed for good are kept, to be looked at and redriven
    #[arg(long, env = "KILN_QUEUE_KEEP_DEAD_DAYS", value_name = "DAYS", default_value_t = 14)]
    pub queue_keep_dead_days: u32,
}

/// A balancer's queue.
#[derive(Debug, Clone)]
pub struct Detached {
    queue: Arc<dyn Queue>,
    dispatcher: Dispatcher,
    intake: Intake,
}

impl QueueArgs {
    /// Opens the queue. A server that does not answer yet is waited for in the background.
    ///
    /// # Errors
    /// The URL cannot be used, or the queue refuses; one line with the remedy.
    pub async fn open(
        &self,
        folder: &DataFolder,
        db_url: Option<&str>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Arc<dyn Queue>> {
        let url = match (&self.queue_url, db_url) {
            (Some(url), _) => url.clone(),
            (None, Some(url)) if !url.starts_with("sqlite") => url.to_owned(),
            (None, _) => format!("sqlite://{}", folder.path().join("queue.db").display()),
        };
        let options = Options { messages_max: self.queue_calls_max, ..Options::default() };
        match kiln_queue::open(&url, options.clone()).await {
            Ok(queue) => Ok(queue),
            Err(error @ OpenError::Unreachable { .. }) => {
                tracing::error!(%error, "detached calls get 503 until the queue answers; all others are served");
                let late = Arc::new(LateQueue::new(&error));
                tasks.spawn(Arc::clone(&late).run(url, options, stop.clone()));
                Ok(late)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Starts what works with the queue, in the name of `balancer`.
    ///
    /// # Errors
    /// TLS cannot be set up for destinations.
    pub fn start(
        &self,
        queue: Arc<dyn Queue>,
        balancer: String,
        known: Known,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Detached> {
        let (enqueuer, storing) = Enqueuer::new(Arc::clone(&queue));
        tasks.spawn(storing.run(stop.clone()));
        let dispatcher = Dispatcher::new(Arc::clone(&queue), known);
        tasks.spawn(dispatcher.clone().run(stop.clone()));
        let deliverer =
            Deliverer::new(dispatcher.clone(), balancer).context("cannot set up TLS for destinations")?;
        tasks.spawn(deliverer.run(stop.clone()));
        tasks.spawn(watch(Arc::clone(&queue), dispatcher.clone(), stop.clone()));
        let purging = purge(Arc::clone(&queue), self.kept());
        tasks.spawn(stop.clone().run_until_cancelled_owned(purging));
        let intake = Intake::new(
            enqueuer,
            self.detached_body_bytes_max,
            self.detached_memory_mib.saturating_mul(1 << 20),
        );
        Ok(Detached { queue, dispatcher, intake })
    }

    fn kept(&self) -> [Purge; 2] {
        let hours = |hours: u32| Duration::from_secs(u64::from(hours) * 3600);
        [
            Purge::Finished(hours(self.queue_keep_hours)),
            Purge::Dead(hours(self.queue_keep_dead_days.saturating_mul(24))),
        ]
    }
}

impl Detached {
    /// The queue itself.
    pub fn queue(&self) -> &Arc<dyn Queue> {
        &self.queue
    }

    /// What gives work to nodes.
    pub fn dispatcher(&self) -> &Dispatcher {
        &self.dispatcher
    }

    /// What takes calls in.
    pub fn intake(&self) -> &Intake {
        &self.intake
    }
}

/// Forgets what ended long ago, now and then.
async fn purge(queue: Arc<dyn Queue>, kept: [Purge; 2]) {
    loop {
        for which in kept {
            loop {
                match queue.purge(which).await {
                    Ok(0) => break,
                    Ok(_) => tokio::time::sleep(PURGE_PAUSE).await,
                    Err(error) => {
                        tracing::debug!(%error, "cannot forget ended calls now");
                        break;
                    }
                }
            }
        }
        tokio::time::sleep(PURGE_EVERY).await;
    }
}
