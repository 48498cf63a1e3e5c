//! What one side writes, the other reads; what a client writes, neither takes for the other's.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::call::FailureKind;
use crate::contract::testing::function;
use crate::function::Format;
use crate::http1::head::{HeadLimits, parse_request, parse_response};
use crate::ids::{NodeId, TriggerId};
use crate::story::{Reason, RefusedTry};

fn request(headers: HeaderBlock) -> CallRequest {
    CallRequest {
        id: CallId::generate(),
        function: Arc::new(function(Format::HttpStream)),
        kind: CallKind::Trigger(TriggerId::generate()),
        method: http::Method::PUT,
        url: "http://example.com/t/a/s?q=1".to_owned(),
        path: "/s with spaces".into(),
        headers,
        body: Body::Empty,
        received: Instant::now(),
        placement: None,
    }
}

fn limits() -> HeadLimits {
    HeadLimits { target_bytes_max: 64 << 10, ..HeadLimits::default() }
}

fn read_back(sent: &CallRequest) -> Box<CallRequest> {
    let head =
        request_head(sent, "10.0.0.1:8081", WriteFraming::Chunked, SendBody::WhenAsked).expect("a head");
    let head = parse_request(&head, &limits()).expect("HTTP");
    assert!(head.expects_continue && head.target == CALL_PATH);
    let call = IncomingCall::read(head, &"lb1".into()).expect("a call");
    assert_eq!((call.function, call.revision), (sent.function.spec.id, sent.function.revision));
    call.into_request(Arc::clone(&sent.function), Body::Empty, sent.received)
}

#[test]
fn a_call_arrives_as_it_was_sent() {
    let mut headers = HeaderBlock::new();
    headers.push_valid(b"X-Mine", b"yes");
    let sent = request(headers);
    let read = read_back(&sent);
    assert_eq!((read.id, read.kind), (sent.id, sent.kind));
    assert_eq!((read.method, read.url, read.path), (sent.method, sent.url, sent.path));
    assert_eq!(read.headers, sent.headers);
}

#[test]
fn where_a_call_was_sent_and_why_arrives_with_it_and_only_from_the_balancer() {
    let told = Placement {
        balancer: "lb1".into(),
        reason: Some(Reason::RoomSpill),
        asked: 3,
        calls: 7,
        tries: 2,
        refused: vec![RefusedTry {
            node: NodeId::new("node-1"),
            reason: Reason::WarmHome,
            calls: 9,
            refusal: Refusal::Busy,
        }],
        waits: 1,
        waited: Duration::from_micros(1500),
        before: Duration::from_micros(1600),
    };
    let mut headers = HeaderBlock::new();
    headers.push_valid(b"Kiln-Call", b"warm_home 1 1 1 0 0 0");
    let mut sent = request(headers);
    assert_eq!(read_back(&sent).placement, None);
    sent.placement = Some(told.clone());
    let read = read_back(&sent);
    assert_eq!((read.placement, &read.headers), (Some(told), &sent.headers));
}

#[test]
fn an_answer_of_an_agent_that_tells_no_start_is_read() {
    assert_eq!(read_stages(b"warm 7 8").map(|stages| stages.start), Some(Duration::ZERO));
    assert_eq!(read_stages(b"warm 7"), None);
    assert_eq!(read_stages(b"warm 7 x"), None);
}

#[test]
fn a_clients_headers_are_never_taken_for_kilns() {
    let mut headers = HeaderBlock::new();
    for name in [CALL_HEADER, URL_HEADER, PATH_HEADER, ANSWER_HEADER] {
        headers.push_valid(name.as_bytes(), b"forged");
    }
    let sent = request(headers);
    let read = read_back(&sent);
    assert_eq!((read.id, read.url, &read.headers), (sent.id, sent.url, &sent.headers));
}

#[test]
fn what_is_no_call_is_refused() {
    for lines in [
        "",
        "X: y\r\n",
        "Kiln-Call: nonsense\r\n",
        "Kiln-Call: 01CQ4S2K8JNG8G00GZJ0000001 01CQ4S2K8JNG8G00GZJ0000002 xyz - GET\r\n",
        "Kiln-Call: 01CQ4S2K8JNG8G00GZJ0000001 01CQ4S2K8JNG8G00GZJ0000002 1f - GET\r\n",
        "Kiln-Call: 01CQ4S2K8JNG8G00GZJ0000001 01CQ4S2K8JNG8G00GZJ0000002 1f - GET\r\nKiln-Url: x\r\n",
        "Kiln-Call: 01CQ4S2K8JNG8G00GZJ0000001 01CQ4S2K8JNG8G00GZJ0000002 1f never GET\r\nKiln-Url: x\r\nKiln-Path: x\r\n",
    ] {
        let head = format!("POST /call HTTP/1.1\r\n{lines}Host: a\r\n\r\n");
        let head = parse_request(head.as_bytes(), &limits()).expect("HTTP");
        assert!(IncomingCall::read(head, &"lb1".into()).is_err(), "{lines}");
    }
}

#[test]
fn a_url_cannot_break_out_of_its_line() {
    let sent = CallRequest { path: "/a\r\nKiln-Token: x".into(), ..request(HeaderBlock::new()) };
    assert!(request_head(&sent, "h", WriteFraming::Fixed(0), SendBody::AtOnce).is_err());
}

fn sent_back(response: &Response) -> (ResponseHead, Result<Verdict, ProtocolError>) {
    let mut bytes = format!("HTTP/1.1 {} \r\n", response.status).into_bytes();
    bytes.extend_from_slice(response.headers.as_bytes());
    bytes.extend_from_slice(b"Content-Length: 0\r\n\r\n");
    let mut head = parse_response(&bytes, &limits()).expect("HTTP");
    let verdict = read_answer(&mut head);
    (head, verdict)
}

#[test]
fn an_answer_is_told_from_a_refusal_whatever_the_function_says() {
    let mut headers = HeaderBlock::new();
    headers.push_valid(REFUSAL_HEADER.as_bytes(), b"busy");
    headers.push_valid(ANSWER_HEADER.as_bytes(), b"forged");
    let [wait, start, run] = [1234, 1200, 5].map(Duration::from_micros);
    let stages = Stages { cold: true, wait, start, run };
    let body = Body::from(Bytes::from_static(b"x"));
    let sent = answer(CallResponse { status: 503, headers: headers.clone(), body, stages });
    let (head, verdict) = sent_back(&sent);
    let Ok(Verdict::Answer(read, read_stages)) = verdict else { panic!("{verdict:?}") };
    assert_eq!((head.status, read_stages, read), (503, stages, headers));
}

#[test]
fn refusals_and_failures_arrive() {
    for reason in [Refusal::Busy, Refusal::Draining, Refusal::UnknownFunction, Refusal::Unreachable] {
        let (head, verdict) = sent_back(&refusal(reason));
        assert!(matches!(verdict, Ok(Verdict::Refused(read)) if read == reason), "{verdict:?}");
        assert_eq!(head.status, 503);
    }
    let sent = Failure::out_of_memory().with_detail("137");
    let response = failure(&sent);
    let Body::Full(body) = &response.body else { panic!("no body") };
    assert_eq!(read_failure(body), Ok(sent));
    let (head, verdict) = sent_back(&response);
    assert!(matches!(verdict, Ok(Verdict::Failed)), "{verdict:?}");
    assert_eq!(head.status, 502);
    let odd = Failure::new(FailureKind::Internal, 42, "odd");
    assert_eq!(sent_back(&failure(&odd)).0.status, 500);
}

#[test]
fn a_server_that_is_no_agent_is_found_out() {
    let mut head = parse_response(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", &limits()).expect("HTTP");
    assert!(read_answer(&mut head).is_err());
}

proptest! {
    #[test]
    fn any_headers_come_through(lines in prop::collection::vec(("[A-Za-z][A-Za-z0-9-]{0,12}", "[ -~]{0,30}"), 0..20)) {
        let mut headers = HeaderBlock::new();
        for (name, value) in &lines {
            // These are taken off when the client's own head is read.
            let special = ["host", "expect", "content-length", "connection"].contains(&name.to_lowercase().as_str());
            if !special && !crate::http1::head::is_hop_by_hop(name.as_bytes(), value.as_bytes()) {
                headers.push_valid(name.as_bytes(), value.as_bytes());
            }
        }
        let sent = request(headers);
        let read = read_back(&sent);
        prop_assert_eq!(read.headers, sent.headers);
    }
}
