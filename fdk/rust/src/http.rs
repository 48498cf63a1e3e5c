//! Reading requests: heads and bodies of HTTP/1.1 (RFC 9112), strictly.

use std::io::{self, BufRead, Read};
use std::ops::Range;

use crate::Result;

/// Longest head in bytes.
const HEAD_BYTES_MAX: u64 = 1024 * 1024;
/// Longest chunk-size line, and longest trailer line, in bytes.
const CHUNK_LINE_BYTES_MAX: u64 = 8 * 1024;
/// Most trailer lines.
const TRAILER_LINES_MAX: usize = 128;
/// Room made ahead of reading a body of declared length, in bytes.
const RESERVED_BYTES_MAX: u64 = 1024 * 1024;

/// A request's head.
#[derive(Debug)]
pub(crate) struct Head {
    /// The head as text; bytes that are not UTF-8 are replaced.
    text: String,
    request_line: Range<usize>,
    /// Names and values within `text`.
    fields: Vec<(Range<usize>, Range<usize>)>,
}

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Fixed { left_bytes: u64 },
    ChunkSize,
    ChunkData { left_bytes: u64 },
    Done,
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed request: {what}"))
}

impl Head {
    /// Reads a head with its empty line; `None` if the peer has closed the connection before it.
    pub(crate) fn read(reader: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut bytes = Vec::with_capacity(1024);
        let mut limited = reader.take(HEAD_BYTES_MAX);
        loop {
            let line_start = bytes.len();
            limited.read_until(b'\n', &mut bytes)?;
            match &bytes[line_start..] {
                [] if line_start == 0 => return Ok(None),
                b"\r\n" => break,
                [.., b'\r', b'\n'] => {}
                _ => return Err(malformed("the head is too long, ends early or has a bare line feed")),
            }
        }
        Self::parse(
            String::from_utf8(bytes)
                .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()),
        )
        .map(Some)
    }

    fn parse(text: String) -> io::Result<Self> {
        let mut fields = Vec::with_capacity(16);
        let mut line_start = 0;
        let mut request_line = 0..0;
        for line in text.split_inclusive("\r\n") {
            let start = line_start;
            line_start += line.len();
            let line = &line[..line.len() - 2];
            if start == 0 {
                request_line = 0..line.len();
            } else if !line.is_empty() {
                let colon = line.find(':').ok_or_else(|| malformed("a header line without colon"))?;
                let (name, value) = (&line[..colon], &line[colon + 1..]);
                if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
                    return Err(malformed("a bad header name"));
                }
                let value_start = start + colon + 1 + (value.len() - value.trim_ascii_start().len());
                fields.push((start..start + colon, value_start..value_start + value.trim_ascii().len()));
            }
        }
        Ok(Self { text, request_line, fields })
    }

    /// Checks that this is a call.
    ///
    /// # Errors
    /// Status and text for the peer.
    pub(crate) fn check_call(&self) -> std::result::Result<(), (u16, &'static str)> {
        match self.text[self.request_line.clone()].split(' ').collect::<Vec<_>>()[..] {
            ["POST", "/call", "HTTP/1.1"] => Ok(()),
            [_, "/call", "HTTP/1.1"] => Err((405, "calls are POST requests")),
            [_, _, "HTTP/1.1"] => Err((404, "calls go to /call")),
            [_, _, _] => Err((505, "calls are HTTP/1.1")),
            _ => Err((400, "malformed request line")),
        }
    }

    /// Header lines as (name, value).
    pub(crate) fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().map(|(name, value)| (&self.text[name.clone()], &self.text[value.clone()]))
    }

    /// The first value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// True if the peer closes the connection after this request.
    pub(crate) fn closes(&self) -> bool {
        self.header("Connection")
            .is_some_and(|value| value.split(',').any(|option| option.trim().eq_ignore_ascii_case("close")))
    }

    /// True if the peer waits for `100 Continue`.
    pub(crate) fn expects_continue(&self) -> bool {
        self.header("Expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
    }

    fn framing(&self) -> io::Result<Framing> {
        let values = |name| {
            self.headers().filter(move |(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value)
        };
        let (mut lengths, mut codings) = (values("Content-Length"), values("Transfer-Encoding"));
        match (lengths.next(), lengths.next(), codings.next(), codings.next()) {
            (None, None, None, None) => Ok(Framing::Done),
            (Some(length), None, None, None) if length.bytes().all(|byte| byte.is_ascii_digit()) => {
                let left_bytes = length.parse().map_err(|_| malformed("a bad Content-Length"))?;
                Ok(Framing::Fixed { left_bytes })
            }
            (None, None, Some(coding), None) if coding.eq_ignore_ascii_case("chunked") => {
                Ok(Framing::ChunkSize)
            }
            _ => Err(malformed("the length of the body is unclear")),
        }
    }
}

/// The body of a request. It is passed over what the function leaves unread.
pub struct Input<'a> {
    reader: &'a mut dyn BufRead,
    framing: Framing,
}

impl std::fmt::Debug for Input<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Input").field("framing", &self.framing).finish_non_exhaustive()
    }
}

impl<'a> Input<'a> {
    pub(crate) fn new(reader: &'a mut dyn BufRead, head: &Head) -> io::Result<Self> {
        Ok(Self { reader, framing: head.framing()? })
    }

    /// Reads what is left of the body into memory.
    ///
    /// # Errors
    /// If the peer breaks off or breaks the framing.
    pub fn read_whole(&mut self) -> Result<Vec<u8>> {
        let mut body = match self.framing {
            Framing::Fixed { left_bytes } => {
                Vec::with_capacity(usize::try_from(left_bytes.min(RESERVED_BYTES_MAX))?)
            }
            _ => Vec::new(),
        };
        self.read_to_end(&mut body)?;
        Ok(body)
    }

    /// Passes over what is left.
    pub(crate) fn drain(&mut self) -> io::Result<()> {
        io::copy(self, &mut io::sink()).map(drop)
    }

    fn read_some(&mut self, left_bytes: u64, buffer: &mut [u8]) -> io::Result<u64> {
        let room = buffer.len().min(usize::try_from(left_bytes).unwrap_or(usize::MAX));
        match self.reader.read(&mut buffer[..room])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            bytes => Ok(bytes as u64),
        }
    }

    /// A line without its end.
    fn read_line(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        (&mut *self.reader).take(CHUNK_LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        match line.strip_suffix(b"\r\n") {
            Some(content) => {
                line.truncate(content.len());
                Ok(line)
            }
            None if line.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            None => Err(malformed("a line of the chunked body is too long or has no proper end")),
        }
    }

    fn next_chunk(&mut self) -> io::Result<Framing> {
        let line = self.read_line()?;
        let line = String::from_utf8_lossy(&line);
        let size = line.split_once(';').map_or(&*line, |(size, _extension)| size);
        if size.is_empty() || size.len() > 15 || !size.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(malformed("a bad chunk size"));
        }
        let left_bytes = u64::from_str_radix(size, 16).map_err(|_| malformed("a bad chunk size"))?;
        if left_bytes > 0 {
            return Ok(Framing::ChunkData { left_bytes });
        }
        for _ in 0..TRAILER_LINES_MAX {
            if self.read_line()?.is_empty() {
                return Ok(Framing::Done);
            }
        }
        Err(malformed("too many trailers"))
    }
}

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match self.framing {
                Framing::Done | Framing::Fixed { left_bytes: 0 } => return Ok(0),
                Framing::Fixed { left_bytes } => {
                    let bytes = self.read_some(left_bytes, buffer)?;
                    self.framing = Framing::Fixed { left_bytes: left_bytes - bytes };
                    return Ok(usize::try_from(bytes).expect("no more than the buffer holds"));
                }
                Framing::ChunkSize => self.framing = self.next_chunk()?,
                Framing::ChunkData { left_bytes: 0 } => {
                    if !self.read_line()?.is_empty() {
                        return Err(malformed("a chunk is longer than its size"));
                    }
                    self.framing = Framing::ChunkSize;
                }
                Framing::ChunkData { left_bytes } => {
                    let bytes = self.read_some(left_bytes, buffer)?;
                    self.framing = Framing::ChunkData { left_bytes: left_bytes - bytes };
                    return Ok(usize::try_from(bytes).expect("no more than the buffer holds"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(lines: &str, body: &str) -> io::Result<(Vec<u8>, String)> {
        let text = format!("POST /call HTTP/1.1\r\n{lines}\r\n{body}");
        let mut reader = text.as_bytes();
        let head = Head::read(&mut reader)?.expect("a head");
        let mut whole = Vec::new();
        Input::new(&mut reader, &head)?.read_to_end(&mut whole)?;
        Ok((whole, String::from_utf8_lossy(reader).into_owned()))
    }

    #[test]
    fn bodies_end_where_their_framing_says() {
        for (lines, sent, expected) in [
            ("Content-Length: 5\r\n", "hello", "hello"),
            ("content-length:0\r\n", "", ""),
            ("", "", ""),
            ("Transfer-Encoding: chunked\r\n", "5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nT: v\r\n\r\n", "hello!"),
        ] {
            let (read, rest) = body(lines, &format!("{sent}POST")).expect("valid");
            assert_eq!((read.as_slice(), rest.as_str()), (expected.as_bytes(), "POST"));
        }
    }

    #[test]
    fn broken_requests_are_refused() {
        for (lines, sent) in [
            ("Content-Length: 5\r\n", "hell"),
            ("Content-Length: +5\r\n", "hello"),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
            ("Transfer-Encoding: gzip\r\n", ""),
            ("Transfer-Encoding: chunked\r\n", "5\r\nhello!\r\n0\r\n\r\n"),
            ("Transfer-Encoding: chunked\r\n", "-5\r\nhello\r\n0\r\n\r\n"),
            ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n"),
            ("No colon\r\n", ""),
            ("Bare: feed\n", ""),
            (" Folded: line\r\n", ""),
        ] {
            assert!(body(lines, sent).is_err(), "{lines:?} {sent:?}");
        }
        assert!(Head::read(&mut &b"POST /call HTT"[..]).is_err());
        assert!(Head::read(&mut &b""[..]).expect("closed").is_none());
    }
}
