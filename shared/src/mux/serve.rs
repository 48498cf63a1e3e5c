//! The side that takes streams: requests in, answers out, with the same services as HTTP/1.1 has.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Closed;
use super::connection::{Connection, Side};
use super::driver::{CloseOnDrop, Driver};
use super::message::{IncomingHead, NoHead, Outgoing};
use super::stream::{Shared, Stream, StreamReader};
use crate::body::{Body, BodyError};
use crate::http1::head::{BodyLength, HeadError, RequestHead, parse_request};
use crate::http1::server::response::self_framed;
use crate::http1::server::timer::Timer;
use crate::http1::server::{ConnectionLimits, Request, RequestError, Response, Service};

/// What the calls of a connection share.
#[derive(Debug)]
struct Host<S> {
    service: Arc<S>,
    limits: ConnectionLimits,
}

/// Serves a connection until it ends. Once `stop` is cancelled it takes no more requests, tells the client which it took,
/// and ends when those are answered. A client that gives a request up drops its call; so does the end of the connection.
pub async fn serve<I, S>(
    io: I,
    service: Arc<S>,
    limits: &ConnectionLimits,
    stop: &CancellationToken,
) -> Closed
where
    I: AsyncRead + AsyncWrite + Unpin,
    S: Service + 'static,
{
    let shared = Shared::new(Connection::new(Side::Server));
    let close = CloseOnDrop(&shared);
    let host = Arc::new(Host { service, limits: limits.clone() });
    let calls = TaskTracker::new();
    let mut driver = Driver::new(&shared, io, limits.idle_timeout);
    let mut stopped = pin!(stop.cancelled());
    let mut stopping = false;
    let how = poll_fn(|context| {
        if !stopping && stopped.as_mut().poll(context).is_ready() {
            stopping = true;
            shared.lock().leave();
        }
        let polled = driver.poll_turn(context);
        loop {
            let incoming = shared.lock().next_incoming();
            let Some(id) = incoming else { return polled };
            calls.spawn(answer(Arc::clone(&host), Stream::new(Arc::clone(&shared), id)));
        }
    })
    .await;
    driver.farewell().await;
    drop(close);
    calls.close();
    // Their streams have ended, so they do.
    calls.wait().await;
    how
}

/// Runs one call. Whatever goes wrong gives the stream up, which the client is told.
async fn answer<S: Service>(host: Arc<Host<S>>, mut stream: Stream) {
    let Host { service, limits } = &*host;
    let response = match read_head(&mut stream, limits).await {
        Ok(Some((head, arrived))) => match open_body(&head, arrived, &stream, limits) {
            Ok(body) => run(&**service, Request { head, body }, &mut stream).await,
            Err(error) => Some(service.refuse(error)),
        },
        Ok(None) => None,
        Err(error) => Some(service.refuse(error)),
    };
    if let Some(response) = response {
        send(response, &mut stream, limits.write_timeout).await;
    }
}

async fn read_head(
    stream: &mut Stream,
    limits: &ConnectionLimits,
) -> Result<Option<(RequestHead, Bytes)>, RequestError> {
    let mut incoming = IncomingHead::default();
    let mut timer = Timer::new();
    let read = poll_fn(|context| {
        let waits = incoming.is_begun();
        let polled = incoming.poll(stream, &limits.head, context);
        if polled.is_ready() {
            return polled.map(|read| match read {
                Ok(read) => Ok(Some(read)),
                Err(NoHead::Bad(error)) => Err(error.into()),
                Err(NoHead::Broken(_) | NoHead::Ended) => Ok(None),
            });
        }
        if !waits {
            timer.set(limits.head_timeout);
        }
        timer.poll(context).map(|()| Err(RequestError::HeadTimeout))
    });
    let Some((head, arrived)) = read.await? else { return Ok(None) };
    Ok(Some((parse_request(&head, &limits.head)?, arrived)))
}

/// Makes the body: at hand if it has come, else a stream.
fn open_body(
    head: &RequestHead,
    arrived: Bytes,
    stream: &Stream,
    limits: &ConnectionLimits,
) -> Result<Body, RequestError> {
    let BodyLength::Fixed(length) = head.length else {
        return Err(HeadError::Malformed("chunks on a multiplexed connection").into());
    };
    if length == arrived.len() as u64 && length <= limits.body_bytes_max {
        return Ok(Body::from(arrived));
    }
    let body = RequestBody {
        reader: stream.reader(),
        arrived,
        left_bytes: length,
        bytes_max: limits.body_bytes_max,
        timeout: limits.body_timeout,
        timer: Timer::new(),
        waiting: false,
    };
    Ok(Body::Stream { stream: Box::pin(body), length: Some(length) })
}

/// The service's answer; `None` if the client has given up.
async fn run<S: Service>(service: &S, request: Request, stream: &mut Stream) -> Option<Response> {
    let mut call = pin!(service.handle(request));
    poll_fn(|context| {
        if let Poll::Ready(response) = call.as_mut().poll(context) {
            return Poll::Ready(Some(response));
        }
        stream.poll_gone(context).map(|()| None)
    })
    .await
}

async fn send(response: Response, stream: &mut Stream, timeout: Duration) {
    let (head, body) = self_framed(response);
    let mut answer = Outgoing::new(head, body);
    let mut timer = Timer::new();
    // The timer runs only while the client is in the way, not while the body's source is.
    let mut held_up: Option<u64> = None;
    poll_fn(|context| {
        // An error is the stream's, or the body's: the client learns of it when the stream is dropped.
        if answer.poll(stream, context).is_ready() || stream.poll_gone(context).is_ready() {
            return Poll::Ready(());
        }
        let before = std::mem::replace(&mut held_up, answer.held_up_after());
        if held_up.is_none() {
            return Poll::Pending;
        }
        if held_up != before {
            timer.set(timeout);
        }
        timer.poll(context)
    })
    .await;
}

/// A request's body as it comes.
struct RequestBody {
    reader: StreamReader,
    /// Came with the head.
    arrived: Bytes,
    left_bytes: u64,
    bytes_max: u64,
    timeout: Duration,
    timer: Timer,
    /// The timer runs for the piece that is asked for.
    waiting: bool,
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.left_bytes > this.bytes_max {
            return Poll::Ready(Some(Err(BodyError::TooLarge { bytes_max: this.bytes_max })));
        }
        let piece = if this.arrived.is_empty() {
            let polled = this.reader.poll_receive(context);
            if polled.is_pending() {
                // Set once per wait: a timer that its own wake-up moves would never end.
                if !this.waiting {
                    this.waiting = true;
                    this.timer.set(this.timeout);
                }
                ready!(this.timer.poll(context));
                return broken_off(io::ErrorKind::TimedOut.into());
            }
            this.waiting = false;
            match ready!(polled) {
                Some(Ok(piece)) => piece,
                Some(Err(error)) => return broken_off(error.into()),
                None if this.left_bytes == 0 => return Poll::Ready(None),
                None => return broken_off(io::ErrorKind::UnexpectedEof.into()),
            }
        } else {
            std::mem::take(&mut this.arrived)
        };
        match this.left_bytes.checked_sub(piece.len() as u64) {
            Some(left) => this.left_bytes = left,
            None => return broken_off(io::Error::new(io::ErrorKind::InvalidData, "more than was declared")),
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

fn broken_off(error: io::Error) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
    Poll::Ready(Some(Err(BodyError::Interrupted(error))))
}
