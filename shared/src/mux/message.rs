//! HTTP messages on streams: a head as text, then the body as it is.

use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};

use super::StreamError;
use super::stream::Stream;
use crate::body::Body;
use crate::http1::buffer::WriteError;
use crate::http1::head::{HeadError, HeadLimits, find_end};

/// A body up to this size goes with its head in one frame.
const WITH_HEAD_BYTES_MAX: usize = 4 << 10;

/// A message on its way out.
pub(super) struct Outgoing {
    chunk: Bytes,
    body: Body,
    /// What is left of a declared length, in bytes.
    left_bytes: Option<u64>,
    sent_bytes: u64,
    done: bool,
}

impl Outgoing {
    /// Will send a whole head and the body behind it.
    pub(super) fn new(mut head: Vec<u8>, mut body: Body) -> Self {
        let left_bytes = if let Body::Stream { length, .. } = &body { *length } else { None };
        if let Body::Full(bytes) = &body
            && bytes.len() <= WITH_HEAD_BYTES_MAX
        {
            head.extend_from_slice(bytes);
            body = Body::Empty;
        }
        Self { chunk: Bytes::from(head), body, left_bytes, sent_bytes: 0, done: false }
    }

    /// The bytes that are to be sent first, and whether nothing follows.
    pub(super) fn first(&mut self) -> (&mut Bytes, bool) {
        let is_all = matches!(self.body, Body::Empty);
        // A first frame takes all of a chunk that is not longer than it may be; if not, the end is sent later.
        (&mut self.chunk, is_all)
    }

    /// Notes that the first frame was also the last.
    pub(super) fn sent_first(&mut self) {
        self.done = self.chunk.is_empty() && matches!(self.body, Body::Empty);
    }

    /// How many bytes are on their way, if more wait for the peer; `None` while the body's source is in the way.
    pub(super) fn held_up_after(&self) -> Option<u64> {
        (!self.chunk.is_empty()).then_some(self.sent_bytes)
    }

    /// Sends what can be sent. Ready when all of the message is on its way.
    pub(super) fn poll(
        &mut self,
        stream: &mut Stream,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), WriteError>> {
        while !self.done {
            let end = matches!(self.body, Body::Empty);
            if end || !self.chunk.is_empty() {
                if end && self.left_bytes.is_some_and(|left| left > 0) {
                    return Poll::Ready(Err(WriteError::Length));
                }
                let waiting_bytes = self.chunk.len();
                let sent = stream.poll_send(&mut self.chunk, end, context);
                self.sent_bytes += (waiting_bytes - self.chunk.len()) as u64;
                ready!(sent).map_err(|error| WriteError::Io(error.into()))?;
                self.done = end;
                continue;
            }
            match ready!(self.body.poll_chunk(context)) {
                None => self.body = Body::Empty,
                Some(chunk) => {
                    self.chunk = chunk?;
                    if let Some(left) = &mut self.left_bytes {
                        *left = left.checked_sub(self.chunk.len() as u64).ok_or(WriteError::Length)?;
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Why there is no head.
#[derive(Debug)]
pub(super) enum NoHead {
    /// It is not HTTP, or too large.
    Bad(HeadError),
    /// The stream broke off.
    Broken(StreamError),
    /// The stream ended.
    Ended,
}

/// A head on its way in.
#[derive(Debug, Default)]
pub(super) struct IncomingHead {
    /// What came, if it was not all.
    begun: BytesMut,
}

impl IncomingHead {
    /// True once a part of it has come.
    pub(super) fn is_begun(&self) -> bool {
        !self.begun.is_empty()
    }

    /// The head, and what came behind it.
    pub(super) fn poll(
        &mut self,
        stream: &mut Stream,
        limits: &HeadLimits,
        context: &mut Context<'_>,
    ) -> Poll<Result<(Bytes, Bytes), NoHead>> {
        loop {
            let mut piece = match ready!(stream.poll_receive(context)) {
                Some(piece) => piece.map_err(NoHead::Broken)?,
                None => return Poll::Ready(Err(NoHead::Ended)),
            };
            let seen_bytes = self.begun.len();
            if seen_bytes > 0 {
                self.begun.extend_from_slice(&piece);
                piece = Bytes::new();
            }
            let all = if seen_bytes > 0 { &self.begun[..] } else { &piece[..] };
            match find_end(all, seen_bytes, limits).map_err(NoHead::Bad)? {
                Some(end) if seen_bytes > 0 => {
                    let head = self.begun.split_to(end).freeze();
                    return Poll::Ready(Ok((head, std::mem::take(&mut self.begun).freeze())));
                }
                Some(end) => {
                    let head = piece.split_to(end);
                    return Poll::Ready(Ok((head, piece)));
                }
                None => self.begun.extend_from_slice(&piece),
            }
        }
    }
}
