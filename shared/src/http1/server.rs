//! Serves requests on one connection, one after the other: keep-alive, pipelining without loss, streaming both
//! ways, `100-continue`, a time limit on every wait. Used by the edge and by the agent's invoke endpoint.
//!
//! Whatever leaves the framing in doubt is answered and the connection closed. A client that goes away while
//! its call runs drops the call.

mod connection;
mod request_body;
pub(crate) mod response;
pub(crate) mod timer;

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use self::connection::{Incoming, Next, ServerConnection};
use self::response::{Form, response_writer};
use super::chunked::ChunkedError;
use super::head::{HeadError, HeadLimits, RequestHead};
use super::headers::HeaderBlock;
use crate::body::Body;

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
    /// Largest request body in bytes; reading further fails with
    /// [`BodyError::TooLarge`](crate::body::BodyError::TooLarge).
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

/// Why a request is answered by refusal. The connection is closed behind the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The head is broken or beyond its limits.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// The head did not arrive within [`ConnectionLimits::head_timeout`] (408).
    #[error("the request head did not arrive in time")]
    HeadTimeout,
    /// The body's framing is broken (400).
    #[error(transparent)]
    Body(#[from] ChunkedError),
    /// No byte of the body arrived within [`ConnectionLimits::body_timeout`] (408).
    #[error("the request body did not arrive in time")]
    BodyTimeout,
}

impl RequestError {
    /// The status that the client gets.
    pub fn status(self) -> u16 {
        match self {
            Self::Head(error) => error.status(),
            Self::Body(_) => 400,
            Self::HeadTimeout | Self::BodyTimeout => 408,
        }
    }
}

/// What answers requests.
pub trait Service: Send + Sync {
    /// Answers one request. The future is dropped when the client goes away.
    fn handle(&self, request: Request) -> impl Future<Output = Response> + Send;

    /// Whether answers carry a `Date`; one that is only passed on gets it where it leaves Kiln.
    fn sends_date(&self) -> bool {
        true
    }

    /// The answer to a request that is refused. It takes the place of the service's own if the body turned out to be
    /// broken before that was given.
    fn refuse(&self, error: RequestError) -> Response {
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
    let mut connection = ServerConnection::new(reader, writer);
    let mut stopped = pin!(stop.cancelled());
    let mut first = true;
    loop {
        let head = match connection.read_head(limits, first, stopped.as_mut()).await {
            Ok(Incoming::Head(head)) => head,
            Ok(Incoming::Http2) => {
                let (reader, writer, read) = connection.into_parts();
                return Ended::Http2(reader, writer, read);
            }
            Ok(Incoming::End) => return Ended::Closed,
            Err(error) => {
                let form = Form {
                    version: http::Version::HTTP_11,
                    close: true,
                    is_head: false,
                    date: service.sends_date(),
                };
                let writer = response_writer(service.refuse(error), form);
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

#[cfg(test)]
mod tests;
