//! Requests that are broken, ambiguous or unusual, as bytes on a socket (RFC 9112). Whatever is in doubt is answered,
//! the connection closed, and nothing of it, nor of what follows it, reaches a node.

use std::time::Duration;

use bytes::Bytes;
use kiln_lb::edge::EdgeConfig;
use kiln_shared::body::Body;
use kiln_shared::http1::head::HeadLimits;
use kiln_shared::http1::server::ConnectionLimits;

use crate::support::{Reply, TestEdge, answer};

/// What an attacker would like to see answered behind a request whose end is in doubt.
const SMUGGLED: &str = "GET /t/demo HTTP/1.1\r\nHost: h\r\n\r\n";

/// An edge whose function answers with method, path and body, and whose limits are small.
async fn edge() -> TestEdge {
    let connection = ConnectionLimits {
        head: HeadLimits { bytes_max: 2048, target_bytes_max: 256, fields_max: 16 },
        ..ConnectionLimits::default()
    };
    TestEdge::start_with(EdgeConfig { connection, ..EdgeConfig::default() }, |seen| {
        // Empty if an HTTP/1.0 client names no host.
        let path = seen.url.trim_start_matches("http://").trim_start_matches('h');
        let text = format!("{} {path} {}.", seen.method, String::from_utf8_lossy(&seen.body));
        answer(200, &[("Content-Type", "text/plain")], Body::from(Bytes::from(text)))
    })
    .await
}

/// Asserts that the bytes get one refusal with this status, that the edge closes the connection, and that no whole
/// call came of it; the refusal.
async fn refused(edge: &TestEdge, bytes: &[u8], status: u16) -> Reply {
    let shown = String::from_utf8_lossy(bytes);
    let text = edge.exchange(bytes).await;
    assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{shown:?}: {text}");
    let reply = Reply::parse(&text);
    assert_eq!(reply.status, status, "{shown:?}: {text}");
    assert_eq!(reply.header("Connection"), Some("close"), "{shown:?}: {text}");
    assert_eq!(reply.header("Content-Type"), Some("application/json; charset=utf-8"), "{shown:?}");
    assert_eq!(reply.header("Content-Length"), Some(reply.body.len().to_string().as_str()), "{shown:?}");
    assert!(
        serde_json::from_str::<serde_json::Value>(&reply.body).is_ok_and(|body| body["message"].is_string())
    );
    assert_eq!(edge.node.whole(), [], "{shown:?}");
    reply
}

#[tokio::test]
async fn a_broken_or_ambiguous_head_is_refused_and_never_forwarded() {
    let edge = edge().await;
    let post = "POST /t/demo/hello HTTP/1.1\r\nHost: h\r\n";
    let get = "GET /t/demo/hello HTTP/1.1\r\n";
    for (head, status) in [
        // Two ends of the body (RFC 9112, 6.3; 11.2).
        (format!("{post}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 400),
        (format!("{post}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"), 400),
        (format!("{post}Content-Length: 0\r\nContent-Length: 5\r\n\r\n"), 400),
        (format!("{post}Content-Length: 0\r\nContent-Length: 0\r\n\r\n"), 400),
        (format!("{post}Content-Length: 0, 5\r\n\r\n"), 400),
        (format!("{post}Content-Length: +0\r\n\r\n"), 400),
        (format!("{post}Content-Length: -1\r\n\r\n"), 400),
        (format!("{post}Content-Length: 0x5\r\n\r\n"), 400),
        (format!("{post}Content-Length:\r\n\r\n"), 400),
        (format!("{post}Content-Length: 99999999999999999999\r\n\r\n"), 400),
        (format!("{post}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 400),
        (format!("{post}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"), 501),
        (format!("{post}Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"), 400),
        (format!("{post}Transfer-Encoding: gzip\r\n\r\n"), 501),
        ("POST /t/demo/hello HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(), 400),
        // Line ends, white space, folding (2.2, 5.1, 5.2).
        (format!("{get}Host: h\nX: y\r\n\r\n"), 400),
        (format!("{get}Host: h\r\nX: y\n\n"), 400),
        ("GET /t/demo/hello HTTP/1.1\nHost: h\n\n".into(), 400),
        (format!("{get}Host: h\r\nX: a\rb\r\n\r\n"), 400),
        (format!("{get}Host: h\r\nX: a\0b\r\n\r\n"), 400),
        (format!("{get}Host: h\r\nX\0: a\r\n\r\n"), 400),
        (format!("{get}Host: h\r\nX : y\r\n\r\n"), 400),
        (format!("{post}Content-Length : 5\r\n\r\n"), 400),
        (format!("{post}Content-Length\t: 5\r\n\r\n"), 400),
        (format!("{get}Host: h\r\nX: a\r\n b\r\n\r\n"), 400),
        (format!("{get}Host: h\r\nX: a\r\n\tb\r\n\r\n"), 400),
        (format!("{get} Host: h\r\n\r\n"), 400),
        (format!("{get}Host: h\r\n: y\r\n\r\n"), 400),
        (format!("{get}Host: h\r\nno colon\r\n\r\n"), 400),
        // Host (3.2).
        (format!("{get}\r\n"), 400),
        (format!("{get}Host: h\r\nHost: h\r\n\r\n"), 400),
        (format!("{get}Host: h\r\nhost: other\r\n\r\n"), 400),
        (format!("{get}Host: a b\r\n\r\n"), 400),
        (format!("{get}Host: h/t\r\n\r\n"), 400),
        // The request line (3).
        ("GET /t/demo/hello HTTP/1.2\r\nHost: h\r\n\r\n".into(), 505),
        ("GET /t/demo/hello HTTP/2.0\r\nHost: h\r\n\r\n".into(), 505),
        ("GET /t/demo/hello http/1.1\r\nHost: h\r\n\r\n".into(), 505),
        ("GET /t/demo/hello\r\nHost: h\r\n\r\n".into(), 400),
        ("GET  /t/demo/hello HTTP/1.1\r\nHost: h\r\n\r\n".into(), 400),
        ("GET t/demo/hello HTTP/1.1\r\nHost: h\r\n\r\n".into(), 400),
        ("GET /t/demo/hello#x HTTP/1.1\r\nHost: h\r\n\r\n".into(), 400),
        ("GET ftp://h/t/demo/hello HTTP/1.1\r\nHost: h\r\n\r\n".into(), 400),
        ("CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n".into(), 400),
        ("G(T /t/demo/hello HTTP/1.1\r\nHost: h\r\n\r\n".into(), 400),
        (format!("{post}Expect: 200-ok\r\nContent-Length: 0\r\n\r\n"), 400),
        // Limits.
        (format!("GET /t/demo/{} HTTP/1.1\r\nHost: h\r\n\r\n", "x".repeat(300)), 414),
        (format!("GET /t/demo/{}", "x".repeat(3000)), 414),
        (format!("{get}Host: h\r\n{}\r\n", "X: y\r\n".repeat(16)), 431),
        (format!("{get}Host: h\r\nX: {}\r\n\r\n", "y".repeat(3000)), 431),
        (format!("{get}Host: h\r\nX: {}", "y".repeat(3000)), 431),
    ] {
        refused(&edge, format!("{head}{SMUGGLED}").as_bytes(), status).await;
    }
    assert_eq!(edge.node.calls(), 0);
}

#[tokio::test]
async fn a_broken_chunked_body_never_ends_and_nothing_behind_it_is_a_request() {
    let edge = edge().await;
    let chunked = "POST /t/demo/hello HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    for body in [
        "zz\r\nhi\r\n0\r\n\r\n",
        "-1\r\nhi\r\n0\r\n\r\n",
        "0x2\r\nhi\r\n0\r\n\r\n",
        " 2\r\nhi\r\n0\r\n\r\n",
        "2 \r\nhi\r\n0\r\n\r\n",
        "\r\nhi\r\n0\r\n\r\n",
        "ffffffffffffffff2\r\nhi\r\n0\r\n\r\n",
        "2\nhi\r\n0\r\n\r\n",
        "2\r\nhi\n0\r\n\r\n",
        "2\r\nhi!\r\n0\r\n\r\n",
        "3\r\nhi\r\n0\r\n\r\n",
        "2;a\x01b\r\nhi\r\n0\r\n\r\n",
        "2\r\nhi\r\n0\r\nX: y\n\r\n",
    ] {
        refused(&edge, format!("{chunked}{body}{SMUGGLED}").as_bytes(), 400).await;
    }
    let extension = "x".repeat(1000);
    refused(&edge, format!("{chunked}2;{extension}\r\nhi\r\n0\r\n\r\n{SMUGGLED}").as_bytes(), 400).await;
    let trailer = "X: y\r\n".repeat(3000);
    refused(&edge, format!("{chunked}0\r\n{trailer}\r\n{SMUGGLED}").as_bytes(), 400).await;
}

#[tokio::test]
async fn a_head_or_body_that_does_not_come_gets_408() {
    let quick = Duration::from_millis(400);
    let connection =
        ConnectionLimits { head_timeout: quick, body_timeout: quick, ..ConnectionLimits::default() };
    let config = EdgeConfig { connection, ..EdgeConfig::default() };
    let edge = TestEdge::start_with(config, |_| answer(200, &[], Body::Empty)).await;
    for begun in
        ["G", "GET /t/demo/hello HTTP/1.1\r\nHost: h\r\n", "GET /t/demo/hello HTTP/1.1\r\nHost: h\r\n\r"]
    {
        refused(&edge, begun.as_bytes(), 408).await;
    }
    assert_eq!(edge.node.calls(), 0);
    for begun in ["Content-Length: 5\r\n\r\nhi", "Transfer-Encoding: chunked\r\n\r\n5\r\nhi"] {
        refused(&edge, format!("POST /t/demo/hello HTTP/1.1\r\nHost: h\r\n{begun}").as_bytes(), 408).await;
    }
}

#[tokio::test]
async fn pipelined_requests_are_all_answered_in_order() {
    let edge = edge().await;
    let mut requests = String::new();
    let mut expected = Vec::new();
    for number in 0..50 {
        let body = "b".repeat(number);
        let (request, answered) = match number % 4 {
            0 => (format!("GET /t/demo/hello?{number} HTTP/1.1\r\nHost: h\r\n\r\n"), "GET"),
            1 => (
                format!(
                    "PUT /t/demo/hello?{number} HTTP/1.1\r\nHost: h\r\nContent-Length: {number}\r\n\r\n{body}"
                ),
                "PUT",
            ),
            2 => (
                format!(
                    "POST /t/demo/hello?{number} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
                     {number:x}\r\n{body}\r\n0\r\nTrailer: x\r\n\r\n"
                ),
                "POST",
            ),
            // An empty line before a request is passed over (RFC 9112, 2.2).
            _ => (
                format!("\r\nDELETE http://h/t/demo/hello?{number} HTTP/1.1\r\nHost: other\r\n\r\n"),
                "DELETE",
            ),
        };
        requests.push_str(&request);
        let body = if matches!(answered, "PUT" | "POST") { body } else { String::new() };
        expected.push(format!("{answered} /t/demo/hello?{number} {body}."));
    }
    requests.push_str("GET /t/demo/hello?last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    expected.push("GET /t/demo/hello?last .".to_owned());
    // Nothing behind the request that asks to close is looked at.
    requests.push_str(SMUGGLED);

    let mut rest = edge.exchange(requests).await;
    for expected in &expected {
        let reply = Reply::parse(&rest);
        let length: usize = reply.header("Content-Length").expect("a length").parse().expect("a number");
        assert_eq!((reply.status, &reply.body[..length]), (200, expected.as_str()));
        rest = reply.body[length..].to_owned();
    }
    assert_eq!(rest, "");
    assert_eq!(edge.node.calls(), expected.len());
}

#[tokio::test]
async fn a_broken_request_behind_a_good_one_is_refused_after_the_good_ones_answer() {
    let edge = edge().await;
    let text =
        edge.exchange(format!("{SMUGGLED}GET /t/demo HTTP/1.1\r\nHost: h\nX: y\r\n\r\n{SMUGGLED}")).await;
    let statuses: Vec<_> = text.match_indices("HTTP/1.1 ").map(|(at, _)| &text[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["200", "400"], "{text}");
    assert_eq!(edge.node.calls(), 1);
}

#[tokio::test]
async fn continue_is_said_when_the_body_is_wanted_and_not_to_a_refusal() {
    let edge = edge().await;
    let head = |path: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    };
    let mut client = edge.connect().await;
    client.send(head("/t/demo/hello")).await;
    assert_eq!(client.until("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("hi").await;
    client.until("POST /t/demo/hello hi.").await;
    client.send(SMUGGLED).await;
    client.until("GET /t/demo .").await;
    assert_eq!(edge.node.calls(), 2);

    let mut client = edge.connect().await;
    client.send(head("/t/demo/unknown")).await;
    Reply::parse(&client.rest().await).refused(404, "Trigger not found");

    // A client of HTTP/1.0 knows no interim answers (RFC 9110, 10.1.1).
    let head = head("/t/demo/hello").replace("HTTP/1.1", "HTTP/1.0");
    let text = edge.exchange(format!("{head}hi")).await;
    assert!(text.starts_with("HTTP/1.0 200 OK\r\n") && text.ends_with("POST /t/demo/hello hi."), "{text}");
}

#[tokio::test]
async fn http_1_0_gets_answers_that_it_can_read() {
    let streaming =
        TestEdge::start(|_| answer(200, &[], Body::stream(Body::from(Bytes::from_static(b"streamed")))))
            .await;
    let text = streaming.exchange("GET /t/demo/hello HTTP/1.0\r\n\r\n").await;
    let reply = Reply::parse(&text);
    assert!(text.starts_with("HTTP/1.0 200 OK\r\n") && reply.body == "streamed", "{text}");
    assert_eq!(reply.header("Transfer-Encoding"), None);
    assert_eq!((reply.header("Connection"), reply.header("Content-Length")), (Some("close"), None));

    let edge = edge().await;
    let mut client = edge.connect().await;
    client.send("GET /t/demo/hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
    let kept = Reply::parse(&client.until("GET /t/demo/hello .").await);
    assert_eq!(kept.header("Connection"), Some("keep-alive"));
    client.send("GET /t/demo/hello HTTP/1.0\r\nHost: h\r\n\r\n").await;
    assert_eq!(Reply::parse(&client.rest().await).header("Connection"), Some("close"));
}
