//! `json`: objects on STDIN and STDOUT with the body as a string (`spec/container-contract.md`, B4), and the
//! reading of objects, which `cloudevent` shares.

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use serde::Deserialize;

use crate::call::{CallRequest, Failure};

use super::environment::deadline_text;
use super::http_stream::is_content_type;
use super::pipe::{Event, invalid, skip_blanks};
use super::protocol::{AnswerProtocol, RequestProtocol};
use super::{CallFailed, Limits, answer};

/// Writes a request in one line and a blank one, whatever the length of its body in constant memory.
#[derive(Debug)]
pub(super) struct RequestEncoder {
    /// What goes after the body's text.
    tail: Vec<u8>,
    /// The beginning of a UTF-8 sequence that the next piece may complete.
    cut: Vec<u8>,
}

impl RequestEncoder {
    pub(super) fn new(call: &CallRequest, deadline: Timestamp, out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(b"{\"call_id\":\"");
        out.extend_from_slice(call.id.as_bytes());
        out.extend_from_slice(b"\",\"content_type\":\"");
        push_escaped(&content_type(call), out);
        out.extend_from_slice(b"\",\"type\":\"sync\",\"deadline\":\"");
        out.extend_from_slice(deadline_text(deadline).as_bytes());
        out.extend_from_slice(b"\",\"body\":\"");
        let mut tail = b"\",\"protocol\":".to_vec();
        serde_json::to_writer(&mut tail, &RequestProtocol::of(call))
            .expect("text and lists of text serialize");
        tail.extend_from_slice(b"}\n\n");
        Self { tail, cut: Vec::new() }
    }

    /// Appends a piece of the body as text; what is not UTF-8 is replaced.
    pub(super) fn body(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        let whole;
        let mut rest = piece;
        if !self.cut.is_empty() {
            whole = [self.cut.as_slice(), piece].concat();
            rest = &whole;
            self.cut.clear();
        }
        while let Err(error) = std::str::from_utf8(rest) {
            let (valid, invalid) = rest.split_at(error.valid_up_to());
            push_escaped(std::str::from_utf8(valid).expect("found to be valid"), out);
            let Some(bytes) = error.error_len() else {
                self.cut = invalid.to_vec();
                return;
            };
            push_escaped("\u{fffd}", out);
            rest = &invalid[bytes..];
        }
        push_escaped(std::str::from_utf8(rest).expect("found to be valid"), out);
    }

    pub(super) fn finish(self, out: &mut Vec<u8>) {
        if !self.cut.is_empty() {
            push_escaped("\u{fffd}", out);
        }
        out.extend_from_slice(&self.tail);
    }
}

/// The first content type that the client gave, as text.
pub(super) fn content_type(call: &CallRequest) -> String {
    let value = call.headers.iter().find(|(name, _)| is_content_type(name)).map(|(_, value)| value);
    String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
}

/// Appends `text` as the inside of a JSON string (RFC 8259, 7).
fn push_escaped(text: &str, out: &mut Vec<u8>) {
    out.reserve(text.len());
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..=0x1f => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(byte),
        }
    }
}

/// A whole answer, read from an object.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: crate::http1::HeaderBlock,
    pub(super) body: Bytes,
}

/// Reads an answer from the text of an object, or says what is wrong with it.
pub(super) type ReadAnswer = fn(&str) -> Result<Answer, String>;

/// Finds the end of an object as it arrives, each byte looked at once, then reads it.
#[derive(Debug)]
pub(super) struct AnswerDecoder {
    state: State,
    read_answer: ReadAnswer,
    limits: Limits,
}

#[derive(Debug)]
enum State {
    Object(ObjectScan),
    Body(Bytes),
    Done { told: bool },
}

impl AnswerDecoder {
    pub(super) fn new(read_answer: ReadAnswer, limits: &Limits) -> Self {
        Self { state: State::Object(ObjectScan::default()), read_answer, limits: *limits }
    }

    pub(super) fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Event>, CallFailed> {
        match &mut self.state {
            State::Object(scan) => {
                if scan.seen_bytes == 0 {
                    skip_blanks(input);
                }
                if let Some(&first) = input.first()
                    && first != b'{'
                {
                    let letter = char::from(first);
                    let detail = format!("invalid character {letter:?} looking for beginning of value");
                    return Err(invalid("json", &detail));
                }
                let end = scan.find_end(input);
                if end.unwrap_or(input.len()) > self.limits.json_answer_bytes_max {
                    return Err(CallFailed::kill(Failure::response_body_too_large()));
                }
                let Some(end) = end else { return Ok(None) };
                let object = input.split_to(end);
                let answer = (self.read_answer)(&String::from_utf8_lossy(&object))
                    .map_err(|detail| invalid("json", &detail))?;
                self.limits.check_response_lines(&answer.headers)?;
                let body = if answer::has_body(answer.status) { answer.body } else { Bytes::new() };
                self.limits.check_response(body.len() as u64)?;
                self.state = State::Body(body);
                Ok(Some(Event::Head { status: answer.status, headers: answer.headers }))
            }
            State::Body(body) => {
                let body = std::mem::take(body);
                self.state = State::Done { told: body.is_empty() };
                Ok(Some(if body.is_empty() { Event::End } else { Event::Body(body) }))
            }
            State::Done { told } => Ok((!std::mem::replace(told, true)).then_some(Event::End)),
        }
    }

    /// `None`: the answer is not whole.
    pub(super) fn finish(&self) -> Option<Event> {
        matches!(self.state, State::Done { .. }).then_some(Event::End)
    }
}

/// Where in an object the scan is.
#[derive(Debug, Default)]
struct ObjectScan {
    seen_bytes: usize,
    depth: u32,
    in_string: bool,
    escaped: bool,
}

impl ObjectScan {
    /// The length of the object at the front of `input`, if its end is there. Looks only at what is new. What is
    /// inside is not checked: broken objects end somewhere, too.
    fn find_end(&mut self, input: &[u8]) -> Option<usize> {
        for (at, &byte) in input.iter().enumerate().skip(self.seen_bytes) {
            if self.escaped {
                self.escaped = false;
            } else if self.in_string {
                match byte {
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
            } else {
                match byte {
                    b'"' => self.in_string = true,
                    b'{' | b'[' => self.depth = self.depth.saturating_add(1),
                    b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                    _ => {}
                }
                if self.depth == 0 {
                    return Some(at + 1);
                }
            }
        }
        self.seen_bytes = input.len();
        None
    }
}

#[derive(Debug, Deserialize)]
struct AnswerObject {
    body: Option<String>,
    content_type: Option<String>,
    protocol: Option<AnswerProtocol>,
}

/// Reads an answer of the format `json`. `content_type` wins over a header of that name.
pub(super) fn read_answer(object: &str) -> Result<Answer, String> {
    let object: AnswerObject = serde_json::from_str(object).map_err(|error| error.to_string())?;
    let (status, headers) = object.protocol.unwrap_or_default().head(object.content_type.as_deref())?;
    Ok(Answer { status, headers, body: object.body.unwrap_or_default().into() })
}
