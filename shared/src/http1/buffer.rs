//! The two halves of a connection: a buffer that reads and a writer that sends one message.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};

use super::chunked::{self, ChunkedDecoder, ChunkedError, Decoded};
use super::head::BodyLength;
use crate::body::{Body, BodyError};

/// Bytes asked for when a head is read.
pub const HEAD_READ_BYTES: usize = 4 * 1024;
/// Bytes asked for when a body is read.
pub const BODY_READ_BYTES: usize = 64 * 1024;

/// A reader with what it has read and nobody took yet.
pub struct ReadBuffer<R> {
    reader: R,
    /// What was read.
    pub bytes: BytesMut,
}

impl<R: AsyncRead + Unpin> ReadBuffer<R> {
    /// An empty buffer; it allocates when it first reads.
    pub fn new(reader: R) -> Self {
        Self { reader, bytes: BytesMut::new() }
    }

    /// Reads once, with room for at least `want_bytes`. `Ok(0)` is the end.
    pub fn poll_fill(&mut self, context: &mut Context<'_>, want_bytes: usize) -> Poll<io::Result<usize>> {
        // Asking for more than comes is what spares the read that would find nothing.
        if self.bytes.capacity() - self.bytes.len() < want_bytes / 2 {
            self.bytes.reserve(want_bytes);
        }
        tokio_util::io::poll_read_buf(Pin::new(&mut self.reader), context, &mut self.bytes)
    }

    /// Takes `bytes` off the front. A small piece is copied, so that the buffer stays this reader's alone and is used again.
    pub fn take(&mut self, bytes: usize) -> Bytes {
        take(&mut self.bytes, bytes)
    }

    /// The reader and what it has read.
    pub fn into_parts(self) -> (R, BytesMut) {
        (self.reader, self.bytes)
    }
}

impl<R> fmt::Debug for ReadBuffer<R> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ReadBuffer({} bytes)", self.bytes.len())
    }
}

fn take(input: &mut BytesMut, bytes: usize) -> Bytes {
    if bytes > COPIED_BYTES_MAX {
        return input.split_to(bytes).freeze();
    }
    let piece = Bytes::copy_from_slice(&input[..bytes]);
    input.advance(bytes);
    piece
}

/// Takes a body out of the bytes of a connection.
#[derive(Debug)]
pub enum BodyDecoder {
    /// So many bytes are left.
    Fixed(u64),
    /// Chunks.
    Chunked(ChunkedDecoder),
    /// Until the connection closes.
    UntilClose,
}

impl BodyDecoder {
    /// The decoder for a body that ends so.
    pub fn new(length: BodyLength) -> Self {
        match length {
            BodyLength::Fixed(bytes) => Self::Fixed(bytes),
            BodyLength::Chunked => Self::Chunked(ChunkedDecoder::default()),
            BodyLength::UntilClose => Self::UntilClose,
        }
    }

    /// Takes what it can off the front of `input`; large pieces without a copy.
    ///
    /// # Errors
    /// Broken chunk framing.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Decoded, ChunkedError> {
        match self {
            Self::Fixed(0) => Ok(Decoded::End),
            Self::Fixed(_) | Self::UntilClose if input.is_empty() => Ok(Decoded::NeedMore),
            Self::Fixed(left_bytes) => {
                let taken = usize::try_from(*left_bytes).unwrap_or(usize::MAX).min(input.len());
                *left_bytes -= taken as u64;
                Ok(Decoded::Data(take(input, taken)))
            }
            Self::UntilClose => Ok(Decoded::Data(take(input, input.len()))),
            Self::Chunked(decoder) => decoder.decode(input),
        }
    }

    /// True if the body may end because the connection does.
    pub fn ends_at_close(&self) -> bool {
        matches!(self, Self::UntilClose | Self::Fixed(0))
    }
}

/// How a body is framed when it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteFraming {
    /// As it is; exactly this long.
    Fixed(u64),
    /// In chunks.
    Chunked,
    /// As it is; the connection is closed behind it.
    UntilClose,
}

impl WriteFraming {
    /// Declares the length where it is known, else chunks.
    pub fn of(body: &Body) -> Self {
        body.length().map_or(Self::Chunked, Self::Fixed)
    }
}

/// Why a message was not written to its end.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The connection failed.
    #[error("cannot write to the connection")]
    Io(#[from] io::Error),
    /// The body's source failed.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The body's source gave more or less than it had declared.
    #[error("the body is not as long as declared")]
    Length,
}

/// Pieces of a body up to this size are copied: behind what goes out before them, since a plain write of one run of bytes
/// costs the kernel less than a gathering one, and out of what was read, since sharing a buffer costs allocations.
const COPIED_BYTES_MAX: usize = 1024;

/// Writes one message: head and first piece of the body in one system call, then piece by piece, without
/// copying large ones.
pub struct MessageWriter {
    front: Vec<u8>,
    front_at: usize,
    chunk: Bytes,
    tail: &'static [u8],
    body: Body,
    framing: WriteFraming,
    left_bytes: u64,
    body_polled: bool,
    body_done: bool,
    unflushed: bool,
}

impl fmt::Debug for MessageWriter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "MessageWriter({:?})", self.framing)
    }
}

impl MessageWriter {
    /// Will write `head`, a whole head that declares `framing`, and then `body`.
    pub fn new(head: Vec<u8>, body: Body, framing: WriteFraming) -> Self {
        let left_bytes = if let WriteFraming::Fixed(bytes) = framing { bytes } else { u64::MAX };
        Self {
            front: head,
            front_at: 0,
            chunk: Bytes::new(),
            tail: b"",
            body,
            framing,
            left_bytes,
            body_polled: false,
            body_done: false,
            unflushed: true,
        }
    }

    /// Writes as much as can be written now. Ready when the whole message is out.
    pub fn poll_write<W: AsyncWrite + Unpin>(
        &mut self,
        context: &mut Context<'_>,
        writer: &mut W,
    ) -> Poll<Result<(), WriteError>> {
        loop {
            // Before the head goes out, so that a body at hand goes with it.
            let framed = !self.chunk.is_empty() || !self.tail.is_empty();
            let source = if !framed && !self.body_done { self.poll_body(context)? } else { Poll::Ready(()) };
            if self.pending() {
                ready!(self.poll_send(context, writer))?;
                self.unflushed = true;
            } else if source.is_pending() || self.body_done {
                if self.unflushed {
                    ready!(Pin::new(&mut *writer).poll_flush(context))?;
                    self.unflushed = false;
                }
                return source.map(Ok);
            }
        }
    }

    /// Sends only the head and leaves the body untouched, for a peer that was asked to approve it first.
    pub fn poll_write_head<W: AsyncWrite + Unpin>(
        &mut self,
        context: &mut Context<'_>,
        writer: &mut W,
    ) -> Poll<Result<(), WriteError>> {
        while self.pending() {
            ready!(self.poll_send(context, writer))?;
        }
        Pin::new(writer).poll_flush(context).map_err(WriteError::Io)
    }

    /// True if the whole message was handed to the connection.
    pub fn is_done(&self) -> bool {
        self.body_done && !self.pending()
    }

    /// The body, if nothing of it was taken from its source.
    pub fn into_untouched_body(self) -> Option<Body> {
        (!self.body_polled).then_some(self.body)
    }

    fn pending(&self) -> bool {
        self.front_at < self.front.len() || !self.chunk.is_empty() || !self.tail.is_empty()
    }

    /// Takes the next piece from the source and frames it. Pending only if the source is.
    fn poll_body(&mut self, context: &mut Context<'_>) -> Result<Poll<()>, WriteError> {
        self.body_polled = true;
        let chunk = match self.body.poll_chunk(context) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(Some(chunk)) => chunk?,
            Poll::Ready(None) => {
                match self.framing {
                    WriteFraming::Chunked => self.front_mut().extend_from_slice(chunked::LAST_CHUNK),
                    WriteFraming::Fixed(_) if self.left_bytes > 0 => return Err(WriteError::Length),
                    WriteFraming::Fixed(_) | WriteFraming::UntilClose => {}
                }
                self.body_done = true;
                return Ok(Poll::Ready(()));
            }
        };
        match self.framing {
            WriteFraming::Chunked => {
                chunked::encode_size(chunk.len(), self.front_mut());
                self.tail = b"\r\n";
            }
            WriteFraming::Fixed(_) => {
                self.left_bytes =
                    self.left_bytes.checked_sub(chunk.len() as u64).ok_or(WriteError::Length)?;
                // Known now, so that the last piece needs no further turn.
                self.body_done = self.left_bytes == 0 && !matches!(self.body, Body::Stream { .. });
            }
            WriteFraming::UntilClose => {}
        }
        if chunk.len() <= COPIED_BYTES_MAX && self.front_at < self.front.len() {
            self.front.extend_from_slice(&chunk);
            self.front.extend_from_slice(self.tail);
            self.tail = b"";
        } else {
            self.chunk = chunk;
        }
        Ok(Poll::Ready(()))
    }

    fn front_mut(&mut self) -> &mut Vec<u8> {
        if self.front_at == self.front.len() {
            self.front.clear();
            self.front_at = 0;
        }
        &mut self.front
    }

    fn poll_send<W: AsyncWrite + Unpin>(
        &mut self,
        context: &mut Context<'_>,
        writer: &mut W,
    ) -> Poll<io::Result<()>> {
        let slices =
            [IoSlice::new(&self.front[self.front_at..]), IoSlice::new(&self.chunk), IoSlice::new(self.tail)];
        let only_front = self.chunk.is_empty() && self.tail.is_empty();
        let writer = Pin::new(writer);
        let mut written = if only_front {
            ready!(writer.poll_write(context, &slices[0]))?
        } else {
            ready!(writer.poll_write_vectored(context, &slices))?
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        let of_front = written.min(self.front.len() - self.front_at);
        self.front_at += of_front;
        written -= of_front;
        let of_chunk = written.min(self.chunk.len());
        self.chunk.advance(of_chunk);
        self.tail = &self.tail[written - of_chunk..];
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use proptest::prelude::*;

    use super::*;

    /// Takes as many bytes at a time as its list says, then any number.
    #[derive(Debug)]
    struct Narrow {
        takes: Vec<usize>,
        written: Vec<u8>,
    }

    impl AsyncWrite for Narrow {
        fn poll_write(
            self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(context, &[IoSlice::new(bytes)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let taken = self.takes.pop().unwrap_or(usize::MAX);
            let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter()).copied().take(taken).collect();
            self.written.extend_from_slice(&bytes);
            Poll::Ready(Ok(bytes.len()))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// A body that gives these pieces.
    struct Pieces(std::collections::VecDeque<Vec<u8>>);

    impl http_body::Body for Pieces {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<Bytes>, BodyError>>> {
            Poll::Ready(self.0.pop_front().map(|piece| Ok(http_body::Frame::data(piece.into()))))
        }
    }

    fn written(pieces: &[Vec<u8>], framing: WriteFraming, takes: Vec<usize>) -> Vec<u8> {
        let stream = Box::pin(Pieces(pieces.iter().cloned().collect()));
        let mut message =
            MessageWriter::new(b"head\r\n\r\n".to_vec(), Body::Stream { stream, length: None }, framing);
        let mut narrow = Narrow { takes, written: Vec::new() };
        let done = message.poll_write(&mut Context::from_waker(Waker::noop()), &mut narrow);
        assert!(matches!(done, Poll::Ready(Ok(()))), "{done:?}");
        narrow.written
    }

    proptest! {
        /// A write that ended just before a chunk's closing line break lost that line break.
        #[test]
        fn however_little_is_taken_at_a_time_the_message_is_the_same(
            sizes in prop::collection::vec(prop_oneof![1_usize..20, 1000_usize..1100, Just(5000_usize)], 0..6),
            takes in prop::collection::vec(prop_oneof![1_usize..12, 1000_usize..1100, Just(5000_usize), Just(5006)], 0..40),
        ) {
            let pieces: Vec<Vec<u8>> = (b'a'..).zip(sizes).map(|(byte, size)| vec![byte; size]).collect();
            let whole = pieces.concat();
            for framing in [WriteFraming::Chunked, WriteFraming::Fixed(whole.len() as u64), WriteFraming::UntilClose] {
                let at_once = written(&pieces, framing, Vec::new());
                prop_assert_eq!(&written(&pieces, framing, takes.clone()), &at_once);
                let body: Vec<u8> = match framing {
                    WriteFraming::Chunked => {
                        let chunk = |piece: &Vec<u8>| [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
                        pieces.iter().flat_map(chunk).chain(*b"0\r\n\r\n").collect()
                    }
                    _ => whole.clone(),
                };
                prop_assert_eq!(at_once, [&b"head\r\n\r\n"[..], &body].concat());
            }
        }
    }
}
