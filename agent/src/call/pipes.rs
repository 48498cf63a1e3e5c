//! A call over a container's standard input and output (`spec/container-contract.md`, part B).
//!
//! Owns how the pipes are driven; the frames are [`kiln_shared::contract::pipe`]'s. Request and answer flow at
//! the same time, since a function may answer before it has read everything.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::Frame;
use kiln_shared::body::{Body, BodyError};
use kiln_shared::call::{CallRequest, CallResponse, Failure, FailureKind};
use kiln_shared::contract::pipe::{AnswerDecoder, Event, Framing, RequestEncoder};
use kiln_shared::contract::{self, CallFailed, ContainerExit, ContainerFate, Limits};
use tokio::io::AsyncWrite;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::record::Journal;
use crate::container::Exit;
use crate::slots::Lease;

/// Most bytes of an answer's body that are gathered, where they are at hand, before the answer is handed on.
const GATHERED_BYTES_MAX: usize = 256 * 1024;

type Stdin = Pin<Box<dyn AsyncWrite + Send + Sync>>;

/// Runs the call in its container.
pub(super) async fn run(
    framing: Framing,
    request: Box<CallRequest>,
    mut lease: Lease,
    mut journal: Journal,
    limits: Limits,
    running: TaskTrackerToken,
) -> Result<CallResponse, Failure> {
    let cold = lease.begin(request.id);
    let started = journal.started(cold);
    let timeout = request.function.spec.timeout;
    let deadline = Instant::now() + timeout;
    let deadline_at = contract::deadline(started, timeout);

    let mut head = Vec::new();
    let encoder = RequestEncoder::new(framing, &request, deadline_at, &limits, &mut head);
    let decoder = AnswerDecoder::new(framing, &request, &limits);
    let outgoing = Outgoing::new(encoder, head, request.body, framing.closes_input());
    let mut call = PipeCall {
        outgoing,
        decoder,
        arrived: BytesMut::new(),
        output: OutputState::Open,
        hot: !framing.closes_input(),
        lease,
        journal,
        _running: running,
    };
    call.journal.given();
    let first = tokio::time::timeout_at(deadline, poll_fn(|context| call.poll_event(context))).await;
    let (status, headers) = match first {
        Err(_elapsed) => return Err(call.fail(CallFailed::kill(Failure::timed_out()))),
        Ok(Err(failed)) => return Err(call.fail(failed)),
        Ok(Ok(Event::Head { status, headers })) => (status, headers),
        Ok(Ok(Event::Body(_) | Event::End)) => {
            return Err(call.fail(CallFailed::kill(Failure::invalid_response())));
        }
    };
    let stages = call.journal.answered();
    let mut gathered = Gathered::default();
    while gathered.bytes < GATHERED_BYTES_MAX {
        match poll_fn(|context| Poll::Ready(call.poll_event(context))).await {
            Poll::Pending => break,
            Poll::Ready(Ok(Event::Body(piece))) => gathered.push(piece),
            Poll::Ready(Ok(Event::End)) => {
                call.complete();
                return Ok(CallResponse { status, headers, body: Body::from(gathered.join()), stages });
            }
            Poll::Ready(Ok(Event::Head { .. })) => {
                return Err(call.fail(CallFailed::kill(Failure::invalid_response())));
            }
            // Nothing of the answer has been handed on: the caller can still be told.
            Poll::Ready(Err(failed)) => return Err(call.fail(failed)),
        }
    }
    let answer = Answer {
        gathered: gathered.pieces,
        call: Some(call),
        limits,
        sleep: Box::pin(tokio::time::sleep_until(deadline)),
    };
    Ok(CallResponse { status, headers, body: Body::stream(answer), stages })
}

/// Pieces of a body that were at hand.
#[derive(Default)]
struct Gathered {
    pieces: VecDeque<Bytes>,
    bytes: usize,
}

impl Gathered {
    fn push(&mut self, piece: Bytes) {
        self.bytes += piece.len();
        self.pieces.push_back(piece);
    }

    fn join(mut self) -> Bytes {
        if self.pieces.len() <= 1 {
            return self.pieces.pop_front().unwrap_or_default();
        }
        let mut whole = BytesMut::with_capacity(self.bytes);
        self.pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
        whole.freeze()
    }
}

/// How far the request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    Body,
    Flush,
    Close,
    Done,
    /// The container no longer reads. It may answer all the same, and never serves again.
    Broken,
}

/// A request on its way into a container.
struct Outgoing {
    /// `None` once the frame is closed.
    encoder: Option<RequestEncoder>,
    body: Body,
    encoded: Vec<u8>,
    /// Bytes of `encoded` that are written.
    written: usize,
    closes_input: bool,
    sending: Sending,
    /// The container saw a part of it.
    begun: bool,
}

impl Outgoing {
    fn new(encoder: RequestEncoder, head: Vec<u8>, body: Body, closes_input: bool) -> Self {
        Self {
            encoder: Some(encoder),
            body,
            encoded: head,
            written: 0,
            closes_input,
            sending: Sending::Body,
            begun: false,
        }
    }

    /// Goes as far as it can without waiting; what it waits for wakes the task.
    fn advance(&mut self, stdin: &mut Stdin, context: &mut Context<'_>) -> Result<(), CallFailed> {
        loop {
            let step = match self.sending {
                Sending::Done | Sending::Broken => return Ok(()),
                Sending::Body if self.written < self.encoded.len() => {
                    let step = stdin.as_mut().poll_write(context, &self.encoded[self.written..]);
                    step.map(|result| match result {
                        Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                        Ok(bytes) => {
                            self.begun = true;
                            self.written += bytes;
                            Ok(())
                        }
                        Err(error) => Err(error),
                    })
                }
                Sending::Body => {
                    if self.encode_more(context)? {
                        continue;
                    }
                    // The client takes its time: what there is shall not wait for it.
                    // An error shows again at the next write.
                    drop(stdin.as_mut().poll_flush(context));
                    return Ok(());
                }
                Sending::Flush => stdin.as_mut().poll_flush(context).map_ok(|()| {
                    self.sending = if self.closes_input { Sending::Close } else { Sending::Done };
                }),
                Sending::Close => {
                    stdin.as_mut().poll_shutdown(context).map_ok(|()| self.sending = Sending::Done)
                }
            };
            match step {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "a container no longer reads its input");
                    self.sending = Sending::Broken;
                }
            }
        }
    }

    /// Encodes the next piece. False if the client has none yet.
    fn encode_more(&mut self, context: &mut Context<'_>) -> Result<bool, CallFailed> {
        self.encoded.clear();
        self.written = 0;
        let Some(encoder) = &mut self.encoder else {
            self.encoded = Vec::new();
            self.sending = Sending::Flush;
            return Ok(true);
        };
        match self.body.poll_chunk(context) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Some(Ok(piece))) => encoder.body(&piece, &mut self.encoded)?,
            Poll::Ready(Some(Err(error))) => return Err(CallFailed::keep(Failure::of_body(&error))),
            Poll::Ready(None) => {
                if let Some(encoder) = self.encoder.take() {
                    encoder.finish(&mut self.encoded)?;
                }
            }
        }
        Ok(true)
    }
}

/// What is known of the container's output.
enum OutputState {
    Open,
    /// It has ended; how the container ends is being waited for.
    Ending(Pin<Box<dyn Future<Output = ContainerExit> + Send>>),
    Ended(ContainerExit),
}

/// A call under way. Dropped it kills the container.
struct PipeCall {
    outgoing: Outgoing,
    decoder: AnswerDecoder,
    /// Output that is not decoded yet.
    arrived: BytesMut,
    output: OutputState,
    hot: bool,
    lease: Lease,
    journal: Journal,
    _running: TaskTrackerToken,
}

impl PipeCall {
    /// The answer's next event; not to be called after [`Event::End`] or an error.
    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Result<Event, CallFailed>> {
        let slot = self.lease.slot_mut();
        let (Some(stdin), Some(stdout)) = (&mut slot.container.stdin, &mut slot.stdout) else {
            let failure = Failure::internal("a container of a pipe format has no pipes");
            return Poll::Ready(Err(CallFailed::kill(failure)));
        };
        if let Err(failed) = self.outgoing.advance(stdin, context) {
            return Poll::Ready(Err(failed));
        }
        loop {
            match &mut self.output {
                OutputState::Open => {
                    match self.decoder.decode(&mut self.arrived) {
                        Ok(Some(event)) => return Poll::Ready(Ok(event)),
                        Ok(None) => {}
                        Err(failed) => return Poll::Ready(Err(failed)),
                    }
                    if let Some(bytes) = ready!(stdout.poll_recv(context)) {
                        self.arrived.extend_from_slice(&bytes);
                    } else {
                        let exit = slot.container.exit.clone();
                        self.output = OutputState::Ending(Box::pin(ended(exit, self.hot)));
                    }
                }
                OutputState::Ending(ended) => {
                    self.output = OutputState::Ended(ready!(ended.as_mut().poll(context)));
                }
                OutputState::Ended(exit) => return Poll::Ready(self.decoder.finish(*exit)),
            }
        }
    }

    /// The answer is whole.
    fn complete(self) {
        let clean = self.outgoing.sending == Sending::Done
            && matches!(self.output, OutputState::Open)
            && self.decoder.fate(&self.arrived) == ContainerFate::Keep;
        if clean {
            self.lease.finish(None);
        }
        self.journal.succeeded();
    }

    /// There is no answer, or no whole one. Gives the failure back.
    fn fail(self, failed: CallFailed) -> Failure {
        // A container that saw the beginning of a request would take the next one for its rest.
        if failed.container == ContainerFate::Keep && !self.outgoing.begun {
            self.lease.finish(None);
        }
        self.journal.failed(failed.failure)
    }
}

/// How the container ended. A hot container that closes its output and runs on is not waited for long; one
/// that serves a single call may still be at work.
async fn ended(mut exit: watch::Receiver<Option<Exit>>, hot: bool) -> ContainerExit {
    let exited = async move { exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit) };
    let exit =
        if hot { tokio::time::timeout(super::EXIT_WAIT, exited).await.unwrap_or(None) } else { exited.await };
    match exit {
        Some(Exit::Code(code)) => ContainerExit::Code(code),
        Some(Exit::OutOfMemory) => ContainerExit::OutOfMemory,
        Some(Exit::Unknown) | None => ContainerExit::Unknown,
    }
}

/// An answer's body on its way from the container. Dropped before its end it kills the container.
struct Answer {
    gathered: VecDeque<Bytes>,
    call: Option<PipeCall>,
    limits: Limits,
    sleep: Pin<Box<Sleep>>,
}

impl Answer {
    fn fail(&mut self, failed: CallFailed) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let error = match failed.failure.kind {
            FailureKind::TimedOut => BodyError::DeadlineExceeded,
            FailureKind::ResponseTooLarge => {
                BodyError::TooLarge { bytes_max: self.limits.response_bytes_max }
            }
            _ => BodyError::Interrupted(io::Error::other(failed.failure.message.clone())),
        };
        if let Some(call) = self.call.take() {
            call.fail(failed);
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
        if let Some(piece) = this.gathered.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let Some(call) = &mut this.call else { return Poll::Ready(None) };
        if this.sleep.as_mut().poll(context).is_ready() {
            return this.fail(CallFailed::kill(Failure::timed_out()));
        }
        match ready!(call.poll_event(context)) {
            Ok(Event::Body(piece)) => Poll::Ready(Some(Ok(Frame::data(piece)))),
            Ok(Event::End) => {
                if let Some(call) = this.call.take() {
                    call.complete();
                }
                Poll::Ready(None)
            }
            Ok(Event::Head { .. }) => this.fail(CallFailed::kill(Failure::invalid_response())),
            Err(failed) => this.fail(failed),
        }
    }
}
