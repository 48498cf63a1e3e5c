//! Serves requests on one connection, one after the other: keep-alive, pipelining without loss, streaming both
//! ways, `100-continue`, a time limit on every wait. Used by the edge and by the agent's invoke endpoint.
//!
//! Whatever leaves the framing in doubt is answered and the connection closed. A client that goes away while
//! its call runs drops the call.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Method;
use http_body::Frame;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use super::buffer::{
    BODY_READ_BYTES, BodyDecoder, HEAD_READ_BYTES, MessageWriter, ReadBuffer, WriteError, WriteFraming,
};
use super::chunked::Decoded;
use super::date;
use super::head::{BodyLength, HeadError, HeadLimits, RequestHead, find_end, parse_request};
use super::headers::HeaderBlock;
use crate::body::{Body, BodyError};

/// The first bytes of an HTTP/2 connection that a request line could be mistaken for (RFC 9113, 3.4).
const HTTP2_PREFACE_HEAD: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";
/// Most bytes of further requests that are read while one is served.
const PIPELINED_BYTES_MAX: usize = 16 * 1024;
/// Longest time spent on reading what a client still sends after its last answer.
const LINGER: Duration = Duration::from_secs(1);
/// Most bytes read in that time.
const LINGER_BYTES_MAX: usize = 512 * 1024;

/// Bounds of one connection.
#[derive(Debug, Clone)]
pub struct ConnectionLimits {
    /// Bounds of a request's head.
    pub head: HeadLimits,
    /// Longest time from the first byte of a head to its last; then 408.
    pub head_timeout: Duration,
    /// Longest time without a request; then the connection is closed.
    pub idle_timeout: Duration,
    /// Longest time without a byte of a request body that is waited for.
    pub body_timeout: Duration,
    /// Longest time in which the client takes no byte of an answer.
    pub write_timeout: Duration,
    /// Largest request body in bytes; reading further fails with [`BodyError::TooLarge`].
    pub body_bytes_max: u64,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            head: HeadLimits::default(),
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            body_bytes_max: u64::MAX,
        }
    }
}

/// A request as the service gets it.
#[derive(Debug)]
pub struct Request {
    /// Its head.
    pub head: RequestHead,
    /// Its body.
    pub body: Body,
}

/// An answer as the service gives it. Framing headers, `Date` and `Connection` are added when it is written.
#[derive(Debug)]
pub struct Response {
    /// Status, 200 to 999.
    pub status: u16,
    /// Header lines without framing.
    pub headers: HeaderBlock,
    /// Body; one that fails cuts the connection, so that the client sees that something is missing.
    pub body: Body,
}

/// What answers requests.
pub trait Service: Send + Sync {
    /// Answers one request. The future is dropped when the client goes away.
    fn handle(&self, request: Request) -> impl Future<Output = Response> + Send;

    /// Whether answers carry a `Date`; one that is only passed on gets it where it leaves Kiln.
    fn sends_date(&self) -> bool {
        true
    }

    /// The answer to a request whose head is refused.
    fn refuse(&self, error: HeadError) -> Response {
        plain(error.status(), &error.to_string())
    }
}

/// A short answer in plain text.
pub fn plain(status: u16, text: &str) -> Response {
    let mut headers = HeaderBlock::new();
    headers.push_valid(b"Content-Type", b"text/plain; charset=utf-8");
    Response { status, headers, body: Body::from(Bytes::from(format!("{text}\n"))) }
}

/// How a connection ended.
#[derive(Debug)]
pub enum Ended<R, W> {
    /// It is closed, or to be dropped.
    Closed,
    /// The client speaks HTTP/2; here are the halves and what was read.
    Http2(R, W, BytesMut),
}

/// Serves a connection until it closes, `stop` is cancelled and the request under way has ended, or something
/// goes wrong with it.
pub async fn serve<R, W, S>(
    reader: R,
    writer: W,
    service: &S,
    limits: &ConnectionLimits,
    stop: &CancellationToken,
) -> Ended<R, W>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send,
    S: Service,
{
    let mut connection =
        ServerConnection { reader: Some(ReadBuffer::new(reader)), writer, timer: Timer::new() };
    let mut stopped = pin!(stop.cancelled());
    let mut first = true;
    loop {
        let head = match connection.read_head(limits, first, stopped.as_mut()).await {
            Ok(Incoming::Head(head)) => head,
            Ok(Incoming::Http2) => {
                let (reader, bytes) = connection.take_reader().into_parts();
                return Ended::Http2(reader, connection.writer, bytes);
            }
            Ok(Incoming::End) => return Ended::Closed,
            Err(refusal) => {
                let response = match refusal {
                    HeadRefusal::Malformed(error) => service.refuse(error),
                    HeadRefusal::TooSlow => plain(408, "the request head did not arrive in time"),
                };
                let form = Form {
                    version: http::Version::HTTP_11,
                    close: true,
                    is_head: false,
                    date: service.sends_date(),
                };
                let writer = response_writer(response, form);
                if connection.write(writer, limits).await.is_ok() {
                    connection.linger().await;
                }
                return Ended::Closed;
            }
        };
        first = false;
        match connection.serve_one(head, service, limits, stop).await {
            Next::KeepAlive => {}
            Next::Close => {
                connection.linger().await;
                return Ended::Closed;
            }
            Next::Abort => return Ended::Closed,
        }
    }
}

enum Incoming {
    Head(RequestHead),
    Http2,
    End,
}

enum HeadRefusal {
    Malformed(HeadError),
    TooSlow,
}

enum Next {
    KeepAlive,
    /// Close in order: the client may still read the answer.
    Close,
    /// Drop at once: the client must see that something is missing, or is gone.
    Abort,
}

struct ServerConnection<R, W> {
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
    fn take_reader(&mut self) -> ReadBuffer<R> {
        self.reader.take().expect("the reader is here between requests")
    }

    async fn read_head(
        &mut self,
        limits: &ConnectionLimits,
        first: bool,
        mut stopped: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Incoming, HeadRefusal> {
        let Self { reader, timer, .. } = self;
        let reader = reader.as_mut().expect("the reader is here between requests");
        let mut seen_bytes = 0;
        let mut begun = !reader.bytes.is_empty();
        timer.set(if begun || first { limits.head_timeout } else { limits.idle_timeout });
        let end = poll_fn(|context| {
            loop {
                match find_end(&reader.bytes, seen_bytes, &limits.head) {
                    Err(error) => return Poll::Ready(Err(HeadRefusal::Malformed(error))),
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
                        return Poll::Ready(if begun { Err(HeadRefusal::TooSlow) } else { Ok(None) });
                    }
                }
            }
        })
        .await?;
        let Some(end) = end else { return Ok(Incoming::End) };
        if first && reader.bytes.starts_with(HTTP2_PREFACE_HEAD) {
            return Ok(Incoming::Http2);
        }
        let head = reader.bytes.split_to(end);
        parse_request(&head, &limits.head).map(Incoming::Head).map_err(HeadRefusal::Malformed)
    }

    async fn serve_one<S: Service>(
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
        let Some(response) = response else { return Next::Abort };

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
                    return (Body::from(reader.bytes.split_to(length as usize).freeze()), None);
                }
                Some(length)
            }
            BodyLength::Chunked | BodyLength::UntilClose => None,
        };
        let lent = Arc::new(Lent {
            returned: Mutex::new(None),
            finished: AtomicBool::new(false),
            continue_state: Mutex::new(if head.expects_continue {
                Continue::Held
            } else {
                Continue::Settled
            }),
        });
        let stream = RequestBody {
            reader: self.reader.take(),
            decoder: BodyDecoder::new(head.length),
            left_bytes: limits.body_bytes_max,
            bytes_max: limits.body_bytes_max,
            timeout: limits.body_timeout,
            timer: Timer::new(),
            lent: Arc::clone(&lent),
        };
        (Body::Stream { stream: Box::pin(stream), length }, Some(lent))
    }

    fn take_back(&mut self, lent: &Lent<R>) {
        if self.reader.is_none() {
            self.reader = lent.returned.lock().unwrap_or_else(PoisonError::into_inner).take();
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

    async fn write(
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
    async fn linger(&mut self) {
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

/// Notes whether a write had to wait for the client.
struct Watched<'a, W> {
    writer: &'a mut W,
    blocked: bool,
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Watched<'_, W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut *self.writer).poll_write(context, bytes);
        self.blocked = polled.is_pending();
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut *self.writer).poll_write_vectored(context, slices);
        self.blocked = polled.is_pending();
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.writer).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.writer).poll_shutdown(context)
    }
}

/// What the answer's head depends on beside the answer.
#[derive(Clone, Copy)]
struct Form {
    version: http::Version,
    close: bool,
    is_head: bool,
    date: bool,
}

/// Builds the head of an answer. Returns the writer and whether the body ends with the connection.
fn response_writer(response: Response, form: Form) -> (MessageWriter, bool) {
    let Form { version, close, is_head, date } = form;
    let http11 = version == http::Version::HTTP_11;
    let Response { status, headers, mut body } = response;
    let bodyless = status == 204 || status == 304;
    let framing = match WriteFraming::of(&body) {
        WriteFraming::Chunked if !http11 => WriteFraming::UntilClose,
        framing => framing,
    };
    let mut head = Vec::with_capacity(headers.as_bytes().len() + 192);
    head.extend_from_slice(if http11 { b"HTTP/1.1 " } else { b"HTTP/1.0 " });
    push_decimal(u64::from(status), &mut head);
    head.push(b' ');
    let reason = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    head.extend_from_slice(reason.unwrap_or("").as_bytes());
    head.extend_from_slice(b"\r\n");
    head.extend_from_slice(headers.as_bytes());
    if date {
        date::push_date(&mut head);
    }
    let mut until_close = false;
    match framing {
        WriteFraming::Fixed(_) if bodyless => {}
        WriteFraming::Fixed(length) => {
            head.extend_from_slice(b"Content-Length: ");
            push_decimal(length, &mut head);
            head.extend_from_slice(b"\r\n");
        }
        WriteFraming::Chunked => head.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        WriteFraming::UntilClose => until_close = true,
    }
    if close || until_close {
        head.extend_from_slice(b"Connection: close\r\n");
    } else if !http11 {
        head.extend_from_slice(b"Connection: keep-alive\r\n");
    }
    head.extend_from_slice(b"\r\n");
    let framing = if is_head || bodyless {
        body = Body::Empty;
        WriteFraming::Fixed(0)
    } else {
        framing
    };
    (MessageWriter::new(head, body, framing), until_close)
}

/// Writes a number in decimal.
pub fn push_decimal(number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// What a connection shares with the body that borrowed its reader.
struct Lent<R> {
    returned: Mutex<Option<ReadBuffer<R>>>,
    finished: AtomicBool,
    continue_state: Mutex<Continue>,
}

impl<R> fmt::Debug for Lent<R> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Lent").field("finished", &self.finished).finish_non_exhaustive()
    }
}

/// Where the wait for `100 Continue` stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Continue {
    /// The client waits, nobody wants the body yet.
    Held,
    /// Somebody wants it; so many bytes of the interim answer are written.
    Wanted(usize),
    /// There is nothing to say.
    Settled,
}

impl<R> Lent<R> {
    fn is_finished(&self) -> bool {
        self.finished.load(Ordering::Acquire)
    }

    fn poll_continue<W: AsyncWrite + Unpin>(
        &self,
        context: &mut Context<'_>,
        writer: &mut W,
    ) -> Poll<io::Result<()>> {
        const INTERIM: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
        let mut state = self.continue_state.lock().unwrap_or_else(PoisonError::into_inner);
        while let Continue::Wanted(written) = *state {
            let more = ready!(Pin::new(&mut *writer).poll_write(context, &INTERIM[written..]))?;
            let written = written + more;
            *state = if written == INTERIM.len() { Continue::Settled } else { Continue::Wanted(written) };
        }
        Poll::Ready(Ok(()))
    }
}

/// A request body that is read off the connection as it is wanted.
struct RequestBody<R> {
    reader: Option<ReadBuffer<R>>,
    decoder: BodyDecoder,
    left_bytes: u64,
    bytes_max: u64,
    timeout: Duration,
    timer: Timer,
    lent: Arc<Lent<R>>,
}

impl<R> RequestBody<R> {
    fn give_back(&mut self) {
        *self.lent.returned.lock().unwrap_or_else(PoisonError::into_inner) = self.reader.take();
    }
}

impl<R> Drop for RequestBody<R> {
    fn drop(&mut self) {
        if self.reader.is_some() {
            self.give_back();
        }
    }
}

impl<R: AsyncRead + Unpin + Send> http_body::Body for RequestBody<R> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let Some(reader) = this.reader.as_mut() else { return Poll::Ready(None) };
        {
            let mut state = this.lent.continue_state.lock().unwrap_or_else(PoisonError::into_inner);
            if *state == Continue::Held {
                *state = Continue::Wanted(0);
            }
        }
        this.timer.set(this.timeout);
        loop {
            let malformed = match this.decoder.decode(&mut reader.bytes) {
                Ok(Decoded::Data(data)) => {
                    let Some(left_bytes) = this.left_bytes.checked_sub(data.len() as u64) else {
                        return Poll::Ready(Some(Err(BodyError::TooLarge { bytes_max: this.bytes_max })));
                    };
                    this.left_bytes = left_bytes;
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Ok(Decoded::End) => {
                    this.lent.finished.store(true, Ordering::Release);
                    this.give_back();
                    return Poll::Ready(None);
                }
                Ok(Decoded::NeedMore) => None,
                Err(error) => Some(error),
            };
            if let Some(error) = malformed {
                let error = io::Error::new(io::ErrorKind::InvalidData, error);
                return Poll::Ready(Some(Err(BodyError::Interrupted(error))));
            }
            let error: io::Error = match reader.poll_fill(context, BODY_READ_BYTES) {
                Poll::Ready(Ok(0)) => io::ErrorKind::UnexpectedEof.into(),
                Poll::Ready(Ok(_)) => continue,
                Poll::Ready(Err(error)) => error,
                Poll::Pending => {
                    ready!(this.timer.poll(context));
                    io::ErrorKind::TimedOut.into()
                }
            };
            return Poll::Ready(Some(Err(BodyError::Interrupted(error))));
        }
    }
}

/// A deadline that is cheap to move: the runtime's timer is touched only when the deadline comes nearer or
/// the old one is reached.
struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    deadline: Option<Instant>,
}

impl Timer {
    fn new() -> Self {
        Self { sleep: None, deadline: None }
    }

    fn set(&mut self, after: Duration) {
        self.set_at(Instant::now() + after);
    }

    fn set_at(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
        if let Some(sleep) = &mut self.sleep
            && deadline < sleep.deadline()
        {
            sleep.as_mut().reset(deadline);
        }
    }

    /// Ready once the deadline has passed.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else { return Poll::Pending };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        loop {
            ready!(sleep.as_mut().poll(context));
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }
}

#[cfg(test)]
mod tests;
