//! The one task that writes: what waits while a commit is under way is committed together, by the next one.

use std::sync::Arc;

use kiln_shared::queue::{NewMessage, QueueError};
use sqlx::{Connection, SqliteConnection};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::checkpoint::{self, Log, checkpoint};
use super::session::SqliteSession;
use super::{closed, failure, refusal};
use crate::engine::{Core, Effect, Operation, Reply};
use crate::sql::{self, Done, Fault};

/// Most operations in one commit.
const GROUP_MAX: usize = 256;
/// An enqueue of more bytes than this ends its group, so that a commit of large payloads stays short.
const GROUP_BYTES_MAX: usize = 8 << 20;

/// An operation and where its answer goes.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) operation: Operation,
    pub(super) answer: oneshot::Sender<Result<Reply, QueueError>>,
}

type Answer = Result<Reply, QueueError>;

/// Serves requests until `stop`, and those that came before it. The other connection moves changes from the log.
pub(super) async fn write(
    connection: SqliteConnection,
    mover: SqliteConnection,
    core: Arc<Core>,
    requests: mpsc::Receiver<Request>,
    stop: CancellationToken,
) {
    let (log, written) = (Log::default(), CancellationToken::new());
    let serve = async {
        serve(connection, &log, core, requests, stop).await;
        written.cancel();
    };
    tokio::join!(serve, checkpoint::run(mover, &log, &written));
}

async fn serve(
    mut connection: SqliteConnection,
    log: &Log,
    core: Arc<Core>,
    mut requests: mpsc::Receiver<Request>,
    stop: CancellationToken,
) {
    let mut group = Vec::new();
    loop {
        tokio::select! {
            // Cancel-safe: nothing is taken unless it is returned.
            first = requests.recv() => match first {
                Some(first) => group.push(first),
                None => break,
            },
            () = stop.cancelled(), if !requests.is_closed() => {
                requests.close();
                continue;
            }
        }
        fill(&mut group, &mut requests);
        let (operations, answers): (Vec<_>, Vec<_>) =
            group.drain(..).map(|Request { operation, answer }| (operation, answer)).unzip();
        if log.is_long()
            && let Err(error) = checkpoint(&mut connection).await
        {
            tracing::debug!(%error, "the queue's log stays long");
        }
        // Callers who gave up waiting have no use for their answers.
        match commit(&mut connection, &core, &operations).await {
            Ok(outcomes) => {
                log.committed(&operations);
                for (outcome, answer) in outcomes.into_iter().zip(answers) {
                    drop(answer.send(outcome));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the queue's file could not be written");
                for answer in answers {
                    drop(answer.send(Err(error.clone())));
                }
            }
        }
    }
    while let Ok(Request { answer, .. }) = requests.try_recv() {
        drop(answer.send(Err(closed())));
    }
    if let Err(error) = connection.close().await {
        tracing::warn!(%error, "the queue's file could not be closed");
    }
}

/// Takes what waits already.
fn fill(group: &mut Vec<Request>, requests: &mut mpsc::Receiver<Request>) {
    let bytes = |request: &Request| match &request.operation {
        Operation::Enqueue(messages) => messages.iter().map(|message| message.payload.len()).sum(),
        _ => 0,
    };
    let mut group_bytes: usize = group.iter().map(bytes).sum();
    while group.len() < GROUP_MAX && group_bytes < GROUP_BYTES_MAX {
        let Ok(request) = requests.try_recv() else { return };
        group_bytes += bytes(&request);
        group.push(request);
    }
}

/// Runs operations in one transaction. An error means that none was done.
async fn commit(
    connection: &mut SqliteConnection,
    core: &Core,
    operations: &[Operation],
) -> Result<Vec<Answer>, QueueError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(|error| failure(&error))?;
    let mut session = SqliteSession::new(&mut transaction);
    let (answers, effect) = run_all(&mut session, core, operations).await.map_err(|fault| refusal(&fault))?;
    transaction.commit().await.map_err(|error| failure(&error))?;
    core.tell(effect);
    Ok(answers)
}

async fn run_all(
    session: &mut SqliteSession<'_>,
    core: &Core,
    operations: &[Operation],
) -> Result<(Vec<Answer>, Effect), Fault> {
    let batches: Vec<&[NewMessage]> = operations
        .iter()
        .filter_map(|operation| match operation {
            Operation::Enqueue(messages) => Some(&messages[..]),
            _ => None,
        })
        .collect();
    // All enqueues first and as one: nobody can know that they came in another order.
    let (enqueued, mut effect) = if batches.is_empty() {
        (Vec::new(), Effect::Nothing)
    } else {
        sql::enqueue(session, core, &batches).await?
    };
    let mut enqueued = enqueued.into_iter();
    let mut answers = Vec::with_capacity(operations.len());
    for operation in operations {
        answers.push(match operation {
            Operation::Enqueue(_) => enqueued.next().expect("one answer for each batch").map(Reply::Enqueued),
            other => match sql::run(session, core, other).await {
                Ok(Done { reply, effect: more }) => {
                    effect = effect.and(more);
                    Ok(reply)
                }
                Err(Fault::Refused(refusal)) => Err(refusal),
                Err(fault) => return Err(fault),
            },
        });
    }
    Ok((answers, effect))
}
