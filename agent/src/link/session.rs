//! One connection to one balancer: the state goes there, commands come back, and records go as the balancer stores them.
//!
//! Invariant: what is said of the state is right as of the last message, however slow the balancer reads: changes that
//! it has not heard of become one.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kiln_shared::identity::PeerError;
use kiln_shared::link::frame::{MessageReader, ReadError, write_message};
use kiln_shared::link::message::{
    AgentMessage, Answer, Ask, BalancerMessage, Command, Hello, Opening, RecordBatch, Refused, Stored,
};
use kiln_shared::link::quic::{CODE_DONE, CODE_REFUSED};
use kiln_shared::link::{BEAT, MESSAGE_BYTES_MAX, WHOLE_EVERY};
use kiln_shared::report::NodeReport;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::balancers::Told;
use super::outbox::Outbox;

/// Longest time for a balancer to say whether the agent is welcome.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for a balancer to make room for a message.
const SAY_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for a balancer to take and store a batch; then another one gets it.
const STORE_TIMEOUT: Duration = Duration::from_secs(15);
/// Pause before a balancer that did not store a batch is given one again.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// Why a connection to a balancer ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// It could not be made.
    #[error("cannot connect")]
    Connect(#[from] quinn::ConnectError),
    /// It broke.
    #[error(transparent)]
    Connection(#[from] quinn::ConnectionError),
    /// A stream broke.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What came cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The balancer's certificate does not say who it is.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// Its time is over; a balancer has another one by then.
    #[error("the balancer's certificate has ended")]
    CertificateEnded,
    /// The balancer does not read.
    #[error("the balancer does not read what it is told")]
    Unread,
    /// The balancer says no.
    #[error("the balancer refuses this agent: {0}")]
    Refused(#[from] Refused),
    /// The balancer said something else first.
    #[error("the balancer did not say whether this agent is welcome")]
    NoWelcome,
    /// The balancer stopped reading or writing.
    #[error("the balancer closed the link")]
    Closed,
    /// There is a link to this balancer already.
    #[error("{balancer} is linked already at another address")]
    Twice {
        /// The balancer.
        balancer: String,
    },
}

/// What a link says and hears.
#[derive(Debug, Clone)]
pub(super) struct Ends {
    pub(super) reports: watch::Receiver<Arc<NodeReport>>,
    pub(super) outbox: Outbox,
    pub(super) commands: mpsc::Sender<Command>,
    /// News of where balancers are.
    pub(super) told: mpsc::Sender<Told>,
    pub(super) stop: CancellationToken,
}

/// A link whose agent is welcome.
pub(super) struct Session<R, W> {
    balancer: String,
    reader: MessageReader<R>,
    writer: W,
}

/// Says hello on a new connection to `balancer`.
///
/// # Errors
/// The balancer does not answer, or refuses.
pub(super) async fn open<R, W>(
    hello: &Hello,
    balancer: &str,
    reader: R,
    mut writer: W,
) -> Result<Session<R, W>, LinkError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut reader = MessageReader::new(reader, MESSAGE_BYTES_MAX);
    let hello = Hello { clock: Timestamp::now(), ..hello.clone() };
    write_message(&mut writer, &Opening::State(hello)).await?;
    let first = timeout(WELCOME_TIMEOUT, reader.next()).await.map_err(|_elapsed| LinkError::NoWelcome)??;
    match first {
        Some(BalancerMessage::Welcome) => Ok(Session { balancer: balancer.to_owned(), reader, writer }),
        Some(BalancerMessage::Refused(reason)) => Err(reason.into()),
        Some(_) => Err(LinkError::NoWelcome),
        None => Err(LinkError::Closed),
    }
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Session<R, W> {
    /// Tells the state as it changes and passes on what the balancer wants, until `stop`.
    ///
    /// # Errors
    /// The link broke.
    pub(super) async fn run(&mut self, ends: &Ends) -> Result<(), LinkError> {
        let mut reports = ends.reports.clone();
        reports.mark_changed();
        let mut told: Option<Arc<NodeReport>> = None;
        let mut whole_at = Instant::now();
        let mut beat_at = Instant::now();
        loop {
            // All are cancel-safe: a watch remembers, and the reader keeps what it has read of a message.
            tokio::select! {
                biased; // The end is told even while reports come without pause.
                () = ends.stop.cancelled() => {
                    return self.say(&AgentMessage::Goodbye).await;
                }
                message = self.reader.next() => match message? {
                    Some(message) => if self.hear(message, ends).await { told = None },
                    None => return Err(LinkError::Closed),
                },
                changed = reports.changed() => if changed.is_err() { pending().await },
                () = sleep_until(beat_at) => {}
            }
            let report = Arc::clone(&reports.borrow_and_update());
            let now = Instant::now();
            if now >= whole_at {
                told = None;
            }
            let message = match &told {
                None => {
                    whole_at = now + WHOLE_EVERY;
                    AgentMessage::Report((*report).clone())
                }
                Some(told) if told.sequence == report.sequence && now < beat_at => continue,
                Some(told) if told.sequence == report.sequence => AgentMessage::Beat,
                Some(told) => AgentMessage::Report(report.changes_since(told)),
            };
            self.say(&message).await?;
            told = Some(report);
            beat_at = Instant::now() + BEAT;
        }
    }

    async fn say(&mut self, message: &AgentMessage) -> Result<(), LinkError> {
        let said = timeout(SAY_TIMEOUT, write_message(&mut self.writer, message)).await;
        Ok(said.map_err(|_elapsed| LinkError::Unread)??)
    }

    /// True if the balancer wants a whole report.
    async fn hear(&self, message: BalancerMessage, ends: &Ends) -> bool {
        match message {
            BalancerMessage::SendWhole => return true,
            // Both channels are read while the agent lives.
            BalancerMessage::Command(command) => drop(ends.commands.send(command).await),
            BalancerMessage::Balancers(places) => {
                let list = Told::List { balancer: self.balancer.clone(), places };
                drop(ends.told.send(list).await);
            }
            BalancerMessage::Welcome | BalancerMessage::Refused(_) => tracing::debug!("a second greeting"),
        }
        false
    }
}

impl<R> Session<R, quinn::SendStream> {
    /// Waits until the balancer has everything that was said.
    pub(super) async fn end(mut self) {
        if self.writer.finish().is_ok() {
            // How the stream ended does not matter any more.
            drop(self.writer.stopped().await);
        }
    }
}

/// Asks the balancer one question.
///
/// # Errors
/// The connection broke.
pub(super) async fn ask(connection: &quinn::Connection, question: &Ask) -> Result<Answer, LinkError> {
    let (mut writer, reader) = connection.open_bi().await?;
    write_message(&mut writer, &Opening::Ask(question.clone())).await?;
    MessageReader::new(reader, MESSAGE_BYTES_MAX).next().await?.ok_or(LinkError::Closed)
}

/// Hands batches of records to the balancer, one after the other, for as long as the connection lives.
///
/// # Errors
/// The connection broke.
pub(super) async fn hand_records(connection: &quinn::Connection, outbox: &Outbox) -> Result<(), LinkError> {
    loop {
        let batch = outbox.next().await;
        let (mut writer, reader) = connection.open_bi().await?;
        let mut reader = MessageReader::new(reader, MESSAGE_BYTES_MAX);
        let mut next = Some(batch);
        if write_message(&mut writer, &Opening::Records).await.is_ok() {
            loop {
                let batch = match next.take() {
                    Some(batch) => batch,
                    None => outbox.next().await,
                };
                match timeout(STORE_TIMEOUT, hand(&mut writer, &mut reader, batch.records())).await {
                    Ok(Handed::Stored) => batch.stored(),
                    Ok(Handed::Refused) => {
                        batch.refused();
                        break;
                    }
                    Ok(Handed::NotNow) | Err(_) => break,
                }
            }
        }
        // The batch was given back: another balancer may have it meanwhile. A stream that broke says nothing of the link.
        drop(next);
        drop(writer.reset(CODE_DONE));
        tokio::time::sleep(STORE_PAUSE).await;
    }
}

/// What became of a batch.
enum Handed {
    /// It is stored.
    Stored,
    /// The balancer does not answer, ends the stream because it cannot store it now, or talks nonsense.
    NotNow,
    /// The balancer will not take it later either.
    Refused,
}

/// Hands one batch over.
async fn hand(
    writer: &mut quinn::SendStream,
    reader: &mut MessageReader<quinn::RecvStream>,
    batch: &RecordBatch,
) -> Handed {
    let written = write_message(writer, batch).await;
    // One that the balancer stopped reading has its answer all the same.
    match reader.next().await {
        Ok(Some(Stored { number })) if written.is_ok() && number == batch.number => Handed::Stored,
        Err(ReadError::Io(error)) if is_refusal(&error) => Handed::Refused,
        Ok(_) | Err(_) => Handed::NotNow,
    }
}

fn is_refusal(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<quinn::ReadError>());
    matches!(cause, Some(quinn::ReadError::Reset(code)) if *code == CODE_REFUSED)
}
