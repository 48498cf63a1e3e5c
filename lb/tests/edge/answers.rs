//! What a client sees of a function's answer.

use std::sync::Mutex;

use bytes::Bytes;
use kiln_shared::body::{Body, BodyError};
use kiln_shared::call::CallResponse;
use tokio::sync::mpsc;

use crate::fed::fed;
use crate::support::{Reply, TestEdge, WAIT, answer};

/// An edge whose node gives this answer to the first call, and an empty one after.
async fn answering_once(response: CallResponse) -> TestEdge {
    let once = Mutex::new(Some(response));
    TestEdge::start(move |_| {
        once.lock().expect("no panic with it").take().unwrap_or_else(|| answer(200, &[], Body::Empty))
    })
    .await
}

/// The same answer, twice: with its body at hand, and as a stream of unknown length.
fn both_ways(status: u16, headers: &[(&str, &str)], body: &'static str) -> [CallResponse; 2] {
    let whole = answer(status, headers, Body::from(Bytes::from_static(body.as_bytes())));
    let streamed = Body::stream(Body::from(Bytes::from_static(body.as_bytes())));
    [whole, answer(status, headers, streamed)]
}

#[tokio::test]
async fn an_answer_without_a_type_gets_that_of_its_first_bytes() {
    for (body, content_type) in [
        ("hello", "text/plain; charset=utf-8"),
        ("{\"a\":1}", "text/plain; charset=utf-8"),
        ("\n<html><body>", "text/html; charset=utf-8"),
        ("%PDF-1.7", "application/pdf"),
        ("\x01\x02", "application/octet-stream"),
    ] {
        for (method, is_trigger) in [("POST", false), ("GET", true)] {
            for response in both_ways(200, &[("X-Other", "y")], body) {
                let edge = answering_once(response).await;
                let path = if is_trigger { "/t/demo/hello" } else { edge.invoke_path.as_str() };
                let reply = edge.request(method, path).await;
                assert_eq!((reply.status, reply.header("Content-Type")), (200, Some(content_type)));
                assert!(reply.body.contains(body) && reply.header("X-Other") == Some("y"), "{reply:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_type_or_coding_that_the_function_names_is_left_alone() {
    for (headers, body, content_type) in [
        (&[("content-type", "text/x")][..], "<html>", Some("text/x")),
        (&[("Content-Type", "")][..], "<html>", Some("")),
        (&[("Content-Encoding", "gzip")][..], "<html>", None),
        (&[("X-Other", "y")][..], "", None),
    ] {
        for response in both_ways(200, headers, body) {
            let edge = answering_once(response).await;
            let reply = edge.request("GET", "/t/demo/hello").await;
            assert_eq!(reply.header("Content-Type"), content_type, "{headers:?}");
        }
    }
}

#[tokio::test]
async fn a_stream_flows_piece_by_piece_whether_its_type_is_named_or_told() {
    for (headers, is_named) in [(&[("Content-Type", "text/x")][..], true), (&[][..], false)] {
        let (pieces, body) = fed(None, 16);
        let edge = answering_once(answer(200, headers, body)).await;
        let mut client = edge.connect().await;
        client.send("GET /t/demo/hello HTTP/1.1\r\nHost: h\r\n\r\n").await;
        if is_named {
            let head = client.until("\r\n\r\n").await;
            assert!(head.contains("\r\nContent-Type: text/x\r\n"), "{head}");
        }
        pieces.send(Ok(Bytes::from_static(b"<p>first"))).await.expect("is read");
        let first = client.until("8\r\n<p>first\r\n").await;
        assert_eq!(first.contains("\r\nContent-Type: text/html; charset=utf-8\r\n"), !is_named, "{first}");
        pieces.send(Ok(Bytes::from_static(b"second"))).await.expect("is read");
        client.until("6\r\nsecond\r\n").await;
        drop(pieces);
        assert_eq!(client.until("0\r\n\r\n").await, "0\r\n\r\n");
    }
}

#[tokio::test]
async fn a_body_that_breaks_before_its_first_byte_is_a_failure() {
    for (error, status, message) in [
        (BodyError::DeadlineExceeded, 504, "Timed out"),
        (BodyError::TooLarge { bytes_max: 1 }, 502, "function response body too large"),
        (
            BodyError::Interrupted(std::io::ErrorKind::UnexpectedEof.into()),
            502,
            "error receiving function response",
        ),
    ] {
        let (pieces, body) = fed(None, 16);
        let edge = answering_once(answer(200, &[], body)).await;
        pieces.send(Err(error)).await.expect("is read");
        let reply = edge.request("GET", "/t/demo/hello").await;
        reply.refused(status, message);
        assert!(reply.header("Fn-Call-Id").is_some(), "{reply:?}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_later_never_ends_as_if_it_were_whole() {
    for headers in [&[("Content-Type", "text/x")][..], &[][..]] {
        let (pieces, body) = fed(None, 16);
        let edge = answering_once(answer(200, headers, body)).await;
        pieces.send(Ok(Bytes::from_static(b"first"))).await.expect("is read");
        pieces.send(Err(BodyError::DeadlineExceeded)).await.expect("is read");
        let reply = edge.request("GET", "/t/demo/hello").await;
        assert_eq!((reply.status, reply.body.as_str()), (200, "5\r\nfirst\r\n"));
    }
}

/// Feeds a body that must be read to its end though it is not sent, and looks whether it was.
async fn feed_to_the_end(pieces: mpsc::Sender<Result<Bytes, BodyError>>) {
    for _ in 0..40 {
        let sent = tokio::time::timeout(WAIT, pieces.send(Ok(Bytes::from_static(b"piece")))).await;
        sent.expect("is read").expect("is not dropped before its end");
    }
}

#[tokio::test]
async fn answers_that_have_no_body_are_read_to_their_end_and_leave_the_connection_open() {
    for (method, status, content_type, content_length) in [
        ("GET", 204, Some("text/x"), None),
        ("GET", 304, None, None),
        ("HEAD", 200, Some("text/x"), Some("200")),
        ("HEAD", 204, Some("text/x"), None),
        ("HEAD", 404, Some("text/x"), Some("200")),
    ] {
        let (pieces, body) = fed(None, 16);
        let edge = answering_once(answer(status, &[("Content-Type", "text/x"), ("ETag", "e")], body)).await;
        let feeding = tokio::spawn(feed_to_the_end(pieces));
        let mut client = edge.connect().await;
        client.send(format!("{method} /t/demo/hello HTTP/1.1\r\nHost: h\r\n\r\n")).await;
        let reply = Reply::parse(&client.until("\r\n\r\n").await);
        feeding.await.expect("the body was read to its end");
        assert_eq!(reply.status, status);
        assert_eq!(reply.header("Content-Type"), content_type, "{method} {status}");
        assert_eq!(reply.header("Content-Length"), content_length, "{method} {status}");
        assert_eq!(reply.header("Transfer-Encoding"), None, "{method} {status}");
        assert_eq!(reply.header("ETag"), Some("e"));
        client.send("GET /t/demo/hello HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
        let next = Reply::parse(&client.rest().await);
        assert_eq!((next.status, next.body.as_str()), (200, ""), "{method} {status}");
        assert_eq!(edge.node.calls(), 2);
    }
}

#[tokio::test]
async fn head_says_what_get_would_have_sent() {
    for body in ["<html>", ""] {
        for response in both_ways(200, &[], body) {
            let edge = answering_once(response).await;
            let reply = edge.request("HEAD", "/t/demo/hello").await;
            let content_type = if body.is_empty() { None } else { Some("text/html; charset=utf-8") };
            assert_eq!(reply.header("Content-Type"), content_type);
            assert_eq!(reply.header("Content-Length"), Some(body.len().to_string().as_str()));
            assert_eq!(reply.body, "");
            assert_eq!(edge.node.whole()[0].method, "HEAD");
        }
    }
    let edge = TestEdge::start(|_| answer(200, &[], Body::Empty)).await;
    for path in ["/version", "/metrics", "/t/demo/unknown"] {
        let (got, head) = (edge.request("GET", path).await, edge.request("HEAD", path).await);
        assert_eq!((head.status, head.body.as_str()), (got.status, ""), "{path}");
        let announced: usize = head.header("Content-Length").expect("a length").parse().expect("a number");
        assert!(announced > 0, "{path}");
        // The metrics grow from one look to the next.
        assert!(path == "/metrics" || announced == got.body.len(), "{path}");
    }
}
