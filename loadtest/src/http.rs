//! A small HTTP/1.1 client over TCP and unix sockets that costs as little as a load generator can.
//!
//! Requests are bytes made beforehand; of an answer only the framing and the status are read.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// Where requests go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A server on loopback.
    Tcp(SocketAddr),
    /// A server at a unix socket.
    Unix(PathBuf),
}

impl Target {
    /// A server at `port` of 127.0.0.1.
    pub fn loopback(port: u16) -> Self {
        Self::Tcp(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    /// Opens a blocking connection.
    ///
    /// # Errors
    /// As the system's `connect`.
    pub fn connect(&self) -> io::Result<Connection> {
        let stream = match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                Stream::Tcp(stream)
            }
            Self::Unix(path) => Stream::Unix(UnixStream::connect(path)?),
        };
        Ok(Connection { stream, buffer: vec![0; 16 * 1024], filled: 0 })
    }
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The head of an answer and its body with the chunked coding undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The id of the call that it answers, if it names one.
    pub call_id: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

/// An open connection with what was read and not yet used.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    buffer: Vec<u8>,
    filled: usize,
}

impl Connection {
    /// Makes reads and writes return at once.
    ///
    /// # Errors
    /// As the system's `fcntl`.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        match &self.stream {
            Stream::Tcp(stream) => stream.set_nonblocking(true),
            Stream::Unix(stream) => stream.set_nonblocking(true),
        }
    }

    /// Limits how long one blocking read may take.
    ///
    /// # Errors
    /// As the system's `setsockopt`.
    pub fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        match &self.stream {
            Stream::Tcp(stream) => stream.set_read_timeout(Some(timeout)),
            Stream::Unix(stream) => stream.set_read_timeout(Some(timeout)),
        }
    }

    /// Writes a whole request.
    ///
    /// # Errors
    /// As the system's `write`. Requests are small, so that a non-blocking socket takes them whole.
    pub fn send(&mut self, request: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.write_all(request),
            Stream::Unix(stream) => stream.write_all(request),
        }
    }

    /// Reads once. `Ok(Some(status))` if an answer is now complete (and taken from the buffer), `Ok(None)` if more
    /// must be read.
    ///
    /// # Errors
    /// The system's read error (`WouldBlock` on a non-blocking socket), `UnexpectedEof` if the server closed the
    /// connection, `InvalidData` if it does not speak HTTP.
    pub fn receive(&mut self) -> io::Result<Option<u16>> {
        self.fill()?;
        match measure(&self.buffer[..self.filled])? {
            None => Ok(None),
            Some(framing) => {
                self.buffer.copy_within(framing.total..self.filled, 0);
                self.filled -= framing.total;
                Ok(Some(framing.status))
            }
        }
    }

    /// Sends a request on a blocking connection and returns the answer's status.
    ///
    /// # Errors
    /// As [`Connection::send`] and [`Connection::receive`].
    pub fn exchange(&mut self, request: &[u8]) -> io::Result<u16> {
        self.send(request)?;
        loop {
            if let Some(status) = self.receive()? {
                return Ok(status);
            }
        }
    }

    /// Sends a request on a blocking connection and waits for the first bytes of the answer.
    ///
    /// # Errors
    /// As [`Connection::send`] and [`Connection::receive`].
    pub fn first_byte(&mut self, request: &[u8]) -> io::Result<()> {
        self.send(request)?;
        self.fill()
    }

    /// Sends a request on a blocking connection and returns the whole answer.
    ///
    /// # Errors
    /// As [`Connection::send`] and [`Connection::receive`].
    pub fn fetch(&mut self, request: &[u8]) -> io::Result<Answer> {
        self.send(request)?;
        loop {
            self.fill()?;
            if let Some(framing) = measure(&self.buffer[..self.filled])? {
                let body = framing.body(&self.buffer);
                let call_id = call_id(&self.buffer[..framing.total]);
                self.buffer.copy_within(framing.total..self.filled, 0);
                self.filled -= framing.total;
                return Ok(Answer { status: framing.status, call_id, body });
            }
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        if self.filled == self.buffer.len() {
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
        let room = &mut self.buffer[self.filled..];
        let read = match &mut self.stream {
            Stream::Tcp(stream) => stream.read(room)?,
            Stream::Unix(stream) => stream.read(room)?,
        };
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
        }
        self.filled += read;
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }
}

/// Where a complete message lies in a buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Framing {
    status: u16,
    /// Ranges of the body's pieces.
    pieces: Vec<std::ops::Range<usize>>,
    /// Length of the whole message.
    total: usize,
}

impl Framing {
    fn body(&self, buffer: &[u8]) -> Vec<u8> {
        self.pieces.iter().flat_map(|piece| &buffer[piece.clone()]).copied().collect()
    }
}

/// The call that a complete answer says that it is of.
fn call_id(answer: &[u8]) -> Option<String> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut headers);
    head.parse(answer).ok()?;
    let id = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case("fn-call-id"))?;
    String::from_utf8(id.value.to_vec()).ok()
}

/// Finds the end of the answer at the start of `buffer`; `None` if it is not complete.
fn measure(buffer: &[u8]) -> io::Result<Option<Framing>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut headers);
    let head_bytes = match head.parse(buffer).map_err(invalid)? {
        httparse::Status::Partial => return Ok(None),
        httparse::Status::Complete(bytes) => bytes,
    };
    let status = head.code.unwrap_or(0);
    let find = |name: &str| head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
    if let Some(length) = find("content-length") {
        let length: usize = std::str::from_utf8(length.value)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| invalid("length"))?;
        let total = head_bytes + length;
        let framing = Framing { status, pieces: std::iter::once(head_bytes..total).collect(), total };
        return Ok((buffer.len() >= total).then_some(framing));
    }
    if find("transfer-encoding").is_some() {
        return measure_chunks(buffer, head_bytes, status);
    }
    if matches!(status, 100..200 | 204 | 304) {
        return Ok(Some(Framing { status, pieces: Vec::new(), total: head_bytes }));
    }
    Err(invalid("an answer without length"))
}

fn measure_chunks(buffer: &[u8], head_bytes: usize, status: u16) -> io::Result<Option<Framing>> {
    let mut at = head_bytes;
    let mut pieces = Vec::new();
    loop {
        match httparse::parse_chunk_size(&buffer[at..]) {
            Ok(httparse::Status::Partial) => return Ok(None),
            // No trailers: none of the servers measured here sends any.
            Ok(httparse::Status::Complete((line, 0))) => {
                let total = at + line + 2;
                return Ok((buffer.len() >= total).then_some(Framing { status, pieces, total }));
            }
            Ok(httparse::Status::Complete((line, size))) => {
                let start = at + line;
                let end = start + usize::try_from(size).map_err(invalid)?;
                if buffer.len() < end + 2 {
                    return Ok(None);
                }
                pieces.push(start..end);
                at = end + 2;
            }
            Err(_) => return Err(invalid("a bad chunk size")),
        }
    }
}

fn invalid(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not HTTP: {what}"))
}

/// The bytes of a request with a `Content-Length` (unless a GET without body).
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    use std::fmt::Write as _;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n").expect("writing to a String does not fail");
    }
    if method != "GET" || !body.is_empty() {
        write!(head, "Content-Length: {}\r\n", body.len()).expect("writing to a String does not fail");
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// Speaks JSON with an HTTP API: sends `body` if there is one and returns what came back.
///
/// # Errors
/// If the server cannot be reached, answers outside 200..300, or with something else than JSON.
pub fn json(
    target: &Target,
    method: &str,
    path: &str,
    body: Option<&serde_json::Value>,
) -> Result<serde_json::Value> {
    let what = || format!("{method} {path}");
    let mut connection = target.connect().with_context(what)?;
    connection.set_read_timeout(Duration::from_mins(1)).with_context(what)?;
    let body = body.map(serde_json::Value::to_string).unwrap_or_default();
    let headers: &[_] = if body.is_empty() { &[] } else { &[("Content-Type", "application/json")] };
    let answer = connection.fetch(&request(method, path, headers, body.as_bytes())).with_context(what)?;
    ensure!(
        (200..300).contains(&answer.status),
        "{}: {} {}",
        what(),
        answer.status,
        String::from_utf8_lossy(&answer.body).trim()
    );
    if answer.body.is_empty() {
        return Ok(serde_json::Value::Null);
    }
    match serde_json::from_slice(&answer.body) {
        Ok(value) => Ok(value),
        Err(error) => bail!("{}: not JSON: {error}", what()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_with_a_length_ends_after_its_body() {
        let bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcHTTP/1.1";
        let framing = measure(bytes).expect("is HTTP").expect("is complete");
        assert_eq!(
            (framing.status, framing.body(bytes), framing.total),
            (200, b"abc".to_vec(), bytes.len() - 8)
        );
        assert_eq!(measure(&bytes[..40]).expect("is HTTP"), None);
    }

    #[test]
    fn a_chunked_answer_is_put_together_whatever_part_of_it_is_there() {
        let bytes =
            b"HTTP/1.1 502 Bad\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
        for end in 0..bytes.len() {
            assert_eq!(measure(&bytes[..end]).expect("is HTTP"), None, "{end}");
        }
        let framing = measure(bytes).expect("is HTTP").expect("is complete");
        assert_eq!(
            (framing.status, framing.body(bytes), framing.total),
            (502, b"abcde".to_vec(), bytes.len())
        );
    }

    #[test]
    fn an_answer_without_framing_is_refused() {
        assert!(measure(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(measure(b"SSH-2.0-x\r\n\r\n").is_err());
    }

    #[test]
    fn a_request_says_its_length() {
        assert_eq!(request("GET", "/x", &[], b""), b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(
            request("POST", "/x", &[("A", "b")], b"hi"),
            b"POST /x HTTP/1.1\r\nHost: localhost\r\nA: b\r\nContent-Length: 2\r\n\r\nhi"
        );
    }
}
