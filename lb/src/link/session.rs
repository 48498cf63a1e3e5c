//! The state of one agent, as it is told.

use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use kiln_shared::identity::Peer;
use kiln_shared::link::STATE_BYTES_MAX;
use kiln_shared::link::frame::{MessageReader, ReadError, write_message};
use kiln_shared::link::message::{AgentMessage, BalancerMessage, Hello, Refused};
use kiln_shared::report::ReportScope;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::watch;
use tokio::time::timeout;

use super::{LinkServer, admit};
use crate::nodes::{Joined, News};

/// Longest time for a refusal to arrive.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// How a link ended.
pub(super) enum Ended {
    /// The agent said that it stops.
    Goodbye,
    /// It was told that it is not let in, or no longer.
    Refused(Refused),
    /// It broke.
    Broken(Box<dyn Error + Send + Sync>),
}

/// Lets the agent in, or not, and passes on what it says until the link ends. `let_in` says meanwhile that it is.
pub(super) async fn serve(
    server: &LinkServer,
    agent: &Peer,
    hello: Hello,
    connection: &Connection,
    let_in: &AtomicBool,
    reader: MessageReader<RecvStream>,
    mut writer: SendStream,
) -> Ended {
    let checked =
        admit::check(&hello, agent, Timestamp::now()).and_then(|()| server.removed.check(agent.name()));
    let joined = match checked {
        Ok(()) => server.nodes.join(hello, connection.remote_address()).await,
        Err(refused) => Err(refused),
    };
    let mut joined = match joined {
        Ok(joined) => joined,
        Err(refused) => return refuse(refused, writer).await,
    };
    let_in.store(true, Ordering::Release);
    let ended = match write_message(&mut writer, &BalancerMessage::Welcome).await {
        Ok(()) => {
            let reader = reader.with_bytes_max(STATE_BYTES_MAX);
            tokio::select! {
                ended = run(&mut joined, reader, &mut writer, server.balancers.clone()) => ended,
                () = server.removed.wait_for(agent.name()) => Ended::Refused(Refused::Removed),
            }
        }
        Err(error) => Ended::Broken(error.into()),
    };
    let_in.store(false, Ordering::Release);
    let is_for_good = matches!(ended, Ended::Goodbye | Ended::Refused(Refused::Removed));
    joined.end(if is_for_good { News::Left } else { News::Lost }).await;
    match ended {
        Ended::Refused(refused) => refuse(refused, writer).await,
        other => other,
    }
}

async fn run(
    joined: &mut Joined,
    mut reader: MessageReader<RecvStream>,
    writer: &mut SendStream,
    mut balancers: watch::Receiver<Vec<String>>,
) -> Ended {
    let mut told: Option<u64> = None;
    balancers.mark_changed();
    loop {
        // All are cancel-safe: the reader keeps what it has read of a message, a watch what it has seen.
        let message = tokio::select! {
            message = reader.next() => message,
            Ok(()) = balancers.changed() => {
                let list = balancers.borrow_and_update().clone();
                if list.is_empty() {
                    continue;
                }
                if let Err(error) = write_message(writer, &BalancerMessage::Balancers(list)).await {
                    return Ended::Broken(error.into());
                }
                continue;
            }
            wanted = joined.wanted.recv() => {
                let wanted = match wanted {
                    Some(BalancerMessage::Refused(refused)) => return Ended::Refused(refused),
                    Some(wanted) => wanted,
                    None => return Ended::Broken("a newer link took its place".into()),
                };
                if let Err(error) = write_message(writer, &wanted).await {
                    return Ended::Broken(error.into());
                }
                continue;
            }
        };
        let news = match message {
            Ok(Some(AgentMessage::Beat)) => {
                joined.heard();
                continue;
            }
            Ok(Some(AgentMessage::Report(report))) => {
                let follows = match report.scope {
                    ReportScope::Whole => true,
                    ReportScope::Changes { since } => told == Some(since),
                };
                if !follows {
                    if let Err(error) = write_message(writer, &BalancerMessage::SendWhole).await {
                        return Ended::Broken(error.into());
                    }
                    told = None;
                    continue;
                }
                told = Some(report.sequence);
                News::Report(Box::new(report))
            }
            Ok(Some(AgentMessage::Goodbye)) => return Ended::Goodbye,
            Ok(None) => return Ended::Broken("it ended without a word".into()),
            Err(error @ (ReadError::Malformed(_) | ReadError::TooLong { .. })) => {
                return Ended::Refused(Refused::Malformed { what: error.to_string() });
            }
            Err(error) => return Ended::Broken(error.into()),
        };
        if let Err(refused) = joined.tell(news).await {
            return Ended::Refused(refused);
        }
    }
}

/// The first message of a stream could not be read: most likely a version that this one does not know.
pub(super) async fn refuse_opening(error: ReadError, writer: SendStream) -> Ended {
    let what = match error {
        ReadError::Malformed(error) => error.to_string(),
        other => other.to_string(),
    };
    refuse(Refused::Malformed { what }, writer).await
}

async fn refuse(refused: Refused, mut writer: SendStream) -> Ended {
    let said = async {
        write_message(&mut writer, &BalancerMessage::Refused(refused.clone())).await?;
        writer.finish()?;
        writer.stopped().await?;
        Ok::<_, Box<dyn Error + Send + Sync>>(())
    };
    // If it does not arrive the agent is told the reason's word with the close.
    drop(timeout(REFUSAL_TIMEOUT, said).await);
    Ended::Refused(refused)
}
