//! Frames as bytes: a head of eight bytes and a payload.
//!
//! | bytes | holds |
//! |---|---|
//! | 0..3 | length of the payload, big endian |
//! | 3 | [`Kind`] |
//! | 4..8 | the stream's id, big endian |

use super::Violation;

/// Length of a frame's head in bytes.
pub(super) const HEAD_BYTES: usize = 8;
/// Longest payload in bytes. With its head it fills one TLS record.
pub(super) const PAYLOAD_BYTES_MAX: usize = (16 << 10) - HEAD_BYTES;

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Bytes of a stream, at least one.
    Data = 0,
    /// The last bytes of a stream, perhaps none.
    End = 1,
    /// The sender gives the stream up. No payload.
    Reset = 2,
    /// The sender took bytes of the stream; the payload says how many more may come.
    Credit = 3,
    /// The sender takes no stream above this id; the payload says why, in words.
    GoAway = 4,
}

/// A frame's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    pub(super) stream: u32,
    pub(super) payload_bytes: usize,
}

impl Head {
    pub(super) fn encode(self) -> [u8; HEAD_BYTES] {
        debug_assert!(self.payload_bytes <= PAYLOAD_BYTES_MAX);
        let word = (self.payload_bytes as u64) << 40 | (self.kind as u64) << 32 | u64::from(self.stream);
        word.to_be_bytes()
    }

    /// Reads the head at the front of `input`; `None` if it is not there yet.
    ///
    /// # Errors
    /// A kind that is not known, or a payload of a length that this kind cannot have.
    pub(super) fn decode(input: &[u8]) -> Result<Option<Self>, Violation> {
        let Some(bytes) = input.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        let word = u64::from_be_bytes(*bytes);
        let payload_bytes = (word >> 40) as usize;
        let (kind, fits) = match (word >> 32) as u8 {
            0 => (Kind::Data, (1..=PAYLOAD_BYTES_MAX).contains(&payload_bytes)),
            1 => (Kind::End, payload_bytes <= PAYLOAD_BYTES_MAX),
            2 => (Kind::Reset, payload_bytes == 0),
            3 => (Kind::Credit, payload_bytes == size_of::<u32>()),
            4 => (Kind::GoAway, payload_bytes <= super::REASON_BYTES_MAX),
            kind => return Err(Violation::Kind { kind }),
        };
        if !fits {
            return Err(Violation::Length { payload_bytes });
        }
        Ok(Some(Self { kind, stream: word as u32, payload_bytes }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_that_a_kind_cannot_have_are_refused() {
        let mut head = Head { kind: Kind::Data, stream: 1, payload_bytes: 1 }.encode();
        assert!(Head::decode(&head).is_ok());
        head[2] = 0;
        assert_eq!(Head::decode(&head), Err(Violation::Length { payload_bytes: 0 }), "empty data");
        head[..3].fill(0xff);
        assert_eq!(Head::decode(&head), Err(Violation::Length { payload_bytes: 0x00ff_ffff }));
        head[3] = 5;
        assert_eq!(Head::decode(&head), Err(Violation::Kind { kind: 5 }));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(stream: u32, payload_bytes in 1..=PAYLOAD_BYTES_MAX, end: bool) {
            let kind = if end { Kind::End } else { Kind::Data };
            let head = Head { kind, stream, payload_bytes };
            prop_assert_eq!(Head::decode(&head.encode()), Ok(Some(head)));
            prop_assert_eq!(Head::decode(&head.encode()[..HEAD_BYTES - 1]), Ok(None));
        }
    }
}
