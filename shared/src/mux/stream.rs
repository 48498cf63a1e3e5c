//! A stream in the hands of whoever reads and writes it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};

use super::StreamError;
use super::connection::Connection;

/// A connection, as its driver and its streams share it.
#[derive(Debug)]
pub(super) struct Shared(Mutex<Connection>);

impl Shared {
    pub(super) fn new(connection: Connection) -> Arc<Self> {
        Arc::new(Self(Mutex::new(connection)))
    }

    /// Never contended: all who take it are on one thread.
    pub(super) fn lock(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room that is made at once for bytes that came. Twice a frame, so that at least half of it is used; and far below the
/// size from which the allocator asks the kernel each time.
const CHUNK_BYTES: usize = 32 << 10;

/// Bytes that came and were not taken. Copied, so that a stream keeps little more than these: what is read for many
/// streams at once would be kept whole for the smallest piece of it.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// Came first; of a small message it is all.
    first: Bytes,
    more: VecDeque<BytesMut>,
}

impl Inbox {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.first.is_empty() && self.more.is_empty() {
            self.first = Bytes::copy_from_slice(bytes);
            return;
        }
        match self.more.back_mut() {
            Some(last) if last.capacity() - last.len() >= bytes.len() => last.extend_from_slice(bytes),
            _ => {
                let mut chunk = BytesMut::with_capacity(CHUNK_BYTES.max(bytes.len()));
                chunk.extend_from_slice(bytes);
                self.more.push_back(chunk);
            }
        }
    }

    /// The next piece.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        if self.first.is_empty() {
            self.more.pop_front().map(BytesMut::freeze)
        } else {
            Some(std::mem::take(&mut self.first))
        }
    }
}

/// A stream. Dropped before its end it is given up, and the peer is told.
#[derive(Debug)]
pub(super) struct Stream {
    shared: Arc<Shared>,
    id: u32,
}

impl Stream {
    pub(super) fn new(shared: Arc<Shared>, id: u32) -> Self {
        Self { shared, id }
    }

    /// What the peer sends, for another owner. Of use while this stream lives.
    pub(super) fn reader(&self) -> StreamReader {
        StreamReader { shared: Arc::clone(&self.shared), id: self.id }
    }

    pub(super) fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, StreamError>>> {
        self.shared.lock().poll_receive(self.id, context)
    }

    pub(super) fn has_all(&self) -> bool {
        self.shared.lock().has_all(self.id)
    }

    pub(super) fn poll_send(
        &mut self,
        chunk: &mut Bytes,
        end: bool,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), StreamError>> {
        self.shared.lock().poll_send(self.id, chunk, end, context)
    }

    pub(super) fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.shared.lock().poll_gone(self.id, context)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.lock().drop_stream(self.id);
    }
}

/// Reads a stream that somebody else owns.
#[derive(Debug)]
pub(super) struct StreamReader {
    shared: Arc<Shared>,
    id: u32,
}

impl StreamReader {
    pub(super) fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, StreamError>>> {
        self.shared.lock().poll_receive(self.id, context)
    }
}
