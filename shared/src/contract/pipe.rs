//! The formats over STDIN and STDOUT, driven alike (`spec/container-contract.md`, part B, as corrected by
//! `spec/corrections-2018.md`).
//!
//! For each call:
//!
//! 1. [`Framing::of`] tells how it is framed; `None` is `http-stream`.
//! 2. [`RequestEncoder::new`] writes what goes before the body; give it each piece of the body, then
//!    [`finish`](RequestEncoder::finish) it, and write what it appends to the container's STDIN. If
//!    [`Framing::closes_input`], close STDIN after that. While the request is being written, already read the
//!    answer: a function may answer before it has read everything, and blocks when nobody takes its output.
//! 3. Append what STDOUT gives to a `BytesMut` and call [`AnswerDecoder::decode`] until it wants more. What it
//!    leaves in the buffer belongs there. If STDOUT or the container ends first, call
//!    [`AnswerDecoder::finish`] until it gives [`Event::End`].
//! 4. At [`Event::End`] the answer is whole; [`AnswerDecoder::fate`] says whether the container may serve
//!    again. If the request was not yet written to its end by then, it may not.
//!
//! Between calls a hot container may print blanks ([`is_blank`]) and nothing else; kill it if it does. STDERR is
//! the call's log.

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;

use crate::call::{CallRequest, Failure, FailureKind};
use crate::function::Format;
use crate::http1::HeaderBlock;

use super::{CallFailed, ContainerExit, ContainerFate, Limits, cloudevent, default, http, json};

/// How a call over pipes is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// `default`: the body, then the end of STDIN; what STDOUT gives is the answer. One call per container.
    Default,
    /// `http`: HTTP/1.1 messages.
    Http,
    /// `json`: objects with the body as a string.
    Json,
    /// `cloudevent`: CloudEvents 0.1 with the body as data.
    Cloudevent {
        /// The client sent an event and gets one.
        client_speaks_events: bool,
    },
}

impl Framing {
    /// How this call is framed; `None` for `http-stream`. A call of a hot format whose content type is
    /// `application/cloudevents+json` is framed as an event whatever the function's format is (B5).
    pub fn of(call: &CallRequest) -> Option<Self> {
        let client_speaks_events = cloudevent::is_event(call);
        match call.function.spec.format {
            Format::HttpStream => None,
            Format::Default => Some(Self::Default),
            Format::Cloudevent => Some(Self::Cloudevent { client_speaks_events }),
            Format::Http | Format::Json if client_speaks_events => {
                Some(Self::Cloudevent { client_speaks_events })
            }
            Format::Http => Some(Self::Http),
            Format::Json => Some(Self::Json),
        }
    }

    /// True if the end of the request is the end of STDIN, so that the container serves this call alone.
    pub fn closes_input(self) -> bool {
        self == Self::Default
    }
}

/// Writes one call's request for a container. `http` and `json` stream; `cloudevent` holds the body until it is
/// whole, and writes nothing before.
#[derive(Debug)]
pub struct RequestEncoder {
    encoding: Encoding,
    limits: Limits,
}

#[derive(Debug)]
enum Encoding {
    Default,
    Http(http::RequestEncoder),
    Json(json::RequestEncoder),
    Cloudevent(cloudevent::RequestEncoder),
}

impl RequestEncoder {
    /// Appends what goes before the body to `out`. `call.body` is looked at only for its length.
    pub fn new(
        framing: Framing,
        call: &CallRequest,
        deadline: Timestamp,
        limits: &Limits,
        out: &mut Vec<u8>,
    ) -> Self {
        let encoding = match framing {
            Framing::Default => Encoding::Default,
            Framing::Http => Encoding::Http(http::RequestEncoder::new(call, deadline, out)),
            Framing::Json => Encoding::Json(json::RequestEncoder::new(call, deadline, out)),
            Framing::Cloudevent { client_speaks_events } => {
                Encoding::Cloudevent(cloudevent::RequestEncoder::new(call, deadline, client_speaks_events))
            }
        };
        Self { encoding, limits: *limits }
    }

    /// Appends a piece of the body to `out`.
    ///
    /// # Errors
    /// If the body is larger than declared or, in one event, than allowed; the call ends here.
    pub fn body(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<(), CallFailed> {
        match &mut self.encoding {
            Encoding::Default => out.extend_from_slice(piece),
            Encoding::Http(encoder) => encoder.body(piece, out)?,
            Encoding::Json(encoder) => encoder.body(piece, out),
            Encoding::Cloudevent(encoder) => encoder.body(piece, self.limits.event_bytes_max)?,
        }
        Ok(())
    }

    /// Appends what goes after the body to `out`.
    ///
    /// # Errors
    /// If the body is shorter than declared, or no event can be made of it (400; the container saw nothing of it).
    pub fn finish(self, out: &mut Vec<u8>) -> Result<(), CallFailed> {
        match self.encoding {
            Encoding::Default => Ok(()),
            Encoding::Http(encoder) => encoder.finish(out),
            Encoding::Json(encoder) => {
                encoder.finish(out);
                Ok(())
            }
            Encoding::Cloudevent(encoder) => encoder.finish(out),
        }
    }
}

/// What an answer brings, in this order; there may be any number of [`Body`](Event::Body)s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Status and header lines for the client: without framing, `Date` and the call's id, with one content type.
    Head {
        /// Status.
        status: u16,
        /// Lines.
        headers: HeaderBlock,
    },
    /// A piece of the body, never empty.
    Body(Bytes),
    /// The answer is whole.
    End,
}

/// Reads one call's answer from a container's STDOUT.
#[derive(Debug)]
pub struct AnswerDecoder {
    decoding: Decoding,
    limits: Limits,
    body_bytes: u64,
}

#[derive(Debug)]
enum Decoding {
    Default(default::AnswerDecoder),
    Http(http::AnswerDecoder),
    Object(json::AnswerDecoder),
}

impl AnswerDecoder {
    /// A decoder for the answer to this call.
    pub fn new(framing: Framing, call: &CallRequest, limits: &Limits) -> Self {
        let decoding = match framing {
            Framing::Default => Decoding::Default(default::AnswerDecoder::default()),
            Framing::Http => Decoding::Http(http::AnswerDecoder::new(&call.method, limits)),
            Framing::Json => Decoding::Object(json::AnswerDecoder::new(json::read_answer, limits)),
            Framing::Cloudevent { client_speaks_events: false } => {
                Decoding::Object(json::AnswerDecoder::new(cloudevent::read_answer, limits))
            }
            Framing::Cloudevent { client_speaks_events: true } => {
                Decoding::Object(json::AnswerDecoder::new(cloudevent::read_event, limits))
            }
        };
        Self { decoding, limits: *limits, body_bytes: 0 }
    }

    /// Takes what it can off the front of `input`. `None`: it wants more behind what it left there.
    ///
    /// # Errors
    /// If this is no answer, or a larger one than allowed; the container is killed.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Event>, CallFailed> {
        let event = match &mut self.decoding {
            Decoding::Default(decoder) => Ok(decoder.decode(input)),
            Decoding::Http(decoder) => decoder.decode(input),
            Decoding::Object(decoder) => decoder.decode(input),
        }?;
        if let Some(Event::Body(piece)) = &event {
            self.body_bytes += piece.len() as u64;
            self.limits.check_response(self.body_bytes)?;
        }
        Ok(event)
    }

    /// Says that the output has ended, after [`Self::decode`] wanted more. Call it until it gives [`Event::End`].
    ///
    /// # Errors
    /// If the answer is not whole, or the format takes the exit for part of it: 502 with how the container ended.
    pub fn finish(&mut self, exit: ContainerExit) -> Result<Event, CallFailed> {
        let event = match &mut self.decoding {
            Decoding::Default(decoder) => decoder.finish(exit),
            Decoding::Http(decoder) => decoder.finish(exit),
            Decoding::Object(decoder) => decoder.finish(),
        };
        event.ok_or_else(|| CallFailed::kill(exit.failure()))
    }

    /// What becomes of the container after [`Event::End`], with `rest` left in the buffer.
    pub fn fate(&self, rest: &[u8]) -> ContainerFate {
        let serves_on = match &self.decoding {
            Decoding::Default(_) => false,
            Decoding::Http(decoder) => !decoder.ended_with_the_container(),
            Decoding::Object(_) => true,
        };
        if serves_on && is_blank(rest) { ContainerFate::Keep } else { ContainerFate::Kill }
    }
}

/// True for what a hot container may print between its answers: line ends, spaces and tabs, which belong to no
/// call and can give nothing of one to another.
pub fn is_blank(output: &[u8]) -> bool {
    output.iter().all(|byte| b" \t\r\n".contains(byte))
}

/// Takes blanks off the front.
pub(super) fn skip_blanks(input: &mut BytesMut) {
    let blanks = input.iter().take_while(|byte| b" \t\r\n".contains(byte)).count();
    drop(input.split_to(blanks));
}

/// An answer that is none, in the words of mid-2018 (B3, B4). The container's state is unknown.
pub(super) fn invalid(format: &str, detail: &str) -> CallFailed {
    let message = format!("invalid {format} response from function err: {detail}");
    CallFailed::kill(Failure::new(FailureKind::InvalidResponse, 502, message))
}

#[cfg(test)]
mod tests;
