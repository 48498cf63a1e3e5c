//! What holds over HTTP/1.1 holds over HTTP/2 without TLS, too.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kiln_shared::body::Body;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::support::{TestEdge, WAIT, answer};

struct Client {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<hyper::Result<()>>,
}

impl Client {
    async fn connect(edge: &TestEdge) -> Self {
        let stream = TcpStream::connect(edge.address).await.expect("connects");
        let (sender, connection) =
            handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("the preface is understood");
        Self { sender, driver: tokio::spawn(connection) }
    }

    /// Head and whole body of the answer to a request without a body.
    async fn request(&mut self, request: http::request::Builder) -> (http::response::Parts, Bytes) {
        self.send(request, Bytes::new()).await
    }

    /// Head and whole body of the answer.
    async fn send(&mut self, request: http::request::Builder, body: Bytes) -> (http::response::Parts, Bytes) {
        let answered = self.sender.send_request(request.body(Full::new(body)).expect("a request"));
        let response = tokio::time::timeout(WAIT, answered).await.expect("in time").expect("an answer");
        let (parts, body) = response.into_parts();
        (parts, body.collect().await.expect("a whole body").to_bytes())
    }

    async fn close(self) {
        drop(self.sender);
        self.driver.await.expect("ends").expect("in order");
    }
}

async fn edge() -> TestEdge {
    TestEdge::start(|_| answer(200, &[], Body::from(Bytes::from_static(b"<html>")))).await
}

#[tokio::test]
async fn answers_are_those_of_http_1() {
    let edge = edge().await;
    let mut client = Client::connect(&edge).await;
    for (method, path, status, body) in [
        ("GET", "/t/demo/hello", 200, "<html>"),
        ("HEAD", "/t/demo/hello", 200, ""),
        ("POST", edge.invoke_path.as_str(), 200, "<html>"),
        ("GET", "/t/demo/unknown", 404, "{\"message\":\"Trigger not found\"}\n"),
        ("HEAD", "/t/demo/unknown", 404, ""),
    ] {
        let request = http::Request::builder().method(method).uri(format!("http://kiln.test{path}"));
        let (parts, got) = client.request(request).await;
        assert_eq!((parts.status.as_u16(), &got[..]), (status, body.as_bytes()), "{method} {path}");
        let (content_type, length) = match status {
            200 => ("text/html; charset=utf-8", "6"),
            _ => ("application/json; charset=utf-8", "32"),
        };
        assert_eq!(parts.headers["content-type"], content_type, "{method} {path}");
        assert_eq!(parts.headers["content-length"], length, "{method} {path}");
    }
    let seen = edge.node.whole();
    assert_eq!(seen.len(), 3);
    assert_eq!(seen[0].url, "http://kiln.test/t/demo/hello");
    client.close().await;
}

#[tokio::test]
async fn a_body_of_many_frames_arrives_whole() {
    let edge = edge().await;
    let mut client = Client::connect(&edge).await;
    let body = Bytes::from(vec![b'x'; 1 << 20]);
    let request = http::Request::builder().method("POST").uri("http://kiln.test/t/demo/hello");
    assert_eq!(client.send(request, body.clone()).await.0.status.as_u16(), 200);
    assert!(edge.node.whole()[0].body == body, "the body was changed on its way");
    client.close().await;
}

#[tokio::test]
async fn a_request_of_too_many_lines_is_refused_and_never_forwarded() {
    let edge = edge().await;
    let mut client = Client::connect(&edge).await;
    for (lines, status) in [(101, 431), (100, 200)] {
        let request = http::Request::builder().method("POST").uri("http://kiln.test/t/demo/hello");
        let request = (0..lines).fold(request, |request, line| request.header(format!("x-{line}"), "x"));
        assert_eq!(client.request(request).await.0.status.as_u16(), status, "{lines} lines");
    }
    assert_eq!(edge.node.calls(), 1);
    client.close().await;
}

#[tokio::test]
async fn a_request_without_a_good_host_or_with_a_long_target_is_refused_and_never_forwarded() {
    let edge = edge().await;
    let mut client = Client::connect(&edge).await;
    let long = format!("http://kiln.test/t/demo/{}", "x".repeat(9000));
    let origin = || http::Request::builder().uri("/t/demo/hello");
    for (request, status) in [
        (origin(), 400),
        (origin().header("host", "kiln.test/t/other"), 400),
        (origin().header("host", "user@kiln.test"), 400),
        (http::Request::builder().uri(long), 414),
    ] {
        let (parts, body) = client.request(request).await;
        assert_eq!(parts.status.as_u16(), status, "{parts:?}");
        assert!(body.starts_with(b"{\"message\":\""), "{body:?}");
    }
    assert_eq!(edge.node.calls(), 0);
    let (parts, _) = client.request(origin().header("host", "kiln.test")).await;
    assert_eq!(
        (parts.status.as_u16(), edge.node.whole()[0].url.as_str()),
        (200, "http://kiln.test/t/demo/hello")
    );
    client.close().await;
}
