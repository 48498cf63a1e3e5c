//! The memory before a sink: frames in order, bounded. Handing over never waits; what finds no room is dropped and counted.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

/// Frames are gathered to pieces of about as many bytes.
const PIECE_BYTES: usize = 256 * 1024;

/// Whole frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) bytes: Bytes,
    /// How many frames.
    pub(super) messages: u64,
}

#[derive(Debug, Default)]
struct Waiting {
    pieces: VecDeque<Piece>,
    last: Vec<u8>,
    last_messages: u64,
    /// All of it.
    bytes: usize,
}

impl Waiting {
    fn close_last(&mut self) {
        if self.last_messages > 0 {
            let bytes = Bytes::from(std::mem::take(&mut self.last));
            self.pieces.push_back(Piece { bytes, messages: std::mem::take(&mut self.last_messages) });
        }
    }
}

/// Frames that wait for their sink's task.
#[derive(Debug)]
pub(super) struct Queue {
    bytes_max: usize,
    waiting: Mutex<Waiting>,
    filled: Notify,
    /// Messages for which there was no room, and that nobody has counted yet.
    dropped: AtomicU64,
}

impl Queue {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, waiting: Mutex::default(), filled: Notify::new(), dropped: AtomicU64::new(0) }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands over frames. One short lock and a copy; if there is no room they are dropped, all of them.
    pub(super) fn push(&self, frames: &[u8], messages: u64) {
        let was_empty = {
            let mut waiting = self.waiting();
            if waiting.bytes + frames.len() > self.bytes_max {
                drop(waiting);
                self.dropped.fetch_add(messages, Ordering::Relaxed);
                return;
            }
            let was_empty = waiting.bytes == 0;
            if waiting.last.len() + frames.len() > PIECE_BYTES {
                waiting.close_last();
            }
            waiting.last.extend_from_slice(frames);
            waiting.last_messages += messages;
            waiting.bytes += frames.len();
            was_empty
        };
        if was_empty {
            self.filled.notify_one();
        }
    }

    /// Takes the oldest frames.
    pub(super) fn pop(&self) -> Option<Piece> {
        let mut waiting = self.waiting();
        if waiting.pieces.is_empty() {
            waiting.close_last();
        }
        let piece = waiting.pieces.pop_front()?;
        waiting.bytes -= piece.bytes.len();
        Some(piece)
    }

    /// Puts frames back before all others, in their order. There is room for them whatever the bound: they were here.
    pub(super) fn put_back(&self, pieces: Vec<Piece>) {
        let mut waiting = self.waiting();
        for piece in pieces.into_iter().rev() {
            waiting.bytes += piece.bytes.len();
            waiting.pieces.push_front(piece);
        }
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.waiting().bytes
    }

    /// True if less than half of the room is left.
    pub(super) fn is_filling(&self) -> bool {
        self.bytes() > self.bytes_max / 2
    }

    /// Messages that were dropped since this was asked last.
    pub(super) fn take_dropped(&self) -> u64 {
        self.dropped.swap(0, Ordering::Relaxed)
    }

    /// Waits until frames came after there were none. Cancel-safe; may return without a reason.
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(bytes: &'static [u8]) -> Piece {
        Piece { bytes: Bytes::from_static(bytes), messages: 1 }
    }

    #[test]
    fn frames_come_out_in_order_and_in_large_pieces() {
        let queue = Queue::new(10 * PIECE_BYTES);
        let large = vec![b'x'; PIECE_BYTES];
        queue.push(b"1 a", 1);
        queue.push(b"1 b", 1);
        queue.push(&large, 5);
        assert_eq!(queue.bytes(), PIECE_BYTES + 6);
        assert_eq!(queue.pop(), Some(Piece { bytes: Bytes::from_static(b"1 a1 b"), messages: 2 }));
        queue.put_back(vec![piece(b"1 c"), piece(b"1 d")]);
        assert_eq!(queue.pop(), Some(piece(b"1 c")));
        assert_eq!(queue.pop(), Some(piece(b"1 d")));
        assert_eq!(queue.pop().map(|piece| piece.messages), Some(5));
        assert_eq!((queue.pop(), queue.bytes()), (None, 0));
    }

    #[test]
    fn what_finds_no_room_is_dropped_and_counted() {
        let queue = Queue::new(10);
        queue.push(b"12345678", 3);
        assert!(queue.is_filling());
        queue.push(b"abc", 2);
        queue.push(b"de", 1);
        assert_eq!(queue.take_dropped(), 2);
        assert_eq!(queue.take_dropped(), 0);
        assert_eq!(queue.pop(), Some(Piece { bytes: Bytes::from_static(b"12345678de"), messages: 4 }));
    }

    #[tokio::test]
    async fn whoever_waits_is_told_also_if_frames_came_before() {
        let queue = Queue::new(10);
        queue.push(b"x", 1);
        queue.filled().await;
        queue.pop();
        let ((), ()) = tokio::join!(queue.filled(), async { queue.push(b"y", 1) });
    }
}
