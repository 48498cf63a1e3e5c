//! `cloudevent`: CloudEvents 0.1 in JSON on STDIN and STDOUT (`spec/container-contract.md`, B5).

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::call::{CallRequest, Failure, FailureKind};

use super::CallFailed;
use super::environment::deadline_text;
use super::json::{Answer, content_type};
use super::protocol::{AnswerProtocol, RequestProtocol};

const EVENT_TYPE: &str = "application/cloudevents+json";

/// True if the client sent an event.
pub(super) fn is_event(call: &CallRequest) -> bool {
    media_type(&content_type(call)).eq_ignore_ascii_case(EVENT_TYPE)
}

/// A content type without its parameters.
fn media_type(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RequestEvent<'a> {
    cloud_events_version: &'a str,
    #[serde(rename = "eventID")]
    event_id: &'a str,
    source: &'a str,
    event_type: &'a str,
    event_type_version: &'a str,
    event_time: &'a str,
    #[serde(rename = "schemaURL")]
    schema_url: &'a str,
    content_type: &'a str,
    extensions: BTreeMap<String, Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
}

/// Holds the body until it is whole; an event cannot be written before.
#[derive(Debug)]
pub(super) struct RequestEncoder {
    call_id: String,
    url: String,
    content_type: String,
    protocol: Box<RawValue>,
    deadline: Box<RawValue>,
    is_event: bool,
    body: Vec<u8>,
}

impl RequestEncoder {
    pub(super) fn new(call: &CallRequest, deadline: Timestamp, is_event: bool) -> Self {
        Self {
            call_id: call.id.as_str().to_owned(),
            url: call.url.clone(),
            content_type: content_type(call),
            protocol: raw(&RequestProtocol::of(call)),
            deadline: raw(&deadline_text(deadline)),
            is_event,
            body: Vec::new(),
        }
    }

    pub(super) fn body(&mut self, piece: &[u8], bytes_max: usize) -> Result<(), CallFailed> {
        if self.body.len() + piece.len() > bytes_max {
            return Err(CallFailed::keep(Failure::request_too_large()));
        }
        self.body.extend_from_slice(piece);
        Ok(())
    }

    pub(super) fn finish(self, out: &mut Vec<u8>) -> Result<(), CallFailed> {
        if self.is_event { self.finish_event(out) } else { self.finish_data(out) }
    }

    /// Puts the body into an event.
    fn finish_data(self, out: &mut Vec<u8>) -> Result<(), CallFailed> {
        let text = if self.body.trim_ascii().is_empty() { None } else { Some(one_line(&self.body)) };
        let data = text.as_deref().map(serde_json::from_slice::<&RawValue>).transpose().map_err(|error| {
            bad_request(format!("Invalid json body with contentType 'application/json'. {error}"))
        })?;
        let event = RequestEvent {
            cloud_events_version: "0.1",
            event_id: &self.call_id,
            source: &self.url,
            event_type: "http",
            event_type_version: "",
            event_time: "0001-01-01T00:00:00.000Z",
            schema_url: "",
            content_type: &self.content_type,
            extensions: [("protocol".to_owned(), self.protocol), ("deadline".to_owned(), self.deadline)]
                .into(),
            data,
        };
        push_json_line(&event, out);
        Ok(())
    }

    /// Adds the call's extensions to the client's own event.
    fn finish_event(self, out: &mut Vec<u8>) -> Result<(), CallFailed> {
        let invalid = |error| bad_request(format!("Invalid CloudEvent input. {error}"));
        let mut event: BTreeMap<String, Box<RawValue>> =
            serde_json::from_slice(&one_line(&self.body)).map_err(invalid)?;
        let extensions: Option<BTreeMap<String, Box<RawValue>>> = match event.get("extensions") {
            None => None,
            Some(extensions) => serde_json::from_str(extensions.get()).map_err(invalid)?,
        };
        let mut extensions = extensions.unwrap_or_default();
        extensions.insert("protocol".to_owned(), self.protocol);
        extensions.insert("deadline".to_owned(), self.deadline);
        event.insert("extensions".to_owned(), raw(&extensions));
        push_json_line(&event, out);
        Ok(())
    }
}

/// The request is at fault, and the container saw nothing of it.
fn bad_request(message: String) -> CallFailed {
    CallFailed::keep(Failure::new(FailureKind::BadRequest, 400, message))
}

fn raw(value: &impl Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).expect("maps with text keys serialize")
}

fn push_json_line(value: &impl Serialize, out: &mut Vec<u8>) {
    serde_json::to_writer(&mut *out, value).expect("maps with text keys serialize");
    out.push(b'\n');
}

/// JSON without the blanks between its tokens, so that it is one line and numbers stay as they were written. What
/// is not JSON stays so.
fn one_line(json: &[u8]) -> Vec<u8> {
    let mut line = Vec::with_capacity(json.len());
    let (mut in_string, mut escaped, mut blank) = (false, false, false);
    for &byte in json {
        if !in_string && b" \t\r\n".contains(&byte) {
            blank = true;
            continue;
        }
        // Two tokens that only a blank kept apart must not become one.
        if std::mem::take(&mut blank)
            && !in_string
            && !b"{}[]:,\"".contains(&byte)
            && line.last().is_some_and(|last| !b"{}[]:,\"".contains(last))
        {
            line.push(b' ');
        }
        if escaped {
            escaped = false;
        } else if in_string && byte == b'\\' {
            escaped = true;
        } else if byte == b'"' {
            in_string = !in_string;
        }
        line.push(byte);
    }
    line
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AnswerEvent<'a> {
    content_type: Option<String>,
    #[serde(default)]
    extensions: Option<AnswerExtensions>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Debug, Default, Deserialize)]
struct AnswerExtensions {
    protocol: Option<AnswerProtocol>,
}

fn read(object: &str) -> Result<AnswerEvent<'_>, String> {
    serde_json::from_str(object).map_err(|error| error.to_string())
}

/// Reads an answer whose body is the data of an event. An event without a content type holds JSON.
pub(super) fn read_answer(object: &str) -> Result<Answer, String> {
    let event = read(object)?;
    let (status, headers) = event
        .extensions
        .unwrap_or_default()
        .protocol
        .unwrap_or_default()
        .head(event.content_type.as_deref())?;
    let body = match (media_type(event.content_type.as_deref().unwrap_or_default()), event.data) {
        (_, None) => String::new(),
        ("" | "application/json", Some(data)) => data.get().to_owned(),
        ("text/plain", Some(data)) => serde_json::from_str(data.get()).map_err(|error| error.to_string())?,
        (other, Some(_)) => return Err(format!("Error: Unknown content type: {other}")),
    };
    Ok(Answer { status, headers, body: body.into() })
}

/// Reads an answer that is an event as a whole, for a client that sent one.
pub(super) fn read_event(object: &str) -> Result<Answer, String> {
    let event = read(object)?;
    let (status, headers) =
        event.extensions.unwrap_or_default().protocol.unwrap_or_default().head(Some(EVENT_TYPE))?;
    Ok(Answer { status, headers, body: object.to_owned().into() })
}
