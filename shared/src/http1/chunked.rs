//! The chunked transfer coding (RFC 9112, 7.1), both ways. Pure.

use bytes::{Bytes, BytesMut};

/// Longest chunk-size line with its extensions, in bytes.
const SIZE_LINE_BYTES_MAX: usize = 256;
/// Longest trailer section in bytes. Trailers are read and dropped.
const TRAILER_BYTES_MAX: usize = 8 * 1024;

/// A body that breaks the coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed chunked body: {0}")]
pub struct ChunkedError(&'static str);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size,
    Data { left_bytes: u64 },
    DataEnd,
    Trailer { seen_bytes: usize },
    Done,
}

/// What [`ChunkedDecoder::decode`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// A piece of the body.
    Data(Bytes),
    /// More input is needed.
    NeedMore,
    /// The body has ended; what is left of the input follows it.
    End,
}

/// Takes chunk framing off a body.
#[derive(Debug, Clone)]
pub struct ChunkedDecoder {
    state: State,
}

impl Default for ChunkedDecoder {
    fn default() -> Self {
        Self { state: State::Size }
    }
}

impl ChunkedDecoder {
    /// Takes what it can off the front of `input`. Data is split off without a copy.
    ///
    /// # Errors
    /// Bad sizes, bare line feeds, sizes or trailers beyond their limits.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Decoded, ChunkedError> {
        loop {
            match self.state {
                State::Size => {
                    let Some(line) = take_line(input, SIZE_LINE_BYTES_MAX)? else {
                        return Ok(Decoded::NeedMore);
                    };
                    let size = parse_size(&line)?;
                    self.state = if size == 0 {
                        State::Trailer { seen_bytes: 0 }
                    } else {
                        State::Data { left_bytes: size }
                    };
                }
                State::Data { left_bytes } => {
                    if input.is_empty() {
                        return Ok(Decoded::NeedMore);
                    }
                    let taken = usize::try_from(left_bytes).unwrap_or(usize::MAX).min(input.len());
                    let left_bytes = left_bytes - taken as u64;
                    self.state = if left_bytes == 0 { State::DataEnd } else { State::Data { left_bytes } };
                    return Ok(Decoded::Data(input.split_to(taken).freeze()));
                }
                State::DataEnd => {
                    if input.len() < 2 {
                        return Ok(Decoded::NeedMore);
                    }
                    if input.split_to(2) != b"\r\n"[..] {
                        return Err(ChunkedError("a chunk is longer than its size"));
                    }
                    self.state = State::Size;
                }
                State::Trailer { seen_bytes } => {
                    let Some(line) = take_line(input, TRAILER_BYTES_MAX)? else {
                        return Ok(Decoded::NeedMore);
                    };
                    let seen_bytes = seen_bytes + line.len() + 2;
                    if line.is_empty() {
                        self.state = State::Done;
                    } else if seen_bytes > TRAILER_BYTES_MAX {
                        return Err(ChunkedError("the trailer is too long"));
                    } else {
                        self.state = State::Trailer { seen_bytes };
                    }
                }
                State::Done => return Ok(Decoded::End),
            }
        }
    }

    /// True once the whole body was decoded.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }
}

/// Takes a line that ends in CR LF off the front, without its end.
fn take_line(input: &mut BytesMut, bytes_max: usize) -> Result<Option<BytesMut>, ChunkedError> {
    match memchr::memchr(b'\n', &input[..input.len().min(bytes_max)]) {
        None if input.len() >= bytes_max => Err(ChunkedError("a line is too long")),
        None => Ok(None),
        Some(at) if at == 0 || input[at - 1] != b'\r' => {
            Err(ChunkedError("a line ends without carriage return"))
        }
        Some(at) => {
            let mut line = input.split_to(at + 1);
            line.truncate(at - 1);
            Ok(Some(line))
        }
    }
}

/// Parses `chunk-size [ chunk-ext ]`.
fn parse_size(line: &[u8]) -> Result<u64, ChunkedError> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    if digits == 0 || digits > 15 {
        return Err(ChunkedError("bad chunk size"));
    }
    let extension = &line[digits..];
    if !(extension.is_empty() || extension[0] == b';')
        || extension.iter().any(|&byte| byte != b'\t' && (byte < b' ' || byte == 0x7f))
    {
        return Err(ChunkedError("bad chunk extension"));
    }
    Ok(line[..digits].iter().fold(0, |size, &byte| {
        size * 16 + u64::from(char::from(byte).to_digit(16).expect("checked to be a hex digit"))
    }))
}

/// Puts the frame of one chunk around `data`; the empty slice writes nothing, since it would end the body.
pub fn encode_chunk(data: &[u8], out: &mut Vec<u8>) {
    if data.is_empty() {
        return;
    }
    encode_size(data.len(), out);
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// Writes the size line of a chunk.
pub fn encode_size(bytes: usize, out: &mut Vec<u8>) {
    let digits = (usize::BITS - bytes.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        out.push(b"0123456789abcdef"[(bytes >> (digit * 4)) & 0xf]);
    }
    out.extend_from_slice(b"\r\n");
}

/// What ends a chunked body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    fn decode_all(pieces: &[&[u8]]) -> Result<(Vec<u8>, bool, Vec<u8>), ChunkedError> {
        let (mut decoder, mut input, mut body) = (ChunkedDecoder::default(), BytesMut::new(), Vec::new());
        for piece in pieces {
            input.extend_from_slice(piece);
            while let Decoded::Data(data) = decoder.decode(&mut input)? {
                body.extend_from_slice(&data);
            }
        }
        Ok((body, decoder.is_done(), input.to_vec()))
    }

    #[test]
    fn what_follows_the_body_is_left() {
        let (body, done, rest) = decode_all(&[b"3;x=y\r\nabc\r\n0\r\nT: v\r\n\r\nGET /"]).expect("valid");
        assert_eq!((body.as_slice(), done, rest.as_slice()), (&b"abc"[..], true, &b"GET /"[..]));
    }

    #[test]
    fn broken_framing_is_refused() {
        for body in [
            &b"x\r\n"[..],
            b"\r\n",
            b"3\nabc",
            b"3\r\nabcd\r\n",
            b"-1\r\n",
            b"0x3\r\nabc\r\n",
            b"3 \r\nabc\r\n",
            b"ffffffffffffffff\r\n",
            b"0\r\nT: v\n\r\n",
            b"3;\x01\r\nabc\r\n",
        ] {
            assert!(decode_all(&[body]).is_err(), "{:?}", String::from_utf8_lossy(body));
        }
        assert!(decode_all(&[&[b'0'; 300]]).is_err());
    }

    #[test]
    fn sizes_are_written_in_hexadecimal() {
        for (size, text) in [(0, "0\r\n"), (9, "9\r\n"), (16, "10\r\n"), (0xabcde, "abcde\r\n")] {
            let mut out = Vec::new();
            encode_size(size, &mut out);
            assert_eq!(out, text.as_bytes());
        }
    }

    proptest::proptest! {
        #[test]
        fn a_body_survives_coding_however_it_is_cut(
            chunks: Vec<Vec<u8>>,
            cuts in proptest::collection::vec(1usize..7, 1..50),
        ) {
            let mut coded = Vec::new();
            for chunk in &chunks {
                encode_chunk(chunk, &mut coded);
            }
            coded.extend_from_slice(LAST_CHUNK);
            let mut pieces = Vec::new();
            let mut rest = coded.as_slice();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, tail) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = tail;
            }
            let (body, done, left) = decode_all(&pieces).expect("valid");
            proptest::prop_assert_eq!(body, chunks.concat());
            proptest::prop_assert!(done && left.is_empty());
        }

        #[test]
        fn any_bytes_are_decoded_or_refused_without_a_panic(bytes: Vec<u8>) {
            drop(decode_all(&[&bytes]));
        }
    }
}
