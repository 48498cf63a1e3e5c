//! Queued work for agents: each question is a stream of its own.

use std::time::Duration;

use kiln_shared::identity::Peer;
use kiln_shared::link::frame::{MessageReader, write_message};
use kiln_shared::link::work::{WorkAnswer, WorkAsk, read_finished, write_work};
use kiln_shared::queue::{Outcome, QueueError, Receipt, Reserve, Settlement, Work, WorkSource as _};
use quinn::{RecvStream, SendStream, VarInt};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::detached::Dispatcher;

/// Longest time for the bodies of answers to arrive, and for an answer to be taken.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(30);

/// Code of an answer that is broken off.
const NOT_GIVEN: VarInt = VarInt::from_u32(0);

/// Answers one question.
pub(super) async fn serve(
    dispatcher: Option<Dispatcher>,
    agent: Peer,
    question: WorkAsk,
    mut reader: MessageReader<RecvStream>,
    mut writer: SendStream,
) {
    let Some(dispatcher) = dispatcher else {
        let error = QueueError::Failed("this balancer has no queue".to_owned());
        return answer(&mut writer, &WorkAnswer::Failed(error)).await;
    };
    let answered = match question {
        WorkAsk::Take { reserve, wait } => {
            let reserve = Reserve { worker: agent.name().to_owned(), ..reserve };
            return take(&dispatcher, reserve, wait, reader, writer).await;
        }
        WorkAsk::Renew { receipts, lease } => dispatcher.renew(receipts, lease).await.map(WorkAnswer::Held),
        WorkAsk::Finish { ended } => {
            match timeout(TRANSFER_TIMEOUT, read_finished(ended, &mut reader)).await {
                Ok(Ok(finished)) => dispatcher.finish(finished).await.map(WorkAnswer::Settled),
                // The agent tells it again.
                Ok(Err(_)) | Err(_) => return,
            }
        }
    };
    answer(&mut writer, &answered.unwrap_or_else(WorkAnswer::Failed)).await;
}

async fn take(
    dispatcher: &Dispatcher,
    reserve: Reserve,
    wait: Duration,
    mut reader: MessageReader<RecvStream>,
    mut writer: SendStream,
) {
    let enough = CancellationToken::new();
    let mut taken = dispatcher.take(reserve, wait, enough.clone());
    let taken = tokio::select! {
        taken = &mut taken => taken,
        // The agent wants no more, or is gone; what is being taken must be waited for all the same.
        () = reader.ended() => {
            enough.cancel();
            taken.await
        }
    };
    let work = match taken {
        Ok(work) => work,
        Err(error) => return answer(&mut writer, &WorkAnswer::Failed(error)).await,
    };
    let receipts: Vec<Receipt> = work.iter().map(|work| work.message.receipt).collect();
    match give(&mut writer, &work).await {
        Given::Untaken if !receipts.is_empty() => give_back(dispatcher, receipts).await,
        // Most likely it runs. Given to somebody else, it would run twice.
        Given::Unknown => {
            tracing::debug!("work that may not have arrived comes back when its lease ends, if it did not");
        }
        Given::Untaken | Given::Taken => {}
    }
}

/// What became of work that was sent to an agent.
#[derive(Debug, PartialEq, Eq)]
enum Given {
    Taken,
    /// The agent has not read the whole answer, and never will.
    Untaken,
    /// All of it was sent, and the link broke or was silent before the agent said so.
    Unknown,
}

async fn give(writer: &mut SendStream, work: &[Work]) -> Given {
    // An answer without its end is not taken.
    let is_written = matches!(timeout(TRANSFER_TIMEOUT, write_work(writer, work)).await, Ok(Ok(())));
    if !is_written || writer.finish().is_err() {
        // It would be ended as if it were whole when the writer is dropped.
        drop(writer.reset(NOT_GIVEN));
        return Given::Untaken;
    }
    match timeout(TRANSFER_TIMEOUT, writer.stopped()).await {
        Ok(Ok(None)) => Given::Taken,
        Ok(Ok(Some(_))) => Given::Untaken,
        Ok(Err(_)) | Err(_) => Given::Unknown,
    }
}

async fn give_back(dispatcher: &Dispatcher, receipts: Vec<Receipt>) {
    let unstarted = receipts.into_iter().map(|receipt| Settlement { receipt, outcome: Outcome::Unstarted });
    if let Err(error) = dispatcher.settle_plainly(unstarted.collect()).await {
        tracing::debug!(%error, "work that did not arrive comes back when its lease ends");
    }
}

/// An answer that does not arrive is asked for again.
async fn answer(writer: &mut SendStream, answer: &WorkAnswer) {
    let given = async {
        if write_message(writer, answer).await.is_ok() && writer.finish().is_ok() {
            drop(writer.stopped().await);
        }
    };
    drop(timeout(TRANSFER_TIMEOUT, given).await);
}
