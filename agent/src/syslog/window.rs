//! What was written to a sink and may not have arrived: kept until it is safe to think that the sink has it.
//!
//! Syslog over a stream has no acknowledgement (ADR 0012). What is kept is what the peer's kernel has not acknowledged,
//! and of the rest what may lie unread in the peer's socket: the newest [`BYTES_MAX`] of the last [`AGE`]. Pure: the caller
//! tells how much is not acknowledged and how much time passed.

use std::collections::VecDeque;
use std::time::Duration;

use super::queue::Piece;
use super::spool::Position;

/// More bytes than this behind a piece prove that the peer has read it: they fit neither into its receive buffer (6 MiB, the
/// default bound of `net.ipv4.tcp_rmem`) nor into our send buffer.
pub(super) const BYTES_MAX: usize = 8 << 20;
/// A peer that reads has read, after this long, what its kernel acknowledged, and has done something about it.
const AGE: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Sent {
    piece: Piece,
    /// Where the spool goes on after it, if it is there.
    spooled: Option<Position>,
    /// The window's time when it was seen to be acknowledged.
    acknowledged: Option<Duration>,
}

/// Pieces that were written to the present connection, oldest first.
#[derive(Debug, Default)]
pub(super) struct Window {
    sent: VecDeque<Sent>,
    bytes: usize,
    /// Time during which the peer took what was there to take.
    clock: Duration,
    written_bytes: u64,
    acknowledged_bytes: u64,
}

/// Pieces of a window whose connection is lost.
#[derive(Debug, Default)]
pub(super) struct Unsure {
    /// Those that are not in the spool, in order.
    pub(super) pieces: Vec<Piece>,
    /// Messages in all of them.
    pub(super) messages: u64,
}

impl Window {
    /// A piece is about to be written.
    pub(super) fn writing(&mut self, piece: Piece, spooled: Option<Position>) {
        self.bytes += piece.bytes.len();
        self.written_bytes += piece.bytes.len() as u64;
        self.sent.push_back(Sent { piece, spooled, acknowledged: None });
    }

    /// The kernel holds `unacknowledged` bytes; `passed` since this was told last. A time in which bytes waited and none was
    /// taken does not count: the peer is stuck, and has perhaps not read what it acknowledged before. Returns how far the
    /// spool is done with.
    pub(super) fn look(&mut self, unacknowledged: usize, passed: Duration) -> Option<Position> {
        let acknowledged_bytes = self.written_bytes.saturating_sub(unacknowledged as u64);
        if unacknowledged == 0 || acknowledged_bytes > self.acknowledged_bytes {
            self.clock += passed;
        }
        self.acknowledged_bytes = self.acknowledged_bytes.max(acknowledged_bytes);
        let mut behind = 0;
        for sent in self.sent.iter_mut().rev() {
            if behind >= unacknowledged {
                if sent.acknowledged.is_some() {
                    break;
                }
                sent.acknowledged = Some(self.clock);
            }
            behind += sent.piece.bytes.len();
        }
        let clock = self.clock;
        self.let_go(|sent, _| sent.acknowledged.is_some_and(|then| clock.saturating_sub(then) >= AGE))
    }

    /// Lets go of what so much was written behind that it must have been read. Returns how far the spool is done with.
    pub(super) fn shrink(&mut self) -> Option<Position> {
        self.let_go(|sent, bytes| bytes - sent.piece.bytes.len() >= BYTES_MAX)
    }

    /// All of it has arrived.
    pub(super) fn arrived(&mut self) -> Option<Position> {
        self.let_go(|_, _| true)
    }

    fn let_go(&mut self, goes: impl Fn(&Sent, usize) -> bool) -> Option<Position> {
        let mut done = None;
        while self.sent.front().is_some_and(|sent| goes(sent, self.bytes)) {
            let sent = self.sent.pop_front().expect("there is a first one");
            self.bytes -= sent.piece.bytes.len();
            done = sent.spooled.or(done);
        }
        done
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// The oldest piece that is not in the spool.
    pub(super) fn first_unspooled(&self) -> Option<&Piece> {
        self.sent.iter().find(|sent| sent.spooled.is_none()).map(|sent| &sent.piece)
    }

    /// That piece is in the spool now.
    pub(super) fn first_spooled(&mut self, position: Position) {
        if let Some(sent) = self.sent.iter_mut().find(|sent| sent.spooled.is_none()) {
            sent.spooled = Some(position);
        }
    }

    /// The connection is lost.
    pub(super) fn lost(&mut self) -> Unsure {
        let mut unsure = Unsure::default();
        for sent in std::mem::take(self).sent {
            unsure.messages += sent.piece.messages;
            if sent.spooled.is_none() {
                unsure.pieces.push(sent.piece);
            }
        }
        unsure
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn piece(length: usize) -> Piece {
        Piece { bytes: Bytes::from(vec![b'x'; length]), messages: 1 }
    }

    fn position(offset: u64) -> Position {
        Position { segment: 1, offset }
    }

    #[test]
    fn what_is_acknowledged_and_old_goes_and_the_spool_with_it() {
        let mut window = Window::default();
        window.writing(piece(10), Some(position(10)));
        window.writing(piece(10), Some(position(20)));
        assert_eq!(window.look(10, Duration::ZERO), None);
        assert_eq!(window.look(10, AGE), None, "time without progress does not count");
        assert_eq!(window.look(5, AGE), Some(position(10)));
        assert_eq!(window.look(0, Duration::ZERO), None);
        assert_eq!(window.look(0, AGE), Some(position(20)));
        assert!(window.is_empty());
    }

    #[test]
    fn what_may_not_have_arrived_comes_back_in_order() {
        let mut window = Window::default();
        window.writing(piece(1), Some(position(1)));
        window.writing(piece(2), None);
        window.writing(piece(3), None);
        assert_eq!(window.first_unspooled().map(|piece| piece.bytes.len()), Some(2));
        window.first_spooled(position(3));
        assert_eq!(window.first_unspooled().map(|piece| piece.bytes.len()), Some(3));
        let unsure = window.lost();
        assert_eq!((unsure.messages, unsure.pieces), (3, vec![piece(3)]));
        assert!(window.is_empty() && window.lost().pieces.is_empty());
    }

    proptest! {
        #[test]
        fn nothing_unacknowledged_goes_and_the_rest_is_bounded(
            steps in prop::collection::vec((1_usize..(3 << 20), 0_usize..(1 << 20), 0_u64..3000), 1..40)
        ) {
            let mut window = Window::default();
            for (length, unacknowledged, millis) in steps {
                window.writing(piece(length), None);
                window.look(unacknowledged, Duration::from_millis(millis));
                prop_assert!(window.bytes >= unacknowledged.min(length));
                window.shrink();
                prop_assert!(window.bytes >= unacknowledged.min(length));
                prop_assert!(window.bytes < BYTES_MAX + (3 << 20));
                prop_assert_eq!(window.bytes, window.sent.iter().map(|sent| sent.piece.bytes.len()).sum::<usize>());
            }
        }
    }
}
