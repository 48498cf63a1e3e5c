//! A call over the container's socket (`spec/container-contract.md`, part A).

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use kiln_shared::body::{Body, BodyError};
use kiln_shared::call::{CallRequest, CallResponse, Failure};
use kiln_shared::contract::http_stream::{Verdict, request_head, verdict};
use kiln_shared::contract::{self, ContainerFate, Limits};
use kiln_shared::http1::buffer::WriteFraming;
use kiln_shared::http1::client::{Connection, Exchange, ExchangeError, SendBody};
use kiln_shared::http1::head::HeadError;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, Sleep};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::record::Journal;
use crate::container::Exit;
use crate::slots::{Lease, SlotConnection, thread_tag};

type ContainerExchange = Exchange<OwnedReadHalf, OwnedWriteHalf>;

/// Further tries to connect to a socket that is there but refuses.
const CONNECT_TRIES: u32 = 20;
/// Pause between them.
const CONNECT_PAUSE: Duration = Duration::from_millis(2);

/// Runs the call in its container.
pub(super) async fn run(
    request: Box<CallRequest>,
    mut lease: Lease,
    mut journal: Journal,
    limits: Limits,
    running: TaskTrackerToken,
) -> Result<CallResponse, Failure> {
    let cold = lease.begin(request.id);
    let started = journal.started(cold);
    let deadline = Instant::now() + request.function.spec.timeout;
    let deadline_at = contract::deadline(started, request.function.spec.timeout);

    let connection = match connect(&mut lease).await {
        Ok(connection) => connection,
        Err(error) => {
            let failure =
                ended(&mut lease).await.with_detail(format!("cannot connect to the function: {error}"));
            return Err(journal.failed(failure));
        }
    };
    journal.given();
    let mut head = Vec::new();
    request_head(&request, deadline_at, &mut head);
    let framing = WriteFraming::of(&request.body);
    let head_limits = limits.response_head();
    let exchange = Exchange::start(connection, head, request.body, framing, SendBody::AtOnce, &head_limits);
    let (head, mut exchange) = match tokio::time::timeout_at(deadline, exchange).await {
        Err(_elapsed) => return Err(journal.failed(Failure::timed_out())),
        Ok(Err(error)) => {
            let failure = exchange_failure(&error, &mut lease).await;
            return Err(journal.failed(failure));
        }
        Ok(Ok(answered)) => answered,
    };
    let stages = journal.answered();
    let (status, headers) = match verdict(request.kind, head.status, &head.headers) {
        Verdict::Answer { status, headers } => (status, headers),
        Verdict::Failed(failed) => {
            if failed.container == ContainerFate::Keep {
                // The failed answer's body may not have come whole: its connection is closed, not reused.
                lease.finish(None);
            }
            return Err(journal.failed(failed.failure));
        }
    };
    if let kiln_shared::http1::head::BodyLength::Fixed(bytes) = head.length
        && let Err(failed) = limits.check_response(bytes)
    {
        return Err(journal.failed(failed.failure));
    }
    if let Some(body) = exchange.take_arrived_body() {
        lease.finish(exchange.finish().1);
        journal.succeeded();
        return Ok(CallResponse { status, headers, body: Body::from(body), stages });
    }
    let length = match head.length {
        kiln_shared::http1::head::BodyLength::Fixed(bytes) => Some(bytes),
        _ => None,
    };
    let answer = Answer {
        parts: Some(Parts { exchange, lease, journal, _running: running }),
        limits,
        sent_bytes: 0,
        sleep: Box::pin(tokio::time::sleep_until(deadline)),
    };
    Ok(CallResponse { status, headers, body: Body::Stream { stream: Box::pin(answer), length }, stages })
}

/// The container's idle connection, moved to this thread's runtime where needed, or a new one.
async fn connect(lease: &mut Lease) -> io::Result<Connection<OwnedReadHalf, OwnedWriteHalf>> {
    let slot = lease.slot_mut();
    if let Some(SlotConnection { thread, connection }) = slot.connection.take() {
        let mut connection = if thread == thread_tag() {
            connection
        } else {
            let (reader, writer) = connection.into_parts();
            let stream = reader.reunite(writer).map_err(io::Error::other)?.into_std()?;
            let (reader, writer) = UnixStream::from_std(stream)?.into_split();
            Connection::new(reader, writer)
        };
        if poll_fn(|context| Poll::Ready(connection.is_reusable(context))).await {
            return Ok(connection);
        }
    }
    let path =
        slot.container.socket.as_ref().ok_or_else(|| io::Error::other("the container has no socket"))?;
    // A function that binds the announced name itself is seen a moment before it listens.
    let mut tries_left = CONNECT_TRIES;
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && tries_left > 0 => {
                tries_left -= 1;
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
            connected => {
                let (reader, writer) = connected?.into_split();
                return Ok(Connection::new(reader, writer));
            }
        }
    }
}

/// What a caller gets whose container broke off: lack of memory is told apart.
async fn ended(lease: &mut Lease) -> Failure {
    let mut exit = lease.slot_mut().container.exit.clone();
    let exited = tokio::time::timeout(super::EXIT_WAIT, exit.wait_for(Option::is_some)).await;
    match exited {
        Ok(Ok(exit)) => match *exit {
            Some(Exit::OutOfMemory) => Failure::out_of_memory(),
            Some(Exit::Code(code)) => {
                Failure::no_response().with_detail(format!("container exit code {code}"))
            }
            Some(Exit::Unknown) | None => Failure::no_response(),
        },
        _ => Failure::no_response(),
    }
}

async fn exchange_failure(error: &ExchangeError, lease: &mut Lease) -> Failure {
    match error {
        ExchangeError::RequestBody(error) => match error {
            kiln_shared::http1::buffer::WriteError::Body(error) => Failure::of_body(error),
            other => Failure::cancelled().with_detail(other.to_string()),
        },
        ExchangeError::Head(HeadError::TooLarge) => Failure::response_head_too_large(),
        ExchangeError::Connection(error) => {
            let failure = ended(lease).await;
            if failure.detail.is_some() { failure } else { failure.with_detail(error.to_string()) }
        }
        ExchangeError::Head(_) | ExchangeError::Body(_) => {
            Failure::no_response().with_detail(error.to_string())
        }
    }
}

struct Parts {
    exchange: ContainerExchange,
    lease: Lease,
    journal: Journal,
    _running: TaskTrackerToken,
}

/// An answer's body on its way from the container. Dropped before its end it kills the container.
struct Answer {
    parts: Option<Parts>,
    limits: Limits,
    sent_bytes: u64,
    sleep: Pin<Box<Sleep>>,
}

impl Answer {
    fn fail(&mut self, failure: Failure, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(parts) = self.parts.take() {
            parts.journal.failed(failure);
        }
        Poll::Ready(Some(Err(error)))
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let Some(parts) = &mut this.parts else { return Poll::Ready(None) };
        if this.sleep.as_mut().poll(context).is_ready() {
            return this.fail(Failure::timed_out(), BodyError::DeadlineExceeded);
        }
        match parts.exchange.poll_chunk(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Err(error))) => {
                let failure = Failure::no_response().with_detail(error.to_string());
                this.fail(failure, error.into())
            }
            Poll::Ready(Some(Ok(chunk))) => {
                this.sent_bytes += chunk.len() as u64;
                if let Err(failed) = this.limits.check_response(this.sent_bytes) {
                    let bytes_max = this.limits.response_bytes_max;
                    return this.fail(failed.failure, BodyError::TooLarge { bytes_max });
                }
                if parts.exchange.is_complete() {
                    this.complete();
                }
                Poll::Ready(Some(Ok(Frame::data(chunk))))
            }
            Poll::Ready(None) => {
                this.complete();
                Poll::Ready(None)
            }
        }
    }
}

impl Answer {
    fn complete(&mut self) {
        if let Some(Parts { exchange, lease, journal, _running }) = self.parts.take() {
            lease.finish(exchange.finish().1);
            journal.succeeded();
        }
    }
}
