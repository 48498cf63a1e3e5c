//! A call between a balancer and an agent, as one HTTP/1.1 exchange.
//!
//! The request is `POST /call` with the client's header lines and body. What Kiln adds stands in the first lines, at
//! fixed places, and the agent takes away just these: no header of a client is ever read as one of Kiln's, and none is
//! lost. The answer's first line says which of three it is:
//!
//! | first line | status | what it is |
//! |---|---|---|
//! | `Kiln-Answer: cold\|warm WAIT_MICROS RUN_MICROS START_MICROS` | the function's | the function's answer |
//! | `Kiln-Refusal: REASON` | 503 | a [`Refusal`]: no byte reached a function |
//! | `Kiln-Failure: KIND` | the client's | a [`Failure`] in JSON |
//!
//! A body that is not at hand is held back until the agent has a slot (`Expect: 100-continue`), so that a refusal
//! does not cost it.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::CALL_PATH;
use crate::body::Body;
use crate::call::{CallKind, CallRequest, CallResponse, Failure, Refusal, Stages};
use crate::function::{Function, Revision};
use crate::http1::HeaderBlock;
use crate::http1::buffer::WriteFraming;
use crate::http1::client::SendBody;
use crate::http1::head::{RequestHead, ResponseHead};
use crate::http1::push_decimal;
use crate::http1::server::Response;
use crate::ids::{CallId, FunctionId};
use crate::story::{Placement, as_micros};

const CALL_HEADER: &str = "Kiln-Call";
const URL_HEADER: &str = "Kiln-Url";
const PATH_HEADER: &str = "Kiln-Path";
const ANSWER_HEADER: &str = "Kiln-Answer";
const REFUSAL_HEADER: &str = "Kiln-Refusal";
const FAILURE_HEADER: &str = "Kiln-Failure";

/// A peer that does not speak as this module says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not Kiln's call protocol: {0}")]
pub struct ProtocolError(&'static str);

/// Writes the head of a call. `host` is the agent's; `send` says whether the body waits until it is asked for.
///
/// # Errors
/// The call's URL or path cannot stand in a header line.
pub fn request_head(
    request: &CallRequest,
    host: &str,
    framing: WriteFraming,
    send: SendBody,
) -> Result<Vec<u8>, ProtocolError> {
    let lines = request.headers.as_bytes();
    let mut head =
        Vec::with_capacity(lines.len() + request.url.len() + request.path.len() + host.len() + 400);
    head.extend_from_slice(b"POST ");
    head.extend_from_slice(CALL_PATH.as_bytes());
    head.extend_from_slice(b" HTTP/1.1\r\n");
    head.extend_from_slice(CALL_HEADER.as_bytes());
    head.extend_from_slice(b": ");
    head.extend_from_slice(request.id.as_bytes());
    head.push(b' ');
    head.extend_from_slice(request.function.spec.id.as_bytes());
    head.push(b' ');
    push_hex(request.function.revision.0, &mut head);
    head.push(b' ');
    match request.kind {
        CallKind::Invoke => head.push(b'-'),
        CallKind::Trigger(id) => head.extend_from_slice(id.as_bytes()),
    }
    head.push(b' ');
    head.extend_from_slice(request.method.as_str().as_bytes());
    // In the same line, so that no client's line can be taken for it; who does not know these words passes them over.
    if let Some(placement) = &request.placement {
        head.push(b' ');
        placement.push_words(&mut head);
    }
    head.extend_from_slice(b"\r\n");
    for (name, value) in [(URL_HEADER, &*request.url), (PATH_HEADER, &*request.path)] {
        if value.bytes().any(|byte| byte.is_ascii_control()) {
            return Err(ProtocolError("a control character in a URL"));
        }
        push_line(&mut head, name, value.as_bytes());
    }
    head.extend_from_slice(lines);
    push_line(&mut head, "Host", host.as_bytes());
    match framing {
        WriteFraming::Fixed(length) => {
            head.extend_from_slice(b"Content-Length: ");
            push_decimal(length, &mut head);
            head.extend_from_slice(b"\r\n");
        }
        WriteFraming::Chunked | WriteFraming::UntilClose => {
            head.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
    }
    if send == SendBody::WhenAsked {
        head.extend_from_slice(b"Expect: 100-continue\r\n");
    }
    head.extend_from_slice(b"\r\n");
    Ok(head)
}

fn push_line(head: &mut Vec<u8>, name: &str, value: &[u8]) {
    head.extend_from_slice(name.as_bytes());
    head.extend_from_slice(b": ");
    head.extend_from_slice(value);
    head.extend_from_slice(b"\r\n");
}

fn push_hex(number: u64, out: &mut Vec<u8>) {
    out.extend((0..16).rev().map(|digit| b"0123456789abcdef"[(number >> (4 * digit)) as usize & 0xf]));
}

/// A call as an agent reads it: all but the function itself, which only the agent can look up.
#[derive(Debug)]
pub struct IncomingCall {
    /// Names the function.
    pub function: FunctionId,
    /// And its revision.
    pub revision: Revision,
    id: CallId,
    kind: CallKind,
    method: http::Method,
    url: String,
    path: Cow<'static, str>,
    headers: HeaderBlock,
    placement: Option<Placement>,
}

impl IncomingCall {
    /// Reads the head of a call of the balancer with that name.
    ///
    /// # Errors
    /// It is no call.
    pub fn read(head: RequestHead, balancer: &Arc<str>) -> Result<Self, ProtocolError> {
        let mut headers = head.headers;
        let (id, function, revision, kind, method, placement) = headers
            .take_first(CALL_HEADER, |line| read_call(line, balancer))
            .unwrap_or(Err(ProtocolError("no call in the first line")))?;
        let mut text = |name, missing| {
            let value = headers.take_first(name, |value| String::from_utf8(value.to_vec()));
            value.ok_or(ProtocolError(missing))?.map_err(|_| ProtocolError("a URL that is not text"))
        };
        let url = text(URL_HEADER, "no URL in its line")?;
        let path = Cow::Owned(text(PATH_HEADER, "no path in its line")?);
        Ok(Self { function, revision, id, kind, method, url, path, headers, placement })
    }

    /// The call, with the function that was looked up.
    pub fn into_request(self, function: Arc<Function>, body: Body, received: Instant) -> Box<CallRequest> {
        Box::new(CallRequest {
            id: self.id,
            function,
            kind: self.kind,
            method: self.method,
            url: self.url,
            path: self.path,
            headers: self.headers,
            body,
            received,
            placement: self.placement,
        })
    }
}

type CallLine = (CallId, FunctionId, Revision, CallKind, http::Method, Option<Placement>);

fn read_call(line: &[u8], balancer: &Arc<str>) -> Result<CallLine, ProtocolError> {
    let line = std::str::from_utf8(line).map_err(|_| ProtocolError("a call that is not text"))?;
    let mut words = line.split(' ');
    let mut word = || words.next().ok_or(ProtocolError("a call with too few words"));
    let id = word()?.parse().map_err(|_| ProtocolError("a bad call id"))?;
    let function = word()?.parse().map_err(|_| ProtocolError("a bad function id"))?;
    let revision = u64::from_str_radix(word()?, 16).map_err(|_| ProtocolError("a bad revision"))?;
    let kind = match word()? {
        "-" => CallKind::Invoke,
        trigger => CallKind::Trigger(trigger.parse().map_err(|_| ProtocolError("a bad trigger id"))?),
    };
    let method = word()?.parse().map_err(|_| ProtocolError("a bad method"))?;
    let placement = Placement::read_words(words, Arc::clone(balancer));
    Ok((id, function, Revision(revision), kind, method, placement))
}

/// The answer of a function, as an agent sends it.
pub fn answer(response: CallResponse) -> Response {
    let CallResponse { status, headers: lines, body, stages } = response;
    let mut headers = HeaderBlock::with_capacity(lines.as_bytes().len() + 48);
    let mut value = Vec::with_capacity(32);
    value.extend_from_slice(if stages.cold { b"cold " } else { b"warm " });
    push_decimal(as_micros(stages.wait), &mut value);
    for time in [stages.run, stages.start] {
        value.push(b' ');
        push_decimal(as_micros(time), &mut value);
    }
    headers.push_valid(ANSWER_HEADER.as_bytes(), &value);
    headers.extend(&lines);
    Response { status, headers, body }
}

/// A refusal, as an agent sends it.
pub fn refusal(reason: Refusal) -> Response {
    let mut headers = HeaderBlock::new();
    headers.push_valid(REFUSAL_HEADER.as_bytes(), reason.as_str().as_bytes());
    Response { status: 503, headers, body: Body::Empty }
}

/// A failure, as an agent sends it.
pub fn failure(failure: &Failure) -> Response {
    let mut headers = HeaderBlock::new();
    headers.push_valid(FAILURE_HEADER.as_bytes(), b"1");
    headers.push_valid(b"Content-Type", b"application/json");
    let json = serde_json::to_vec(failure).expect("a failure always serializes");
    // A status without a body would lose what the body says.
    let status = if (200..600).contains(&failure.status) { failure.status } else { 500 };
    Response { status, headers, body: Body::from(bytes::Bytes::from(json)) }
}

/// What the head of an agent's answer announces.
#[derive(Debug)]
pub enum Verdict {
    /// The function's answer: the status is the head's, these are its headers.
    Answer(HeaderBlock, Stages),
    /// No.
    Refused(Refusal),
    /// The body is a [`Failure`], see [`read_failure`].
    Failed,
}

/// Reads the head of an agent's answer.
///
/// # Errors
/// The peer is no agent.
pub fn read_answer(head: &mut ResponseHead) -> Result<Verdict, ProtocolError> {
    if let Some(stages) = head.headers.take_first(ANSWER_HEADER, read_stages) {
        let stages = stages.ok_or(ProtocolError("a bad answer line"))?;
        return Ok(Verdict::Answer(std::mem::take(&mut head.headers), stages));
    }
    if let Some(reason) = head.headers.take_first(REFUSAL_HEADER, Refusal::read) {
        return reason.map(Verdict::Refused).ok_or(ProtocolError("an unknown refusal"));
    }
    if head.headers.take_first(FAILURE_HEADER, |_| ()).is_some() {
        return Ok(Verdict::Failed);
    }
    Err(ProtocolError("an answer that is not Kiln's"))
}

fn read_stages(value: &[u8]) -> Option<Stages> {
    let (state, times) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    let cold = match state {
        "cold" => true,
        "warm" => false,
        _ => return None,
    };
    let mut times = times.split(' ').map(|text| text.parse().ok().map(Duration::from_micros));
    let (wait, run) = (times.next()??, times.next()??);
    // An agent of an earlier version does not tell it.
    let start = times.next().flatten().unwrap_or_default();
    Some(Stages { cold, wait, start, run })
}

/// Reads the body of a failure.
///
/// # Errors
/// It is none.
pub fn read_failure(body: &[u8]) -> Result<Failure, ProtocolError> {
    serde_json::from_slice(body).map_err(|_| ProtocolError("a bad failure"))
}

#[cfg(test)]
mod tests;
