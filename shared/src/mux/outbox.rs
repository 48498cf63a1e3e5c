//! Bytes on their way out of a connection: appended by many, written by its driver in as few system calls as can be.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::AsyncWrite;

/// Longer pieces are not copied but written from where they are.
const COPIED_BYTES_MAX: usize = 4 << 10;
/// Most pieces that one system call writes.
const SLICES_MAX: usize = 32;
/// A buffer that grew beyond this is let go once it was written.
const KEPT_BYTES_MAX: usize = 128 << 10;

/// Bytes in the order in which they are written.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Older than `tail`.
    pieces: VecDeque<Bytes>,
    tail: Vec<u8>,
    /// So much of `tail` is written; only while `pieces` is empty.
    tail_at: usize,
    waiting_bytes: usize,
    written_bytes: u64,
}

impl Outbox {
    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.waiting_bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting_bytes == 0
    }

    /// Bytes written since the beginning.
    pub(super) fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// The place, counted since the beginning, of the next byte that is pushed.
    pub(super) fn position(&self) -> u64 {
        self.written_bytes + self.waiting_bytes as u64
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.waiting_bytes += bytes.len();
        self.tail.extend_from_slice(bytes);
    }

    /// Pushes a piece, without a copy if it is large.
    pub(super) fn push_piece(&mut self, piece: Bytes) {
        if piece.len() <= COPIED_BYTES_MAX {
            return self.push(&piece);
        }
        self.waiting_bytes += piece.len();
        if self.tail_at < self.tail.len() {
            let mut before = Bytes::from(std::mem::take(&mut self.tail));
            before.advance(std::mem::take(&mut self.tail_at));
            self.pieces.push_back(before);
        }
        self.pieces.push_back(piece);
    }

    /// Forgets what waits.
    pub(super) fn clear(&mut self) {
        *self = Self { written_bytes: self.written_bytes, ..Self::default() };
    }

    /// Writes until nothing waits.
    pub(super) fn poll_write<W: AsyncWrite + Unpin>(
        &mut self,
        context: &mut Context<'_>,
        writer: &mut W,
    ) -> Poll<io::Result<()>> {
        while self.waiting_bytes > 0 {
            let writer = Pin::new(&mut *writer);
            let written = if self.pieces.is_empty() {
                ready!(writer.poll_write(context, &self.tail[self.tail_at..]))?
            } else {
                let mut slices = [IoSlice::new(b""); SLICES_MAX];
                let mut used = 0;
                for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                    *slice = IoSlice::new(piece);
                    used += 1;
                }
                if used < SLICES_MAX {
                    slices[used] = IoSlice::new(&self.tail);
                    used += 1;
                }
                ready!(writer.poll_write_vectored(context, &slices[..used]))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut written: usize) {
        self.waiting_bytes -= written;
        self.written_bytes += written as u64;
        while let Some(piece) = self.pieces.front_mut() {
            let of_piece = written.min(piece.len());
            piece.advance(of_piece);
            written -= of_piece;
            if !piece.is_empty() {
                return;
            }
            self.pieces.pop_front();
        }
        self.tail_at += written;
        if self.tail_at == self.tail.len() {
            self.tail_at = 0;
            if self.tail.capacity() > KEPT_BYTES_MAX { self.tail = Vec::new() } else { self.tail.clear() }
        } else if self.tail_at > KEPT_BYTES_MAX && self.tail_at > self.tail.len() / 2 {
            // A peer that is always a little behind must not make it grow for ever.
            self.tail.drain(..std::mem::take(&mut self.tail_at));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Takes so many bytes a write.
    struct Narrow(usize, Vec<u8>);

    impl AsyncWrite for Narrow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let taken = bytes.len().min(self.0);
            self.1.extend_from_slice(&bytes[..taken]);
            Poll::Ready(Ok(taken))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let mut left = self.0;
            for slice in slices {
                let taken = slice.len().min(left);
                self.1.extend_from_slice(&slice[..taken]);
                left -= taken;
            }
            Poll::Ready(Ok(self.0 - left))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    proptest! {
        #[test]
        fn bytes_go_out_in_order_whatever_the_writer_takes(
            sizes in prop::collection::vec(0_usize..12_000, 1..60),
            narrow in 1_usize..40_000,
        ) {
            let (mut outbox, mut all) = (Outbox::default(), Vec::new());
            let mut writer = Narrow(narrow, Vec::new());
            let mut context = Context::from_waker(std::task::Waker::noop());
            for (number, size) in sizes.into_iter().enumerate() {
                let piece = vec![number as u8; size];
                all.extend_from_slice(&piece);
                outbox.push_piece(piece.into());
                prop_assert_eq!(outbox.position(), all.len() as u64);
                if number % 7 == 6 {
                    prop_assert!(outbox.poll_write(&mut context, &mut writer).is_ready());
                    prop_assert!(outbox.is_empty());
                }
            }
            prop_assert!(outbox.poll_write(&mut context, &mut writer).is_ready());
            prop_assert_eq!(outbox.written_bytes(), all.len() as u64);
            prop_assert!(writer.1 == all);
        }
    }
}
