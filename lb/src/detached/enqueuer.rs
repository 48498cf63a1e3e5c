//! The way of messages into the queue: what the edge's threads hand over is stored in batches by tasks of the
//! process' main runtime, on which the queue's connections live.

use std::sync::Arc;
use std::time::Instant;

use kiln_shared::queue::{Enqueued, NewMessage, Queue, QueueError};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Messages that may wait to be stored, beside those that are being stored.
const WAITING_MAX: usize = 4096;
/// Most messages that are stored together.
const BATCH_MAX: usize = 256;
/// Most bytes that are stored together; a larger message goes alone.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// Most batches that are being stored at a time.
const BATCHES_MAX: usize = 8;

type Answer = Result<Enqueued, QueueError>;

struct Job {
    message: NewMessage,
    answer: oneshot::Sender<Answer>,
}

/// Hands messages over. Cheap to clone, and usable on every runtime.
#[derive(Debug, Clone)]
pub struct Enqueuer {
    jobs: mpsc::Sender<Job>,
}

/// Stores what is handed over.
pub struct EnqueueTask {
    jobs: mpsc::Receiver<Job>,
    queue: Arc<dyn Queue>,
}

impl std::fmt::Debug for EnqueueTask {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("EnqueueTask").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl Enqueuer {
    /// A way into `queue`; the task is to be run where the queue lives.
    pub fn new(queue: Arc<dyn Queue>) -> (Self, EnqueueTask) {
        let (sender, jobs) = mpsc::channel(WAITING_MAX);
        (Self { jobs: sender }, EnqueueTask { jobs, queue })
    }

    /// Stores a message; durable when this answers.
    ///
    /// # Errors
    /// As [`Queue::enqueue`]; [`QueueError::Unavailable`] also if too many wait to be stored, or the process stops.
    pub async fn enqueue(&self, message: NewMessage) -> Answer {
        let begun = Instant::now();
        let stored = self.hand_over(message).await;
        let outcome = match &stored {
            Ok(Enqueued::New(_)) => "new",
            Ok(Enqueued::Known(_)) => "known",
            Err(QueueError::Full { .. }) => "full",
            Err(QueueError::Unavailable(_)) => "unavailable",
            Err(QueueError::TooLarge { .. } | QueueError::Invalid(_)) => "invalid",
            Err(QueueError::Failed(_)) => "failed",
        };
        metrics::counter!("kiln_queue_enqueued_total", "outcome" => outcome).increment(1);
        metrics::histogram!("kiln_queue_enqueue_duration_seconds").record(begun.elapsed());
        stored
    }

    async fn hand_over(&self, message: NewMessage) -> Answer {
        NewMessage::check(std::slice::from_ref(&message))?;
        let (answer, answered) = oneshot::channel();
        self.jobs.try_send(Job { message, answer }).map_err(|refused| {
            QueueError::Unavailable(match refused {
                mpsc::error::TrySendError::Full(_) => format!("{WAITING_MAX} messages wait to be stored"),
                mpsc::error::TrySendError::Closed(_) => "this balancer stops".to_owned(),
            })
        })?;
        answered
            .await
            .unwrap_or_else(|_dropped| Err(QueueError::Unavailable("this balancer stops".to_owned())))
    }
}

impl EnqueueTask {
    /// Stores batches until `stop`, and then what has been handed over before.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut storing = JoinSet::new();
        let mut next = None;
        loop {
            while storing.len() >= BATCHES_MAX {
                storing.join_next().await;
            }
            if next.is_none() {
                next = tokio::select! {
                    biased;
                    job = self.jobs.recv() => job,
                    () = stop.cancelled(), if !self.jobs.is_closed() => {
                        self.jobs.close();
                        continue;
                    }
                };
            }
            let Some(first) = next.take() else { break };
            let mut bytes = first.message.payload.len();
            let mut batch = vec![first];
            while batch.len() < BATCH_MAX
                && let Ok(job) = self.jobs.try_recv()
            {
                bytes += job.message.payload.len();
                if bytes > BATCH_BYTES_MAX {
                    next = Some(job);
                    break;
                }
                batch.push(job);
            }
            storing.spawn(store(Arc::clone(&self.queue), batch));
            while storing.try_join_next().is_some() {}
        }
        while storing.join_next().await.is_some() {}
    }
}

async fn store(queue: Arc<dyn Queue>, batch: Vec<Job>) {
    let (messages, answers): (Vec<_>, Vec<_>) =
        batch.into_iter().map(|job| (job.message, job.answer)).unzip();
    let stored = queue.enqueue(messages).await;
    for (at, answer) in answers.into_iter().enumerate() {
        let stored = match &stored {
            Ok(stored) => Ok(stored[at]),
            Err(error) => Err(error.clone()),
        };
        // A caller who went away has no use for the answer; the message is stored.
        drop(answer.send(stored));
    }
}
