//! Kafka: a topic of one partition is the log of operations; every process that has it open computes the queue.
//!
//! An operation that changes something is a record. What applying it to the [`Replica`] gives, in the order of the
//! topic, is the answer, the same in each process (`docs/adr/0010-kafka-as-a-command-log.md`). The topic is read without
//! group membership: there is nothing to rebalance, and nobody owns a message's changes.

mod follower;
mod image;
mod load;
mod log;
mod open;
mod place;
mod record;
mod replica;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kiln_shared::queue::{NewMessage, QueueError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use open::open;

use crate::engine::{Core, Engine, Operation, Reply};
use follower::{CatchUpError, Follower};
use log::{Log, Wait};
use record::{Given, Kind};
use replica::{Answer, Replica};
use writer::Write;

/// Longest wait for the answer to a write.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// Times that a write is repeated which an image cut in two.
const VOID_MAX: u32 = 5;
/// Pause before the topic is read again after it could not be.
const FOLLOW_PAUSE: Duration = Duration::from_millis(200);

/// The engine of a topic. Copies are the same one.
#[derive(Clone)]
pub(crate) struct Kafka {
    log: Arc<Log>,
    follower: Arc<Follower>,
    core: Arc<Core>,
    writes: mpsc::Sender<Write>,
    limits: Limits,
    is_imaging: Arc<AtomicBool>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What the URL allows.
#[derive(Debug, Clone, Copy)]
struct Limits {
    memory_bytes: u64,
    image_bytes: u64,
}

impl Engine for Kafka {
    async fn run(&self, operation: Operation) -> Result<Reply, QueueError> {
        if self.stop.is_cancelled() {
            return Err(closed());
        }
        let now = self.core.time.now_millis();
        match &operation {
            reading if reading.only_reads() => {
                self.catch_up().await?;
                return self.follower.with(|replica| replica.machine.read(reading, now));
            }
            Operation::Reserve(reserve)
                if !self.follower.with(|replica| replica.machine.has_work(reserve, now)) =>
            {
                return Ok(Reply::Reserved(Vec::new()));
            }
            Operation::Sweep => {
                self.image_if_due(now);
                if !self.follower.with(|replica| replica.machine.has_ended(now)) {
                    return Ok(Reply::Horizon(self.follower.with(|replica| replica.machine.horizon(now))));
                }
            }
            Operation::Enqueue(messages) => self.check_memory(messages)?,
            _ => {}
        }
        self.change(&operation).await
    }

    async fn tell_time(&self) -> Result<(), QueueError> {
        // The time is in the records. Whether the servers answer is to be known as well.
        self.catch_up().await
    }

    fn look_again(&self, _in_vain: u32) -> Duration {
        // What others write is read at once.
        Duration::MAX
    }

    async fn close(&self) {
        self.stop.cancel();
    }
}

impl Kafka {
    /// Writes an operation and waits for its answer.
    async fn change(&self, operation: &Operation) -> Result<Reply, QueueError> {
        let given = Given { seed: rand::random(), messages_max: self.core.messages_max() };
        for _ in 0..VOID_MAX {
            match self.write(Kind::Operation, 0, 0, record::content(operation, given)).await? {
                Answer::Operation(answer) => return answer.map(|(reply, _)| reply),
                Answer::Void => {}
                other => {
                    return Err(QueueError::Failed(format!("an operation was answered with {other:?}")));
                }
            }
        }
        Err(QueueError::Unavailable("images of the queue are written all the time".to_owned()))
    }

    /// Writes something, and waits until it is there and applied.
    async fn write(
        &self,
        kind: Kind,
        about: i64,
        piece: u32,
        content: Vec<u8>,
    ) -> Result<Answer, QueueError> {
        let (asker, answer) = oneshot::channel();
        let written = async {
            let write = Write { kind, about, piece, content, asker };
            self.writes.send(write).await.map_err(|_| closed())?;
            answer.await.unwrap_or_else(|_| Err(closed()))
        };
        let late = || QueueError::Unavailable(format!("its servers did not answer within {ANSWER_MAX:?}"));
        timeout(ANSWER_MAX, written).await.unwrap_or_else(|_| Err(late()))
    }

    async fn catch_up(&self) -> Result<(), QueueError> {
        Ok(self.follower.catch_up(&self.log).await?)
    }

    /// Refuses messages for which there is no memory. What tells an end is taken: it makes room.
    fn check_memory(&self, messages: &[NewMessage]) -> Result<(), QueueError> {
        if messages.iter().all(|message| message.tells_an_end) {
            return Ok(());
        }
        let new: usize =
            messages.iter().map(|message| message.payload.len() + message.envelope.get().len()).sum();
        let held = self.follower.with(|replica| replica.machine.held_bytes());
        if held + new as u64 > self.limits.memory_bytes {
            let mib = self.limits.memory_bytes >> 20;
            return Err(QueueError::Unavailable(format!(
                "its messages use up the {mib} MiB of memory that each process has for them; wait until some are done, \
                 or raise memory_mib in the queue's URL"
            )));
        }
        Ok(())
    }

    /// Begins to write an image, one at a time, if it is time for it.
    fn image_if_due(&self, now_millis: i64) {
        let is_due =
            self.follower.with(|replica| image::is_due(replica, self.limits.image_bytes, now_millis));
        if !is_due || self.is_imaging.swap(true, Ordering::AcqRel) {
            return;
        }
        let kafka = self.clone();
        self.tasks.spawn(async move {
            let written = tokio::select! {
                () = kafka.stop.cancelled() => return,
                // One that is not complete counts for nothing.
                written = image::write(&kafka) => written,
            };
            if let Err(error) = written {
                tracing::warn!(queue = kafka.log.name(), %error, "no image of the queue was written; tried again");
            }
            kafka.is_imaging.store(false, Ordering::Release);
        });
    }

    /// Applies what others write, until `stop`.
    async fn follow(self) {
        let mut told = false;
        loop {
            let followed = tokio::select! {
                () = self.stop.cancelled() => return,
                // Both are cancel-safe: what was read and not applied is read again.
                () = self.follower.doubted.notified() => {
                    self.read_anew().await;
                    continue;
                }
                followed = self.follow_once() => followed,
            };
            match followed {
                Ok(()) => told = false,
                Err(CatchUpError::Log(_)) => sleep(FOLLOW_PAUSE).await,
                Err(CatchUpError::Broken(broken)) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::error!(queue = self.log.name(), %broken, "the queue cannot be followed");
                    }
                    sleep(FOLLOW_PAUSE).await;
                }
            }
        }
    }

    async fn follow_once(&self) -> Result<(), CatchUpError> {
        let read = self.follower.read(&self.log, Wait::ForNews).await?;
        self.follower.follow(read.records.iter().map(|(offset, record)| (*offset, record.as_slice())))?;
        Ok(())
    }

    /// The server no longer has, or never had, what comes next: what it has is the queue.
    async fn read_anew(&self) {
        let own = self.follower.with(Replica::own);
        match load::load(&self.log, own).await {
            Ok(replica) => {
                let (had, has) = (self.follower.with(Replica::position), replica.position());
                tracing::error!(
                    queue = self.log.name(),
                    had,
                    has,
                    "the topic has lost records that were acknowledged, or deleted what was not read yet: it is read anew"
                );
                self.follower.replace(replica);
            }
            Err(error) => {
                tracing::error!(queue = self.log.name(), %error, "the topic cannot be read anew; tried again");
                sleep(FOLLOW_PAUSE).await;
                self.follower.doubted.notify_one();
            }
        }
    }
}

fn closed() -> QueueError {
    QueueError::Unavailable("it was closed".to_owned())
}

impl fmt::Debug for Kafka {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.log.name())
    }
}
