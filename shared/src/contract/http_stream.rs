//! `http-stream`: HTTP/1.1 over the unix socket that the function makes (`spec/container-contract.md`, A3, A4).
//!
//! Owns what the head of a call's request says and what a response means. Framing and connections are those of
//! [`crate::http1`].

use jiff::Timestamp;

use crate::call::{CallKind, CallRequest, Failure};
use crate::http1::head::is_hop_by_hop;
use crate::http1::{HeaderBlock, title_case};

use super::digits::{push_decimal, push_seconds};
use super::{CallFailed, ContainerFate};

/// Prefix of headers that belong to the HTTP request or response behind a trigger.
const GATEWAY_PREFIX: &[u8] = b"Fn-Http-H-";

/// Appends the whole head of the call's request: `POST /call`, the client's headers and Kiln's own.
///
/// The body that follows must be framed as the head says: exactly [`Body::length`](crate::body::Body::length)
/// bytes where that is known, else chunks. Names go out in title case, which FDKs expect.
pub fn request_head(call: &CallRequest, deadline: Timestamp, out: &mut Vec<u8>) {
    out.reserve(call.headers.as_bytes().len() + 2 * call.url.len() + 384);
    out.extend_from_slice(b"POST /call HTTP/1.1\r\nHost: localhost\r\nFn-Call-Id: ");
    out.extend_from_slice(call.id.as_bytes());
    out.extend_from_slice(b"\r\nFn-Deadline: ");
    push_seconds(deadline, out);
    let length = call.body.length();
    if let Some(bytes) = length {
        out.extend_from_slice(b"\r\nContent-Length: ");
        push_decimal(bytes, out);
    } else {
        out.extend_from_slice(b"\r\nTransfer-Encoding: chunked");
    }
    out.extend_from_slice(b"\r\n");
    match call.kind {
        CallKind::Invoke => {
            for (name, value) in &call.headers {
                if !(is_own(name) || is_framing(name, value)) {
                    push_line(b"", name, value, out);
                }
            }
        }
        CallKind::Trigger(_) => {
            push_line(b"", b"Fn-Intent", b"httprequest", out);
            push_line(b"", b"Fn-Http-Method", call.method.as_str().as_bytes(), out);
            push_line(b"", b"Fn-Http-Request-Url", call.url.as_bytes(), out);
            for (name, value) in &call.headers {
                if is_content_type(name) {
                    push_line(b"", name, value, out);
                } else if !is_framing(name, value) {
                    push_line(GATEWAY_PREFIX, name, value, out);
                }
            }
            // The function of a trigger sees the client's own headers, of which this is one.
            if let Some(bytes) = length.filter(|&bytes| bytes > 0) {
                out.extend_from_slice(b"Fn-Http-H-Content-Length: ");
                push_decimal(bytes, out);
                out.extend_from_slice(b"\r\n");
            }
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// What a container's response means.
#[derive(Debug)]
pub enum Verdict {
    /// The function answered; its body is the answer's body. The container is clean once the body was read to
    /// its end.
    Answer {
        /// Status for the client.
        status: u16,
        /// Header lines for the client, without framing, `Date` and `Fn-Call-Id`.
        headers: HeaderBlock,
    },
    /// There is no answer, and head and body of the response are dropped.
    Failed(CallFailed),
}

/// Judges a response by its head (`spec/container-contract.md`, A4) and maps its headers for the client: all of
/// them for an invocation, those of the gateway for a trigger (`spec/api-v2.md`, parts 4 and 5).
///
/// `headers` are end-to-end lines, as [`crate::http1::head::parse_response`] gives them.
pub fn verdict(kind: CallKind, status: u16, headers: &HeaderBlock) -> Verdict {
    match status {
        200 => match kind {
            CallKind::Invoke => Verdict::Answer { status: 200, headers: invoke_headers(headers) },
            CallKind::Trigger(_) => {
                let (status, headers) = trigger_answer(headers);
                Verdict::Answer { status, headers }
            }
        },
        502 => Verdict::Failed(CallFailed::keep(Failure::function_failed())),
        504 => Verdict::Failed(CallFailed::keep(Failure::timed_out())),
        other => {
            let failure =
                Failure::invalid_response().with_detail(format!("the function answered with status {other}"));
            Verdict::Failed(CallFailed { failure, container: ContainerFate::Kill })
        }
    }
}

fn invoke_headers(headers: &HeaderBlock) -> HeaderBlock {
    let mut mapped = HeaderBlock::with_capacity(headers.as_bytes().len());
    for (name, value) in headers {
        if !is_reserved(name, value) {
            mapped.push_valid(name, value);
        }
    }
    mapped
}

/// Status and headers for the client of a trigger. Of several content types the first unprefixed one counts, and a
/// prefixed one only if there is no other.
fn trigger_answer(headers: &HeaderBlock) -> (u16, HeaderBlock) {
    let mut status = 200;
    let mut mapped = HeaderBlock::with_capacity(headers.as_bytes().len());
    let mut content_type = None;
    let mut prefixed_content_type = None;
    for (name, value) in headers {
        if is_content_type(name) {
            content_type = content_type.or(Some(value));
        } else if let Some(name) = strip_gateway_prefix(name) {
            if is_content_type(name) {
                prefixed_content_type = prefixed_content_type.or(Some(value));
            } else if !(name.is_empty() || is_reserved(name, value)) {
                mapped.push_valid(name, value);
            }
        } else if name.eq_ignore_ascii_case(b"Fn-Http-Status") {
            status = gateway_status(value).unwrap_or(status);
        }
    }
    if let Some(value) = content_type.or(prefixed_content_type) {
        mapped.push_valid(b"Content-Type", value);
    }
    (status, mapped)
}

/// A status that may end a response; others would break the client's framing and are ignored.
fn gateway_status(value: &[u8]) -> Option<u16> {
    let status = std::str::from_utf8(value.trim_ascii()).ok()?.parse().ok()?;
    (200..1000).contains(&status).then_some(status)
}

fn strip_gateway_prefix(name: &[u8]) -> Option<&[u8]> {
    let (prefix, rest) = name.split_at_checked(GATEWAY_PREFIX.len())?;
    prefix.eq_ignore_ascii_case(GATEWAY_PREFIX).then_some(rest)
}

/// True for headers that Kiln writes itself on every request to a container.
fn is_own(name: &[u8]) -> bool {
    match name.len() {
        10 => name.eq_ignore_ascii_case(b"Fn-Call-Id"),
        11 => name.eq_ignore_ascii_case(b"Fn-Deadline"),
        _ => false,
    }
}

/// True for headers that would break the framing of a message if they were copied.
pub(super) fn is_framing(name: &[u8], value: &[u8]) -> bool {
    match name.len() {
        4 => name.eq_ignore_ascii_case(b"Host"),
        14 => name.eq_ignore_ascii_case(b"Content-Length"),
        _ => is_hop_by_hop(name, value),
    }
}

/// True for headers of a function's answer that only Kiln may write.
pub(super) fn is_reserved(name: &[u8], value: &[u8]) -> bool {
    match name.len() {
        4 => name.eq_ignore_ascii_case(b"Date"),
        10 if name.eq_ignore_ascii_case(b"Fn-Call-Id") => true,
        14 => name.eq_ignore_ascii_case(b"Content-Length"),
        _ => is_hop_by_hop(name, value),
    }
}

pub(super) fn is_content_type(name: &[u8]) -> bool {
    name.len() == 12 && name.eq_ignore_ascii_case(b"Content-Type")
}

/// Appends a line, its name in title case.
pub(super) fn push_line(prefix: &[u8], name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(prefix);
    let start = out.len();
    out.extend_from_slice(name);
    title_case(&mut out[start..]);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::Body;
    use crate::call::FailureKind;
    use crate::contract::testing::{block, call};
    use crate::function::Format;
    use crate::ids::TriggerId;

    fn head(call: &CallRequest) -> String {
        let mut out = Vec::new();
        request_head(call, "2018-09-30T12:00:30.7Z".parse().expect("a time"), &mut out);
        String::from_utf8(out).expect("text")
    }

    fn trigger() -> CallKind {
        CallKind::Trigger(TriggerId::generate())
    }

    fn answer(kind: CallKind, headers: &[(&str, &str)]) -> (u16, String) {
        match verdict(kind, 200, &block(headers)) {
            Verdict::Answer { status, headers } => {
                (status, String::from_utf8(headers.as_bytes().to_vec()).expect("text"))
            }
            Verdict::Failed(failed) => panic!("{failed}"),
        }
    }

    #[test]
    fn an_invocation_passes_the_clients_headers_and_replaces_its_id_and_deadline() {
        let call = call(
            Format::HttpStream,
            &[
                ("content-type", "text/plain"),
                ("fn-call-id", "forged"),
                ("FN-DEADLINE", "forged"),
                ("Authorization", "Bearer x"),
                ("Fn-Intent", "httprequest"),
                ("Content-Length", "9"),
                ("Transfer-Encoding", "chunked"),
                ("Host", "evil"),
            ],
            "hello",
        );
        let expected = format!(
            "POST /call HTTP/1.1\r\nHost: localhost\r\nFn-Call-Id: {}\r\nFn-Deadline: 2018-09-30T12:00:30Z\r\n\
             Content-Length: 5\r\nContent-Type: text/plain\r\nAuthorization: Bearer x\r\nFn-Intent: httprequest\r\n\r\n",
            call.id
        );
        assert_eq!(head(&call), expected);
    }

    #[test]
    fn a_trigger_prefixes_all_headers_but_the_content_type() {
        let mut call = call(
            Format::HttpStream,
            &[
                ("accept", "*/*"),
                ("Content-Type", "text/plain"),
                ("Fn-Intent", "x"),
                ("Fn-Call-Id", "y"),
                ("Fn-Http-H-A", "z"),
            ],
            "hello",
        );
        call.kind = trigger();
        call.method = http::Method::PUT;
        let expected = format!(
            "POST /call HTTP/1.1\r\nHost: localhost\r\nFn-Call-Id: {}\r\nFn-Deadline: 2018-09-30T12:00:30Z\r\n\
             Content-Length: 5\r\nFn-Intent: httprequest\r\nFn-Http-Method: PUT\r\n\
             Fn-Http-Request-Url: http://localhost:8080/t/demo/hello?x=1\r\nFn-Http-H-Accept: */*\r\n\
             Content-Type: text/plain\r\nFn-Http-H-Fn-Intent: x\r\nFn-Http-H-Fn-Call-Id: y\r\n\
             Fn-Http-H-Fn-Http-H-A: z\r\nFn-Http-H-Content-Length: 5\r\n\r\n",
            call.id
        );
        assert_eq!(head(&call), expected);
    }

    #[test]
    fn a_body_of_unknown_length_goes_in_chunks() {
        let mut call = call(Format::HttpStream, &[], "");
        assert!(head(&call).contains("\r\nContent-Length: 0\r\n"));
        call.body = Body::stream(Body::Empty);
        let head = head(&call);
        assert!(
            head.contains("\r\nTransfer-Encoding: chunked\r\n") && !head.contains("Content-Length"),
            "{head}"
        );
    }

    #[test]
    fn an_invocation_gets_every_header_but_those_of_the_transport() {
        let headers = [
            ("content-type", "text/plain"),
            ("Fn-Http-Status", "404"),
            ("fn-http-h-x-a", "b"),
            ("Fn-Fdk-Version", "fdk-go/0.0.66"),
            ("Date", "Mon"),
            ("Fn-Call-Id", "forged"),
            ("Content-Length", "3"),
            ("Connection", "keep-alive"),
            ("Set-Cookie", "a"),
            ("Set-Cookie", "b"),
        ];
        let (status, lines) = answer(CallKind::Invoke, &headers);
        assert_eq!(status, 200);
        assert_eq!(
            lines,
            "content-type: text/plain\r\nFn-Http-Status: 404\r\nfn-http-h-x-a: b\r\nFn-Fdk-Version: fdk-go/0.0.66\r\n\
             Set-Cookie: a\r\nSet-Cookie: b\r\n"
        );
    }

    #[test]
    fn a_trigger_gets_only_gateway_headers_and_the_content_type() {
        let headers = [
            ("fn-http-status", " 418 "),
            ("fn-http-h-x-a", "b"),
            ("Fn-Http-H-", "bare"),
            ("Fn-Http-H-Content-Length", "3"),
            ("FN-HTTP-H-Transfer-Encoding", "chunked"),
            ("Fn-Http-H-Connection", "close"),
            ("Fn-Http-H-Date", "Mon"),
            ("Fn-Http-H-Fn-Call-Id", "forged"),
            ("Fn-Http-H-Content-Type", "text/html"),
            ("Content-Type", "text/x"),
            ("Fn-Fdk-Version", "x"),
            ("X-Other", "y"),
        ];
        assert_eq!(answer(trigger(), &headers), (418, "x-a: b\r\nContent-Type: text/x\r\n".to_owned()));
        assert_eq!(answer(trigger(), &headers[8..9]), (200, "Content-Type: text/html\r\n".to_owned()));
    }

    #[test]
    fn a_bad_gateway_status_is_ignored() {
        for value in ["", "0", "-1", "100", "101", "199", "1000", "70000", "abc", "2e2", "٣٠٠"] {
            assert_eq!(answer(trigger(), &[("Fn-Http-Status", value)]).0, 200, "{value:?}");
        }
        assert_eq!(answer(trigger(), &[("Fn-Http-Status", "204")]).0, 204);
    }

    #[test]
    fn only_200_502_and_504_keep_the_container() {
        let cases = [
            (502, FailureKind::FunctionFailed, 502, ContainerFate::Keep),
            (504, FailureKind::TimedOut, 504, ContainerFate::Keep),
            (500, FailureKind::InvalidResponse, 502, ContainerFate::Kill),
            (404, FailureKind::InvalidResponse, 502, ContainerFate::Kill),
            (201, FailureKind::InvalidResponse, 502, ContainerFate::Kill),
            (101, FailureKind::InvalidResponse, 502, ContainerFate::Kill),
        ];
        for kind in [CallKind::Invoke, trigger()] {
            for (status, failure, client_status, container) in cases {
                match verdict(kind, status, &HeaderBlock::new()) {
                    Verdict::Failed(failed) => {
                        assert_eq!(failed.failure.kind, failure);
                        assert_eq!(
                            (failed.failure.status, failed.container),
                            (client_status, container),
                            "{status}"
                        );
                    }
                    Verdict::Answer { .. } => panic!("{status} passed"),
                }
            }
        }
    }
}
