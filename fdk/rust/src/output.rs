//! Writing answers: what a function may return, and the stream it may write to.

use std::io::{self, Write};

use crate::Result;

/// Bytes that are gathered before they are sent as a chunk.
const BUFFER_BYTES: usize = 16 * 1024;

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    status: u16,
    content_type: Option<String>,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Response {
    /// An answer with status 200 and this body.
    pub fn new(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, content_type: None, headers: Vec::new(), body: body.into() }
    }

    /// An answer that is a JSON object with a message, as the platform's own errors are.
    pub fn message(status: u16, text: &str) -> Self {
        Self::new(message(text)).with_status(status).with_content_type("application/json")
    }

    /// Sets the status that the client of an HTTP trigger gets. Other callers get 200 for every answer.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Sets the type of the body.
    #[must_use]
    pub fn with_content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = Some(content_type.into());
        self
    }

    /// Adds a header for the client.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// A type that an answer can be made from.
pub trait IntoResponse {
    /// Makes the answer.
    ///
    /// # Errors
    /// If there is none to be made; the call fails.
    fn into_response(self) -> Result<Response>;
}

impl IntoResponse for Response {
    fn into_response(self) -> Result<Response> {
        Ok(self)
    }
}

impl IntoResponse for () {
    fn into_response(self) -> Result<Response> {
        Ok(Response::new(Vec::new()))
    }
}

impl IntoResponse for Vec<u8> {
    fn into_response(self) -> Result<Response> {
        Ok(Response::new(self).with_content_type("application/octet-stream"))
    }
}

impl IntoResponse for String {
    fn into_response(self) -> Result<Response> {
        Ok(Response::new(self).with_content_type("text/plain; charset=utf-8"))
    }
}

impl IntoResponse for &str {
    fn into_response(self) -> Result<Response> {
        self.to_owned().into_response()
    }
}

/// The answer as it is written. Status and headers can be set until the first byte of the body is sent, which is
/// when enough bytes have gathered or [`flush`](Write::flush) is called. An answer that fits the buffer goes out
/// with its length, a longer one in chunks.
pub struct Output<'a> {
    stream: &'a mut dyn Write,
    is_http: bool,
    status: u16,
    /// Header lines, each with its end.
    lines: String,
    has_content_type: bool,
    buffer: Vec<u8>,
    started: bool,
}

impl std::fmt::Debug for Output<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Output")
            .field("status", &self.status)
            .field("started", &self.started)
            .finish_non_exhaustive()
    }
}

impl<'a> Output<'a> {
    pub(crate) fn new(stream: &'a mut dyn Write, is_http: bool) -> Self {
        Self {
            stream,
            is_http,
            status: 200,
            lines: String::new(),
            has_content_type: false,
            buffer: Vec::new(),
            started: false,
        }
    }

    /// Sets the status that the client of an HTTP trigger gets. Other callers get 200 for every answer.
    ///
    /// # Errors
    /// If the answer has begun, or the status is not between 200 and 999.
    pub fn set_status(&mut self, status: u16) -> io::Result<()> {
        self.check_not_started()?;
        if !(200..1000).contains(&status) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{status} is not a status of an answer"),
            ));
        }
        self.status = status;
        Ok(())
    }

    /// Sets the type of the body. Only the first one counts.
    ///
    /// # Errors
    /// As [`Self::add_header`].
    pub fn set_content_type(&mut self, content_type: &str) -> io::Result<()> {
        if self.has_content_type {
            return Ok(());
        }
        self.push_line("", "Content-Type", content_type)?;
        self.has_content_type = true;
        Ok(())
    }

    /// Adds a header for the client. Lengths and connection headers are the platform's and are left out.
    ///
    /// # Errors
    /// If the answer has begun, or name or value cannot be a header.
    pub fn add_header(&mut self, name: &str, value: &str) -> io::Result<()> {
        if name.eq_ignore_ascii_case("Content-Type") {
            return self.set_content_type(value);
        }
        let of_the_platform =
            ["Content-Length", "Transfer-Encoding", "Connection", "Keep-Alive", "Trailer", "Upgrade"];
        if of_the_platform.iter().any(|other| name.eq_ignore_ascii_case(other)) {
            return self.check_not_started();
        }
        self.push_line(if self.is_http { "Fn-Http-H-" } else { "" }, name, value)
    }

    fn push_line(&mut self, prefix: &str, name: &str, value: &str) -> io::Result<()> {
        self.check_not_started()?;
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty()
            || !name.bytes().all(is_token)
            || value.chars().any(|letter| letter.is_ascii_control())
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("not a header: {name:?}: {value:?}"),
            ));
        }
        for part in [prefix, name, ": ", value.trim(), "\r\n"] {
            self.lines.push_str(part);
        }
        Ok(())
    }

    fn check_not_started(&self) -> io::Result<()> {
        if self.started { Err(io::Error::other("the answer has begun")) } else { Ok(()) }
    }

    /// Writes a whole answer.
    pub(crate) fn respond(&mut self, response: Response) -> Result<()> {
        self.set_status(response.status)?;
        if let Some(content_type) = response.content_type {
            self.set_content_type(&content_type)?;
        }
        for (name, value) in &response.headers {
            self.add_header(name, value)?;
        }
        self.buffer = response.body;
        Ok(())
    }

    /// Ends the answer.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        if self.started {
            self.send_buffer()?;
            return self.stream.write_all(b"0\r\n\r\n");
        }
        let length = self.buffer.len();
        let mut message = self.head(&format!("Content-Length: {length}"));
        // One write for what is small; no copy of what is large.
        if length <= BUFFER_BYTES {
            message.extend_from_slice(&self.buffer);
            return self.stream.write_all(&message);
        }
        self.stream.write_all(&message)?;
        self.stream.write_all(&self.buffer)
    }

    /// Answers that the call failed, if nothing was sent yet.
    ///
    /// # Errors
    /// If the answer has begun: then only a broken connection can tell.
    pub(crate) fn fail(mut self, text: &str) -> io::Result<()> {
        self.check_not_started()?;
        write_plain(&mut self.stream, 502, text)
    }

    /// The head, with its empty line.
    fn head(&self, framing: &str) -> Vec<u8> {
        let status =
            if self.is_http { format!("Fn-Http-Status: {}\r\n", self.status) } else { String::new() };
        let version = concat!("fdk-kiln-rust/", env!("CARGO_PKG_VERSION"));
        format!(
            "HTTP/1.1 200 OK\r\n{}{status}Fn-Fdk-Version: {version}\r\nFn-Fdk-Runtime: rust\r\n{framing}\r\n\r\n",
            self.lines
        )
        .into_bytes()
    }

    fn send_buffer(&mut self) -> io::Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        self.send_chunk(&buffer)?;
        self.buffer = buffer;
        self.buffer.clear();
        Ok(())
    }

    fn send_chunk(&mut self, data: &[u8]) -> io::Result<()> {
        let mut message = if self.started { Vec::new() } else { self.head("Transfer-Encoding: chunked") };
        self.started = true;
        if !data.is_empty() {
            message.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
        }
        if data.len() <= BUFFER_BYTES {
            message.extend_from_slice(data);
            if !data.is_empty() {
                message.extend_from_slice(b"\r\n");
            }
            return self.stream.write_all(&message);
        }
        self.stream.write_all(&message)?;
        self.stream.write_all(data)?;
        self.stream.write_all(b"\r\n")
    }
}

impl Write for Output<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.buffer.len() + data.len() <= BUFFER_BYTES {
            self.buffer.extend_from_slice(data);
            return Ok(data.len());
        }
        if !self.buffer.is_empty() {
            self.send_buffer()?;
        }
        if data.len() <= BUFFER_BYTES {
            self.buffer.extend_from_slice(data);
        } else {
            self.send_chunk(data)?;
        }
        Ok(data.len())
    }

    /// Sends what was written so far, at the beginning also the head.
    fn flush(&mut self) -> io::Result<()> {
        if self.started && self.buffer.is_empty() {
            return Ok(());
        }
        self.send_buffer()
    }
}

/// Writes an answer that the contract gives a meaning by its status.
pub(crate) fn write_plain(stream: &mut dyn Write, status: u16, text: &str) -> io::Result<()> {
    let body = message(text);
    let head = format!(
        "HTTP/1.1 {status} Error\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes())
}

/// A JSON object with a text.
fn message(text: &str) -> String {
    let mut json = String::from("{\"message\":\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => json.extend(['\\', letter]),
            '\n' => json.push_str("\\n"),
            letter if letter.is_control() => {
                json.extend([String::from("\\u"), format!("{:04x}", u32::from(letter))]);
            }
            letter => json.push(letter),
        }
    }
    json.push_str("\"}\n");
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(is_http: bool, write: impl FnOnce(&mut Output<'_>) -> Result<()>) -> String {
        let mut sent = Vec::new();
        let mut output = Output::new(&mut sent, is_http);
        write(&mut output).expect("written");
        output.finish().expect("written");
        String::from_utf8(sent).expect("text")
    }

    #[test]
    fn a_triggers_answer_carries_status_and_prefixed_headers() {
        let response =
            Response::new("gone").with_status(410).with_header("X-A", "b").with_content_type("text/x");
        let sent = written(true, |output| output.respond(response.clone()));
        assert!(
            sent.starts_with(
                "HTTP/1.1 200 OK\r\nContent-Type: text/x\r\nFn-Http-H-X-A: b\r\nFn-Http-Status: 410\r\n"
            ),
            "{sent}"
        );
        assert!(sent.ends_with("\r\nContent-Length: 4\r\n\r\ngone"), "{sent}");
        let sent = written(false, |output| output.respond(response));
        assert!(
            sent.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/x\r\nX-A: b\r\nFn-Fdk-Version: "),
            "{sent}"
        );
    }

    #[test]
    fn a_flushed_answer_goes_in_chunks() {
        let sent = written(false, |output| {
            output.write_all(b"one")?;
            output.flush()?;
            output.flush()?;
            assert!(output.set_status(404).is_err());
            output.write_all(b"two")?;
            Ok(())
        });
        assert!(
            sent.ends_with("\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"),
            "{sent}"
        );
    }

    #[test]
    fn large_writes_are_not_gathered() {
        let large = "x".repeat(BUFFER_BYTES + 1);
        let sent = written(false, |output| {
            output.write_all(b"a")?;
            output.write_all(large.as_bytes())?;
            Ok(())
        });
        let (_, body) = sent.split_once("\r\n\r\n").expect("a head");
        assert_eq!(body, format!("1\r\na\r\n{:x}\r\n{large}\r\n0\r\n\r\n", large.len()));
    }

    #[test]
    fn headers_cannot_break_the_head() {
        let mut sent = Vec::new();
        let mut output = Output::new(&mut sent, false);
        for (name, value) in [("A", "b\r\nC: d"), ("A b", "c"), ("", "c"), ("A:", "c"), ("Ä", "c")] {
            assert!(output.add_header(name, value).is_err(), "{name:?}: {value:?}");
        }
        output.add_header("Content-Length", "7").expect("left out");
        output.set_status(99).expect_err("not a status");
        output.finish().expect("written");
        let sent = String::from_utf8(sent).expect("text");
        assert_eq!(sent.matches("Content-Length").count(), 1, "{sent}");
    }

    #[test]
    fn messages_are_json() {
        assert_eq!(message("a \"b\"\\\n\u{1}"), "{\"message\":\"a \\\"b\\\"\\\\\\n\\u0001\"}\n");
    }
}
