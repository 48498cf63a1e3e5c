//! A record of a spool's segment: `length u32 | messages u32 | checksum u64 | frames`, little endian.
//!
//! The checksum is XXH3 of length, messages and frames: a record that was torn by a crash is told from a whole one.

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use crate::syslog::queue::Piece;

/// Length of what stands before the frames, in bytes.
pub(super) const HEAD_BYTES: usize = 16;
/// Longest frames of one record, in bytes: anything longer was not written by Kiln.
pub(super) const FRAMES_BYTES_MAX: usize = 64 << 20;

/// What stands before the frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) frames_bytes: usize,
    messages: u32,
    checksum: u64,
}

impl Head {
    /// Of a record with this piece.
    pub(super) fn of(piece: &Piece) -> Self {
        let messages = u32::try_from(piece.messages).unwrap_or(u32::MAX);
        let frames_bytes = piece.bytes.len();
        Self { frames_bytes, messages, checksum: checksum(frames_bytes as u32, messages, &piece.bytes) }
    }

    pub(super) fn to_bytes(self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[..4].copy_from_slice(&(self.frames_bytes as u32).to_le_bytes());
        bytes[4..8].copy_from_slice(&self.messages.to_le_bytes());
        bytes[8..].copy_from_slice(&self.checksum.to_le_bytes());
        bytes
    }

    /// None if no record begins so.
    pub(super) fn read(bytes: [u8; HEAD_BYTES]) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let (frames_bytes, messages) = (word(0) as usize, word(4));
        let checksum = u64::from_le_bytes(bytes[8..].try_into().expect("eight bytes"));
        (1..=FRAMES_BYTES_MAX).contains(&frames_bytes).then_some(Self { frames_bytes, messages, checksum })
    }

    /// The piece, if these are its frames.
    pub(super) fn piece(self, frames: Vec<u8>) -> Option<Piece> {
        let same = checksum(frames.len() as u32, self.messages, &frames) == self.checksum;
        same.then(|| Piece { bytes: Bytes::from(frames), messages: u64::from(self.messages) })
    }
}

fn checksum(frames_bytes: u32, messages: u32, frames: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&frames_bytes.to_le_bytes());
    hash.update(&messages.to_le_bytes());
    hash.update(frames);
    hash.digest()
}
