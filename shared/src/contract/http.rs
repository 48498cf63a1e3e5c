//! `http`: HTTP/1.1 messages on STDIN and STDOUT (`spec/container-contract.md`, B3).

use bytes::BytesMut;
use http::Method;
use jiff::Timestamp;

use crate::call::{CallRequest, Failure};
use crate::http1::buffer::BodyDecoder;
use crate::http1::chunked::{Decoded, LAST_CHUNK, encode_chunk};
use crate::http1::head::{BodyLength, HeadError, HeadLimits, find_end, parse_response};

use super::answer;
use super::digits::{push_decimal, push_millis};
use super::http_stream::{is_framing, push_line};
use super::pipe::{Event, invalid, skip_blanks};
use super::{CallFailed, ContainerExit, Limits};

/// How every answer begins.
const BEGINNING: &[u8] = b"HTTP/1.";
/// How much of an answer that begins otherwise is quoted, in bytes.
const QUOTED_BYTES_MAX: usize = 40;

#[derive(Debug)]
pub(super) enum RequestEncoder {
    Fixed { left_bytes: u64 },
    Chunked,
}

impl RequestEncoder {
    pub(super) fn new(call: &CallRequest, deadline: Timestamp, out: &mut Vec<u8>) -> Self {
        let (host, target) = split_url(&call.url);
        out.extend_from_slice(call.method.as_str().as_bytes());
        out.push(b' ');
        push_target(target, out);
        out.extend_from_slice(b" HTTP/1.1\r\n");
        push_line(b"", b"Host", host.as_bytes(), out);
        let encoder = match call.body.length() {
            None => {
                out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
                Self::Chunked
            }
            Some(left_bytes) => {
                // An empty body is declared only where one is usual (RFC 9110, 8.6).
                if left_bytes > 0 || [Method::POST, Method::PUT, Method::PATCH].contains(&call.method) {
                    out.extend_from_slice(b"Content-Length: ");
                    push_decimal(left_bytes, out);
                    out.extend_from_slice(b"\r\n");
                }
                Self::Fixed { left_bytes }
            }
        };
        for (name, value) in &call.headers {
            if !(is_own(name) || is_framing(name, value)) {
                push_line(b"", name, value, out);
            }
        }
        push_line(b"", b"Fn_call_id", call.id.as_bytes(), out);
        out.extend_from_slice(b"Fn_deadline: ");
        push_millis(deadline, out);
        out.extend_from_slice(b"\r\n");
        push_line(b"", b"Fn_method", call.method.as_str().as_bytes(), out);
        push_line(b"", b"Fn_request_url", call.url.as_bytes(), out);
        out.extend_from_slice(b"\r\n");
        encoder
    }

    pub(super) fn body(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<(), CallFailed> {
        match self {
            Self::Chunked => encode_chunk(piece, out),
            Self::Fixed { left_bytes } => {
                *left_bytes = left_bytes.checked_sub(piece.len() as u64).ok_or_else(wrong_length)?;
                out.extend_from_slice(piece);
            }
        }
        Ok(())
    }

    pub(super) fn finish(self, out: &mut Vec<u8>) -> Result<(), CallFailed> {
        match self {
            Self::Fixed { left_bytes: 0 } => {}
            Self::Fixed { .. } => return Err(wrong_length()),
            Self::Chunked => out.extend_from_slice(LAST_CHUNK),
        }
        Ok(())
    }
}

fn wrong_length() -> CallFailed {
    CallFailed::kill(Failure::internal("the request body is not as long as declared"))
}

/// True for headers that Kiln writes itself on every request.
fn is_own(name: &[u8]) -> bool {
    [&b"Fn_call_id"[..], b"Fn_deadline", b"Fn_method", b"Fn_request_url"]
        .iter()
        .any(|own| name.eq_ignore_ascii_case(own))
}

/// Authority, and path with query.
fn split_url(url: &str) -> (&str, &str) {
    let rest = url.split_once("://").map_or(url, |(_scheme, rest)| rest);
    let (host, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    (host, if target.is_empty() { "/" } else { target })
}

/// Appends the target; what could end it or the line is percent-encoded.
fn push_target(target: &str, out: &mut Vec<u8>) {
    if !target.starts_with('/') {
        out.push(b'/');
    }
    for byte in target.bytes() {
        if byte > b' ' && byte != 0x7f {
            out.push(byte);
        } else {
            out.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
}

#[derive(Debug)]
pub(super) struct AnswerDecoder {
    state: State,
    head_limits: HeadLimits,
    limits: Limits,
    /// The request's method was HEAD: no answer has a body.
    no_body: bool,
}

#[derive(Debug)]
enum State {
    Head { seen_bytes: usize },
    Body(BodyDecoder),
    Done { with_the_container: bool },
}

impl AnswerDecoder {
    pub(super) fn new(method: &Method, limits: &Limits) -> Self {
        Self {
            state: State::Head { seen_bytes: 0 },
            head_limits: limits.response_head(),
            limits: *limits,
            no_body: method == Method::HEAD,
        }
    }

    pub(super) fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Event>, CallFailed> {
        match &mut self.state {
            State::Head { .. } => self.decode_head(input),
            State::Body(decoder) => match decoder.decode(input) {
                Ok(Decoded::Data(data)) => Ok(Some(Event::Body(data))),
                Ok(Decoded::NeedMore) => Ok(None),
                Ok(Decoded::End) => {
                    self.state = State::Done { with_the_container: false };
                    Ok(Some(Event::End))
                }
                Err(error) => Err(invalid("http", &error.to_string())),
            },
            State::Done { .. } => Ok(None),
        }
    }

    fn decode_head(&mut self, input: &mut BytesMut) -> Result<Option<Event>, CallFailed> {
        loop {
            let State::Head { seen_bytes } = &mut self.state else { return Ok(None) };
            if *seen_bytes == 0 {
                skip_blanks(input);
            }
            let compared = input.len().min(BEGINNING.len());
            if input[..compared] != BEGINNING[..compared] {
                let quoted = String::from_utf8_lossy(&input[..input.len().min(QUOTED_BYTES_MAX)]);
                return Err(invalid("http", &format!("malformed HTTP response {quoted:?}")));
            }
            let Some(end) = find_end(input, *seen_bytes, &self.head_limits).map_err(head_failed)? else {
                *seen_bytes = input.len();
                return Ok(None);
            };
            let head = parse_response(&input.split_to(end), &self.head_limits).map_err(head_failed)?;
            *seen_bytes = 0;
            match head.status {
                101 => return Err(invalid("http", "the function switches protocols")),
                // Interim: the answer follows.
                100..200 => continue,
                _ => {}
            }
            let length = if self.no_body { BodyLength::Fixed(0) } else { head.length };
            if let BodyLength::Fixed(bytes) = length {
                self.limits.check_response(bytes)?;
            }
            let headers = answer::headers(head.status, head.headers.iter(), None)
                .map_err(|error| invalid("http", &error.to_string()))?;
            self.state = State::Body(BodyDecoder::new(length));
            return Ok(Some(Event::Head { status: head.status, headers }));
        }
    }

    /// `None`: the answer is not whole. An answer without length ends with a container that ends well.
    pub(super) fn finish(&mut self, exit: ContainerExit) -> Option<Event> {
        match &self.state {
            State::Body(BodyDecoder::UntilClose) if exit == ContainerExit::Code(0) => {
                self.state = State::Done { with_the_container: true };
                Some(Event::End)
            }
            State::Done { .. } => Some(Event::End),
            _ => None,
        }
    }

    pub(super) fn ended_with_the_container(&self) -> bool {
        matches!(self.state, State::Done { with_the_container: true })
    }
}

fn head_failed(error: HeadError) -> CallFailed {
    match error {
        HeadError::TooLarge | HeadError::TargetTooLong => {
            CallFailed::kill(Failure::response_head_too_large())
        }
        HeadError::Malformed(detail) => invalid("http", detail),
        other => invalid("http", &other.to_string()),
    }
}
