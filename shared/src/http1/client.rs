//! One request over a connection that the caller owns: to an agent, or to a container's socket.
//!
//! Full duplex: the answer is read while the body is still being sent. Nothing here retries, pools or times
//! out; the caller does, and gets the connection back when it may be used again.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite};

use super::buffer::{
    BODY_READ_BYTES, BodyDecoder, HEAD_READ_BYTES, MessageWriter, ReadBuffer, WriteError, WriteFraming,
};
use super::chunked::{ChunkedError, Decoded};
use super::head::{HeadError, HeadLimits, ResponseHead, find_end, parse_response};
use crate::body::{Body, BodyError};

/// A connection to a server.
#[derive(Debug)]
pub struct Connection<R, W> {
    reader: ReadBuffer<R>,
    writer: W,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Connection<R, W> {
    /// Takes the two halves of a fresh connection.
    pub fn new(reader: R, writer: W) -> Self {
        Self { reader: ReadBuffer::new(reader), writer }
    }

    /// True if an idle connection can take another request: the peer has neither closed it nor sent anything.
    /// Costs no system call unless something happened on it.
    pub fn is_reusable(&mut self, context: &mut Context<'_>) -> bool {
        self.reader.bytes.is_empty() && self.reader.poll_fill(context, HEAD_READ_BYTES).is_pending()
    }

    /// The halves, for moving an idle connection to another runtime.
    pub fn into_parts(self) -> (R, W) {
        (self.reader.into_parts().0, self.writer)
    }
}

/// Why there is no answer, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The source of the request's body failed.
    #[error("the request body broke off")]
    RequestBody(#[source] WriteError),
    /// The connection failed or was closed before the whole answer came.
    #[error("the connection broke before the answer was complete")]
    Connection(#[source] io::Error),
    /// The answer's head is not HTTP or larger than allowed.
    #[error("the answer's head is unusable")]
    Head(#[source] HeadError),
    /// The answer's body breaks its framing.
    #[error("the answer's body is unusable")]
    Body(#[source] ChunkedError),
}

impl From<ExchangeError> for BodyError {
    fn from(error: ExchangeError) -> Self {
        Self::Interrupted(io::Error::other(error))
    }
}

/// Whether the body is sent at once or only after the server asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendBody {
    /// Together with the head.
    AtOnce,
    /// After `100 Continue`; the head must carry `Expect: 100-continue`.
    WhenAsked,
}

/// How far the request may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UploadState {
    /// Only its head; the server has not asked for the body.
    Held,
    /// All of it.
    Open,
    /// The server takes no more.
    Broken,
}

/// A request under way.
pub struct Exchange<R, W> {
    connection: Connection<R, W>,
    upload: MessageWriter,
    upload_state: UploadState,
    decoder: BodyDecoder,
    body_done: bool,
    keep_alive: bool,
}

impl<R, W> fmt::Debug for Exchange<R, W> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Exchange").field("decoder", &self.decoder).finish_non_exhaustive()
    }
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Exchange<R, W> {
    /// Sends a request and waits for the head of its answer. `head` is a whole request head whose framing
    /// headers say `framing`.
    ///
    /// # Errors
    /// See [`ExchangeError`]; the connection is gone then.
    pub async fn start(
        connection: Connection<R, W>,
        head: Vec<u8>,
        body: Body,
        framing: WriteFraming,
        send: SendBody,
        limits: &HeadLimits,
    ) -> Result<(ResponseHead, Self), ExchangeError> {
        let mut exchange = Self {
            connection,
            upload: MessageWriter::new(head, body, framing),
            upload_state: if send == SendBody::WhenAsked { UploadState::Held } else { UploadState::Open },
            decoder: BodyDecoder::Fixed(0),
            body_done: false,
            keep_alive: false,
        };
        let mut seen_bytes = 0;
        let head = poll_fn(|context| exchange.poll_head(context, limits, &mut seen_bytes)).await?;
        if head.status < 300 && exchange.upload_state == UploadState::Held {
            // It answers while it reads: nothing further will be asked for (RFC 9110, 10.1.1).
            exchange.upload_state = UploadState::Open;
        }
        exchange.decoder = BodyDecoder::new(head.length);
        exchange.keep_alive = head.keep_alive;
        exchange.body_done = matches!(exchange.decoder, BodyDecoder::Fixed(0));
        Ok((head, exchange))
    }

    fn poll_head(
        &mut self,
        context: &mut Context<'_>,
        limits: &HeadLimits,
        seen_bytes: &mut usize,
    ) -> Poll<Result<ResponseHead, ExchangeError>> {
        self.poll_upload(context)?;
        loop {
            let buffer = &mut self.connection.reader.bytes;
            if let Some(end) = find_end(buffer, *seen_bytes, limits).map_err(ExchangeError::Head)? {
                let head = parse_response(&buffer[..end], limits).map_err(ExchangeError::Head)?;
                buffer.advance(end);
                *seen_bytes = 0;
                if head.status >= 200 {
                    return Poll::Ready(Ok(head));
                }
                if head.status == 100 && self.upload_state == UploadState::Held {
                    self.upload_state = UploadState::Open;
                    self.poll_upload(context)?;
                }
                continue;
            }
            *seen_bytes = buffer.len();
            match self.connection.reader.poll_fill(context, HEAD_READ_BYTES) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(Err(ExchangeError::Connection(io::ErrorKind::UnexpectedEof.into())));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(ExchangeError::Connection(error))),
            }
        }
    }

    /// Pushes the request's body on. A peer that no longer takes it may still have answered, so that a failed
    /// write is no error by itself.
    fn poll_upload(&mut self, context: &mut Context<'_>) -> Result<(), ExchangeError> {
        if self.upload_state == UploadState::Broken || self.upload.is_done() {
            return Ok(());
        }
        let writer = &mut self.connection.writer;
        let polled = if self.upload_state == UploadState::Held {
            self.upload.poll_write_head(context, writer)
        } else {
            self.upload.poll_write(context, writer)
        };
        match polled {
            Poll::Pending | Poll::Ready(Ok(())) => Ok(()),
            Poll::Ready(Err(WriteError::Io(_))) => {
                self.upload_state = UploadState::Broken;
                Ok(())
            }
            Poll::Ready(Err(error)) => Err(ExchangeError::RequestBody(error)),
        }
    }

    /// Polls for the next piece of the answer's body.
    ///
    /// # Errors
    /// See [`ExchangeError`]; the exchange must not be polled again.
    pub fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, ExchangeError>>> {
        if self.body_done {
            return Poll::Ready(None);
        }
        if let Err(error) = self.poll_upload(context) {
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            match self.decoder.decode(&mut self.connection.reader.bytes) {
                Err(error) => return Poll::Ready(Some(Err(ExchangeError::Body(error)))),
                Ok(Decoded::Data(data)) => {
                    self.body_done = matches!(self.decoder, BodyDecoder::Fixed(0));
                    return Poll::Ready(Some(Ok(data)));
                }
                Ok(Decoded::End) => {
                    self.body_done = true;
                    return Poll::Ready(None);
                }
                Ok(Decoded::NeedMore) => {}
            }
            match self.connection.reader.poll_fill(context, BODY_READ_BYTES) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) if self.decoder.ends_at_close() => {
                    self.body_done = true;
                    return Poll::Ready(None);
                }
                Poll::Ready(Ok(0)) => {
                    let error = io::ErrorKind::UnexpectedEof.into();
                    return Poll::Ready(Some(Err(ExchangeError::Connection(error))));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(ExchangeError::Connection(error)))),
            }
        }
    }

    /// The whole rest of the answer's body, if it has arrived already.
    pub fn take_arrived_body(&mut self) -> Option<Bytes> {
        if self.body_done {
            return Some(Bytes::new());
        }
        match self.decoder {
            BodyDecoder::Fixed(left_bytes) if left_bytes <= self.connection.reader.bytes.len() as u64 => {
                self.decoder = BodyDecoder::Fixed(0);
                self.body_done = true;
                Some(self.connection.reader.take(left_bytes as usize))
            }
            _ => None,
        }
    }

    /// True once the whole answer was read.
    pub fn is_complete(&self) -> bool {
        self.body_done
    }

    /// Splits into the request's body, if nothing of it was taken, and the connection, if it may be used again.
    pub fn finish(self) -> (Option<Body>, Option<Connection<R, W>>) {
        let reusable = self.body_done
            && self.keep_alive
            && self.upload.is_done()
            && self.upload_state != UploadState::Broken
            && self.connection.reader.bytes.is_empty();
        (self.upload.into_untouched_body(), reusable.then_some(self.connection))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};

    type Half = (ReadHalf<DuplexStream>, WriteHalf<DuplexStream>);

    fn pair() -> (Connection<ReadHalf<DuplexStream>, WriteHalf<DuplexStream>>, Half) {
        let (near, far) = duplex(64 * 1024);
        let (reader, writer) = split(near);
        (Connection::new(reader, writer), split(far))
    }

    async fn rest(exchange: &mut Exchange<ReadHalf<DuplexStream>, WriteHalf<DuplexStream>>) -> Vec<u8> {
        let mut whole = Vec::new();
        while let Some(chunk) = poll_fn(|context| exchange.poll_chunk(context)).await {
            whole.extend_from_slice(&chunk.expect("a good answer"));
        }
        whole
    }

    #[tokio::test]
    async fn a_connection_serves_again_after_a_whole_answer() {
        let (connection, (mut reader, mut writer)) = pair();
        let server = async {
            let mut request = vec![0; 4096];
            let length = reader.read(&mut request).await.expect("reads");
            assert_eq!(&request[..length], b"POST /call HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi");
            writer
                .write_all(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nyo\r\n0\r\n\r\n")
                .await
                .expect("writes");
        };
        let limits = HeadLimits::default();
        let head = b"POST /call HTTP/1.1\r\nContent-Length: 2\r\n\r\n".to_vec();
        let body = Body::from(Bytes::from_static(b"hi"));
        let started =
            Exchange::start(connection, head, body, WriteFraming::Fixed(2), SendBody::AtOnce, &limits);
        let (started, ()) = tokio::join!(started, server);
        let (head, mut exchange) = started.expect("an answer");
        assert_eq!(head.status, 200);
        assert_eq!(rest(&mut exchange).await, b"yo");
        assert!(exchange.finish().1.is_some());
    }

    #[tokio::test]
    async fn a_body_that_was_not_asked_for_comes_back() {
        let (connection, (mut reader, mut writer)) = pair();
        let server = async {
            let mut request = vec![0; 4096];
            let length = reader.read(&mut request).await.expect("reads");
            assert!(request[..length].ends_with(b"\r\n\r\n"));
            writer.write_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").await.expect("writes");
        };
        let limits = HeadLimits::default();
        let head = b"POST /call HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n".to_vec();
        let body = Body::from(Bytes::from_static(b"hi"));
        let started =
            Exchange::start(connection, head, body, WriteFraming::Fixed(2), SendBody::WhenAsked, &limits);
        let (started, ()) = tokio::join!(started, server);
        let (head, exchange) = started.expect("an answer");
        assert_eq!(head.status, 503);
        let (body, connection) = exchange.finish();
        assert_eq!(body.expect("untouched").length(), Some(2));
        assert!(connection.is_none(), "the server may still wait for the body");
    }

    #[tokio::test]
    async fn an_answer_cut_short_is_an_error() {
        let (connection, (reader, mut writer)) = pair();
        let server = async {
            writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc").await.expect("writes");
            drop((reader, writer));
        };
        let limits = HeadLimits::default();
        let head = b"POST /call HTTP/1.1\r\n\r\n".to_vec();
        let started =
            Exchange::start(connection, head, Body::Empty, WriteFraming::Fixed(0), SendBody::AtOnce, &limits);
        let (started, ()) = tokio::join!(started, server);
        let (_, mut exchange) = started.expect("a head");
        let first = poll_fn(|context| exchange.poll_chunk(context)).await;
        assert_eq!(first.expect("a chunk").expect("good"), "abc");
        let second = poll_fn(|context| exchange.poll_chunk(context)).await;
        assert!(matches!(second, Some(Err(ExchangeError::Connection(_)))));
        assert!(exchange.finish().1.is_none());
    }
}
