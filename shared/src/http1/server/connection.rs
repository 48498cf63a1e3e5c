//! One connection: heads in, calls, answers out, one after the other.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use http::Method;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::buffer::{BODY_READ_BYTES, HEAD_READ_BYTES, MessageWriter, ReadBuffer, WriteError};
use super::super::head::{BodyLength, RequestHead, find_end, parse_request};
use super::request_body::{Lent, RequestBody};
use super::response::{Form, Watched, response_writer};
use super::timer::Timer;
use super::{ConnectionLimits, Request, RequestError, Service};
use crate::body::Body;

/// The first bytes of an HTTP/2 connection that a request line could be mistaken for (RFC 9113, 3.4).
const HTTP2_PREFACE_HEAD: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";
/// Most bytes of further requests that are read while one is served.
const PIPELINED_BYTES_MAX: usize = 16 * 1024;
/// Longest time spent on reading what a client still sends after its last answer.
const LINGER: Duration = Duration::from_secs(1);
/// Most bytes read in that time.
const LINGER_BYTES_MAX: usize = 512 * 1024;

pub(super) enum Incoming {
    Head(RequestHead),
    Http2,
    End,
}

pub(super) enum Next {
    KeepAlive,
    /// Close in order: the client may still read the answer.
    Close,
    /// Drop at once: the client must see that something is missing, or is gone.
    Abort,
}

pub(super) struct ServerConnection<R, W> {
    /// `None` only while a streaming body has it.
    reader: Option<ReadBuffer<R>>,
    writer: W,
    timer: Timer,
}

impl<R, W> ServerConnection<R, W>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send,
{
    pub(super) fn new(reader: R, writer: W) -> Self {
        Self { reader: Some(ReadBuffer::new(reader)), writer, timer: Timer::new() }
    }

    /// The halves and what was read.
    pub(super) fn into_parts(mut self) -> (R, W, BytesMut) {
        let (reader, bytes) = self.take_reader().into_parts();
        (reader, self.writer, bytes)
    }

    fn take_reader(&mut self) -> ReadBuffer<R> {
        self.reader.take().expect("the reader is here between requests")
    }

    pub(super) async fn read_head(
        &mut self,
        limits: &ConnectionLimits,
        first: bool,
        mut stopped: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Incoming, RequestError> {
        let Self { reader, timer, .. } = self;
        let reader = reader.as_mut().expect("the reader is here between requests");
        let mut seen_bytes = 0;
        let mut begun = !reader.bytes.is_empty();
        timer.set(if begun || first { limits.head_timeout } else { limits.idle_timeout });
        let end = poll_fn(|context| {
            loop {
                match find_end(&reader.bytes, seen_bytes, &limits.head) {
                    Err(error) => return Poll::Ready(Err(RequestError::Head(error))),
                    Ok(Some(end)) => return Poll::Ready(Ok(Some(end))),
                    Ok(None) => seen_bytes = reader.bytes.len(),
                }
                match reader.poll_fill(context, HEAD_READ_BYTES) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Ok(None)),
                    Poll::Ready(Ok(_)) => {
                        if !begun {
                            begun = true;
                            timer.set(limits.head_timeout);
                        }
                    }
                    Poll::Pending => {
                        if !begun && stopped.as_mut().poll(context).is_ready() {
                            return Poll::Ready(Ok(None));
                        }
                        ready!(timer.poll(context));
                        return Poll::Ready(if begun { Err(RequestError::HeadTimeout) } else { Ok(None) });
                    }
                }
            }
        })
        .await?;
        let Some(end) = end else { return Ok(Incoming::End) };
        if first && reader.bytes.starts_with(HTTP2_PREFACE_HEAD) {
            return Ok(Incoming::Http2);
        }
        let head = parse_request(&reader.bytes[..end], &limits.head).map_err(RequestError::Head)?;
        reader.bytes.advance(end);
        Ok(Incoming::Head(head))
    }

    pub(super) async fn serve_one<S: Service>(
        &mut self,
        head: RequestHead,
        service: &S,
        limits: &ConnectionLimits,
        stop: &CancellationToken,
    ) -> Next {
        let (http11, keep_alive, is_head) = (head.http11, head.keep_alive, head.method == Method::HEAD);
        let (body, lent) = self.open_body(&head, limits);
        let mut call = pin!(service.handle(Request { head, body }));
        let response = poll_fn(|context| {
            loop {
                if let Poll::Ready(response) = call.as_mut().poll(context) {
                    return Poll::Ready(Some(response));
                }
                if let Some(lent) = &lent {
                    if ready!(lent.poll_continue(context, &mut self.writer)).is_err() {
                        return Poll::Ready(None);
                    }
                    self.take_back(lent);
                }
                if ready!(self.poll_gone(context)) {
                    return Poll::Ready(None);
                }
            }
        })
        .await;
        let Some(mut response) = response else { return Next::Abort };

        if let Some(fault) = lent.as_ref().and_then(|lent| lent.fault()) {
            response = service.refuse(fault);
        }
        // A body that nobody wanted is not read either; who knows of it in time says so (RFC 9112, 9.6).
        let unread = !matches!(response.body, Body::Stream { .. })
            && lent.as_ref().is_some_and(|lent| {
                self.take_back(lent);
                !lent.is_finished()
            });
        let close = !keep_alive || unread || stop.is_cancelled();
        let version = if http11 { http::Version::HTTP_11 } else { http::Version::HTTP_10 };
        let form = Form { version, close, is_head, date: service.sends_date() };
        let writer = response_writer(response, form);
        let unframed = !http11 && writer.1;
        if self.write(writer, limits).await.is_err() {
            return Next::Abort;
        }
        if let Some(lent) = &lent {
            self.take_back(lent);
            if !lent.is_finished() {
                // What the client still sends is not wanted; reading it all could take forever.
                return Next::Close;
            }
        }
        if close || unframed || self.reader.is_none() { Next::Close } else { Next::KeepAlive }
    }

    /// Makes the body: at hand if it has arrived, else a stream that borrows the reader.
    fn open_body(&mut self, head: &RequestHead, limits: &ConnectionLimits) -> (Body, Option<Arc<Lent<R>>>) {
        let reader = self.reader.as_mut().expect("the reader is here between requests");
        let length = match head.length {
            BodyLength::Fixed(0) => return (Body::Empty, None),
            BodyLength::Fixed(length) => {
                if length <= reader.bytes.len() as u64 && length <= limits.body_bytes_max {
                    return (Body::from(reader.take(length as usize)), None);
                }
                Some(length)
            }
            BodyLength::Chunked | BodyLength::UntilClose => None,
        };
        let (stream, lent) = RequestBody::lend(self.take_reader(), head, limits);
        (Body::Stream { stream: Box::pin(stream), length }, Some(lent))
    }

    fn take_back(&mut self, lent: &Lent<R>) {
        if self.reader.is_none() {
            self.reader = lent.take_back();
        }
    }

    /// Ready with `true` when the client is gone. Reads ahead a little, to notice.
    fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        let Some(reader) = self.reader.as_mut() else { return Poll::Pending };
        while reader.bytes.len() < PIPELINED_BYTES_MAX {
            match ready!(reader.poll_fill(context, HEAD_READ_BYTES)) {
                Ok(0) | Err(_) => return Poll::Ready(true),
                Ok(_) => {}
            }
        }
        Poll::Pending
    }

    pub(super) async fn write(
        &mut self,
        (mut message, _): (MessageWriter, bool),
        limits: &ConnectionLimits,
    ) -> Result<(), WriteError> {
        // The timer runs only while the client is in the way, not while the body's source is.
        let mut blocked_since: Option<Instant> = None;
        poll_fn(|context| {
            let polled = {
                let mut watched = Watched { writer: &mut self.writer, blocked: false };
                let polled = message.poll_write(context, &mut watched);
                if watched.blocked {
                    let since = *blocked_since.get_or_insert_with(Instant::now);
                    self.timer.set_at(since + limits.write_timeout);
                } else {
                    blocked_since = None;
                }
                polled
            };
            if polled.is_ready() {
                return polled;
            }
            if blocked_since.is_some() && self.timer.poll(context).is_ready() {
                return Poll::Ready(Err(WriteError::Io(io::ErrorKind::TimedOut.into())));
            }
            if matches!(self.poll_gone(context), Poll::Ready(true)) {
                return Poll::Ready(Err(WriteError::Io(io::ErrorKind::ConnectionAborted.into())));
            }
            Poll::Pending
        })
        .await
    }

    /// Closes so that the client can still read the last answer: a reset would throw it away.
    pub(super) async fn linger(&mut self) {
        if self.writer.shutdown().await.is_err() {
            return;
        }
        let Some(reader) = self.reader.as_mut() else { return };
        let mut left_bytes = LINGER_BYTES_MAX;
        let drained = async {
            loop {
                reader.bytes.clear();
                match poll_fn(|context| reader.poll_fill(context, BODY_READ_BYTES)).await {
                    Ok(0) | Err(_) => return,
                    Ok(bytes) => match left_bytes.checked_sub(bytes) {
                        Some(left) => left_bytes = left,
                        None => return,
                    },
                }
            }
        };
        // Running out of time is as good an end as any.
        drop(tokio::time::timeout(LINGER, drained).await);
    }
}
