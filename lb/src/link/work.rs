//! Queued work for agents: each question is a stream of its own.

use std::time::Duration;

use kiln_shared::identity::Peer;
use kiln_shared::link::frame::{MessageReader, write_message};
use kiln_shared::link::work::{WorkAnswer, WorkAsk, read_finished, write_work};
use kiln_shared::queue::{Outcome, QueueError, Receipt, Reserve, Settlement, WorkSource as _};
use quinn::{RecvStream, SendStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::detached::Dispatcher;

/// Longest time for the bodies of answers to arrive, and for an answer to be taken.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(30);

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
    let given = async {
        write_work(&mut writer, &work).await.is_ok()
            && writer.finish().is_ok()
            && matches!(writer.stopped().await, Ok(None))
    };
    if timeout(TRANSFER_TIMEOUT, given).await != Ok(true) && !receipts.is_empty() {
        // It did not arrive, so somebody else may have it at once; if it did after all, its end is lost.
        give_back(dispatcher, receipts).await;
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
