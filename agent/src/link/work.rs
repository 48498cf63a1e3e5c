//! A linked balancer as a source of queued work.

use std::future::Future;
use std::time::Duration;

use kiln_shared::link::frame::{MessageReader, write_message};
use kiln_shared::link::message::Opening;
use kiln_shared::link::work::{WORK_BYTES_MAX, WorkAnswer, WorkAsk, read_work, write_finish};
use kiln_shared::queue::{
    Finished, Held, QueueError, QueueFuture, Receipt, Reserve, Settled, Work, WorkSource,
};
use quinn::{Connection, RecvStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Longest time for an answer to a question that the balancer need not wait with, and beyond the wait of one that it may.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Work from the balancer at the other end of a connection.
#[derive(Debug)]
pub(super) struct LinkedQueue<'a>(pub(super) &'a Connection);

type Answered = (WorkAnswer, MessageReader<RecvStream>);

impl LinkedQueue<'_> {
    async fn take(
        &self,
        reserve: Reserve,
        wait: Duration,
        enough: CancellationToken,
    ) -> Result<Vec<Work>, QueueError> {
        let asked = async {
            let (mut writer, reader) = self.0.open_bi().await.map_err(broken)?;
            let question = WorkAsk::Take { reserve, wait };
            write_message(&mut writer, &Opening::Work(question)).await.map_err(broken)?;
            let mut answer = Box::pin(answered(reader));
            let (answer, mut reader) = tokio::select! {
                answer = &mut answer => answer?,
                () = enough.cancelled() => {
                    // Tells the balancer to wait no longer.
                    writer.finish().map_err(broken)?;
                    answer.await?
                }
            };
            match answer {
                WorkAnswer::Work { functions, messages } => {
                    read_work(functions, messages, &mut reader).await.map_err(broken)
                }
                other => Err(refusal(other)),
            }
        };
        in_time(wait + ANSWER_TIMEOUT, asked).await
    }

    async fn finish(&self, finished: Vec<Finished>) -> Result<Vec<Settled>, QueueError> {
        let asked = async {
            let (mut writer, reader) = self.0.open_bi().await.map_err(broken)?;
            write_finish(&mut writer, &finished, Opening::Work).await.map_err(broken)?;
            answered(reader).await
        };
        match in_time(ANSWER_TIMEOUT, asked).await?.0 {
            WorkAnswer::Settled(settled) if settled.len() == finished.len() => Ok(settled),
            other => Err(refusal(other)),
        }
    }

    async fn renew(&self, receipts: Vec<Receipt>, lease: Duration) -> Result<Vec<Held>, QueueError> {
        let count = receipts.len();
        let asked = async {
            let (mut writer, reader) = self.0.open_bi().await.map_err(broken)?;
            let question = WorkAsk::Renew { receipts, lease };
            write_message(&mut writer, &Opening::Work(question)).await.map_err(broken)?;
            answered(reader).await
        };
        match in_time(ANSWER_TIMEOUT, asked).await?.0 {
            WorkAnswer::Held(held) if held.len() == count => Ok(held),
            other => Err(refusal(other)),
        }
    }
}

async fn answered(reader: RecvStream) -> Result<Answered, QueueError> {
    let mut reader = MessageReader::new(reader, WORK_BYTES_MAX);
    match reader.next().await.map_err(broken)? {
        Some(answer) => Ok((answer, reader)),
        None => Err(QueueError::Unavailable("the balancer did not answer".to_owned())),
    }
}

async fn in_time<T>(
    time: Duration,
    asked: impl Future<Output = Result<T, QueueError>>,
) -> Result<T, QueueError> {
    let silent = |_elapsed| QueueError::Unavailable("the balancer did not answer in time".to_owned());
    timeout(time, asked).await.map_err(silent)?
}

fn broken(error: impl std::fmt::Display) -> QueueError {
    QueueError::Unavailable(format!("the link to the balancer broke: {error}"))
}

fn refusal(answer: WorkAnswer) -> QueueError {
    match answer {
        WorkAnswer::Failed(error) => error,
        _ => QueueError::Failed("the balancer answered something else".to_owned()),
    }
}

impl WorkSource for LinkedQueue<'_> {
    fn take(
        &self,
        reserve: Reserve,
        wait: Duration,
        enough: CancellationToken,
    ) -> QueueFuture<'_, Vec<Work>> {
        Box::pin(LinkedQueue::take(self, reserve, wait, enough))
    }

    fn renew(&self, receipts: Vec<Receipt>, lease: Duration) -> QueueFuture<'_, Vec<Held>> {
        Box::pin(LinkedQueue::renew(self, receipts, lease))
    }

    fn finish(&self, finished: Vec<Finished>) -> QueueFuture<'_, Vec<Settled>> {
        Box::pin(LinkedQueue::finish(self, finished))
    }
}
