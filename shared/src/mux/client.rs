//! The side that opens streams: requests out, answers in.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::connection::{Connection, Side};
use super::driver::{CloseOnDrop, Driver};
use super::message::{IncomingHead, NoHead, Outgoing};
use super::stream::{Shared, Stream};
use super::{Closed, StreamError};
use crate::body::Body;
use crate::http1::buffer::WriteError;
use crate::http1::client::ExchangeError;
use crate::http1::head::{BodyLength, HeadError, HeadLimits, ResponseHead, parse_response};

/// Opens streams. Dropped, it lets those under way end and then the connection.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

/// What moves a client's bytes; a task of its own.
#[derive(Debug)]
pub struct ClientDriver {
    shared: Arc<Shared>,
}

impl Client {
    /// A client that can be used at once: what is asked is sent when the driver has a connection.
    pub fn new() -> (Self, ClientDriver) {
        let shared = Shared::new(Connection::new(Side::Client));
        (Self { shared: Arc::clone(&shared) }, ClientDriver { shared })
    }

    /// True if a request can begin now. False for good once the connection has ended, see [`is_open`](Self::is_open).
    pub fn has_room(&self) -> bool {
        self.shared.lock().has_room()
    }

    /// False once no further request will ever begin.
    pub fn is_open(&self) -> bool {
        self.shared.lock().is_open()
    }

    /// Begins a request: a whole head that declares the length of the body, and that body.
    ///
    /// # Errors
    /// There is no [room](Self::has_room); head and body come back.
    pub fn start(&self, head: Vec<u8>, body: Body) -> Result<Exchange, (Vec<u8>, Body)> {
        let mut connection = self.shared.lock();
        if !connection.has_room() {
            return Err((head, body));
        }
        let mut request = Outgoing::new(head, body);
        let (chunk, is_all) = request.first();
        let id = connection.open(chunk, is_all);
        drop(connection);
        request.sent_first();
        let stream = Stream::new(Arc::clone(&self.shared), id);
        Ok(Exchange { stream, request, arrived: Bytes::new(), left_bytes: None, done: false })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.lock().leave();
    }
}

impl ClientDriver {
    /// Connects, and moves bytes until the connection ends: it breaks, nobody needs it any longer, or it had no stream
    /// for `idle_timeout`. Requests that were not given to the peer then fail with [`StartError::NotTaken`].
    pub async fn run<I>(self, connect: impl Future<Output = io::Result<I>>, idle_timeout: Duration) -> Closed
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        let _close = CloseOnDrop(&self.shared);
        let io = match connect.await {
            Ok(io) => io,
            Err(error) => {
                let how = Closed::Unconnected(error.to_string());
                self.shared.lock().close(how.clone());
                return how;
            }
        };
        let mut driver = Driver::new(&self.shared, io, idle_timeout);
        let how = poll_fn(|context| driver.poll_turn(context)).await;
        driver.farewell().await;
        how
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The peer did not take the request, so that it may go elsewhere.
    #[error("the request was not taken: {0}")]
    NotTaken(Closed),
    /// Anything else; it may have been acted on.
    #[error(transparent)]
    Failed(#[from] ExchangeError),
}

/// A request under way. Dropped before the answer's end it cancels the request.
pub struct Exchange {
    stream: Stream,
    request: Outgoing,
    /// Came with the head.
    arrived: Bytes,
    /// What is left of the answer's declared length, in bytes.
    left_bytes: Option<u64>,
    done: bool,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Exchange").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl Exchange {
    /// Waits for the head of the answer, once, before the body is asked for.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn answer(&mut self, limits: &HeadLimits) -> Result<ResponseHead, StartError> {
        let mut incoming = IncomingHead::default();
        let (head, arrived) = poll_fn(|context| {
            let polled = incoming.poll(&mut self.stream, limits, context);
            if polled.is_pending()
                && let Err(error) = self.poll_request(context)
            {
                return Poll::Ready(Err(StartError::Failed(error)));
            }
            polled.map_err(|error| match error {
                NoHead::Broken(StreamError::NotTaken(how)) => StartError::NotTaken(how),
                NoHead::Broken(error) => StartError::Failed(ExchangeError::Connection(error.into())),
                NoHead::Bad(error) => StartError::Failed(ExchangeError::Head(error)),
                NoHead::Ended => {
                    StartError::Failed(ExchangeError::Connection(io::ErrorKind::UnexpectedEof.into()))
                }
            })
        })
        .await?;
        let head = parse_response(&head, limits).map_err(ExchangeError::Head)?;
        self.left_bytes = match head.length {
            BodyLength::Fixed(bytes) => Some(bytes),
            BodyLength::UntilClose => None,
            BodyLength::Chunked => {
                let error = HeadError::Malformed("chunks on a multiplexed connection");
                return Err(ExchangeError::Head(error).into());
            }
        };
        self.arrived = arrived;
        Ok(head)
    }

    /// Sends what can be sent. That the peer takes no more is no error by itself: it may have answered.
    fn poll_request(&mut self, context: &mut Context<'_>) -> Result<(), ExchangeError> {
        match self.request.poll(&mut self.stream, context) {
            Poll::Pending | Poll::Ready(Ok(()) | Err(WriteError::Io(_))) => Ok(()),
            Poll::Ready(Err(error)) => Err(ExchangeError::RequestBody(error)),
        }
    }

    /// Polls for the next piece of the answer's body.
    ///
    /// # Errors
    /// See [`ExchangeError`]; the exchange must not be polled again.
    pub fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, ExchangeError>>> {
        if self.done {
            return Poll::Ready(None);
        }
        let piece = if self.arrived.is_empty() {
            let polled = self.stream.poll_receive(context);
            if polled.is_pending()
                && let Err(error) = self.poll_request(context)
            {
                return Poll::Ready(Some(Err(error)));
            }
            match ready!(polled) {
                Some(Ok(piece)) => piece,
                Some(Err(error)) => return broken(error.into()),
                None => {
                    self.done = true;
                    return match self.left_bytes {
                        None | Some(0) => Poll::Ready(None),
                        Some(_) => broken(io::ErrorKind::UnexpectedEof.into()),
                    };
                }
            }
        } else {
            std::mem::take(&mut self.arrived)
        };
        if let Some(left_bytes) = &mut self.left_bytes {
            match left_bytes.checked_sub(piece.len() as u64) {
                Some(left) => *left_bytes = left,
                None => return broken(io::Error::new(io::ErrorKind::InvalidData, "more than was declared")),
            }
        }
        Poll::Ready(Some(Ok(piece)))
    }

    /// The whole of the answer's body, if it has come with the head.
    pub fn take_arrived_body(&mut self) -> Option<Bytes> {
        let is_whole = self.left_bytes == Some(self.arrived.len() as u64);
        if !is_whole || !self.stream.has_all() {
            return None;
        }
        self.done = true;
        Some(std::mem::take(&mut self.arrived))
    }

    /// True once the whole answer was read.
    pub fn is_complete(&self) -> bool {
        self.done
    }
}

fn broken(error: io::Error) -> Poll<Option<Result<Bytes, ExchangeError>>> {
    Poll::Ready(Some(Err(ExchangeError::Connection(error))))
}
