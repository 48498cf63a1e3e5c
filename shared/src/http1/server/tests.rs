use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};

use super::*;

/// Answers with what it got: method, target and body, after reading all of it.
struct Echo;

impl Service for Echo {
    async fn handle(&self, request: Request) -> Response {
        let Request { head, body } = request;
        match body.collect(1 << 20).await {
            Ok(body) => {
                let text = format!("{} {} {}", head.method, head.target, String::from_utf8_lossy(&body));
                Response { status: 200, headers: HeaderBlock::new(), body: Body::from(Bytes::from(text)) }
            }
            Err(error) => plain(400, &error.to_string()),
        }
    }
}

/// Answers without reading the body.
struct Deaf;

impl Service for Deaf {
    async fn handle(&self, _request: Request) -> Response {
        plain(503, "busy")
    }
}

/// Sends everything at once and returns all answers without their `Date` lines.
async fn talk(service: &impl Service, input: &[u8]) -> String {
    talk_with(service, input, &ConnectionLimits::default()).await
}

async fn talk_with(service: &impl Service, input: &[u8], limits: &ConnectionLimits) -> String {
    let (near, far) = duplex(1 << 20);
    let (reader, writer) = split(near);
    let stop = CancellationToken::new();
    let client = client(far, input);
    let served = async {
        serve(reader, writer, service, limits, &stop).await;
    };
    let (answer, ()) = tokio::join!(client, served);
    answer
}

async fn client(mut far: DuplexStream, input: &[u8]) -> String {
    far.write_all(input).await.expect("writes");
    let mut answer = Vec::new();
    // Until the server closes; a test whose server would not is stopped by the idle timeout below.
    let read = tokio::time::timeout(Duration::from_secs(5), far.read_to_end(&mut answer));
    drop(read.await);
    let text = String::from_utf8(answer).expect("text");
    text.split_inclusive("\r\n").filter(|line| !line.starts_with("Date: ")).collect()
}

#[tokio::test(start_paused = true)]
async fn pipelined_requests_are_answered_in_order() {
    let input = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi\
        POST /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nyo\r\n0\r\n\r\n\
        GET /c HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    let answer = talk(&Echo, input).await;
    assert_eq!(
        answer,
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nPOST /a hi\
         HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nPOST /b yo\
         HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\nGET /c "
    );
}

#[tokio::test(start_paused = true)]
async fn continue_is_said_only_when_the_body_is_wanted() {
    let input = b"POST /a HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\n";
    let (near, mut far) = duplex(1 << 16);
    let (reader, writer) = split(near);
    let (stop, limits) = (CancellationToken::new(), ConnectionLimits::default());
    let client = async {
        far.write_all(input).await.expect("writes");
        let mut interim = [0; 25];
        far.read_exact(&mut interim).await.expect("an interim answer");
        assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
        far.write_all(b"hi").await.expect("writes");
        let mut rest = String::new();
        far.read_to_string(&mut rest).await.expect("reads");
        rest
    };
    let (rest, _) = tokio::join!(client, serve(reader, writer, &Echo, &limits, &stop));
    assert!(rest.ends_with("POST /a hi"), "{rest}");

    let answer = talk(&Deaf, input).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn an_unread_body_closes_the_connection() {
    let input = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nhi";
    let answer = talk(&Deaf, input).await;
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_broken_head_is_refused_and_ends_the_connection() {
    let input = b"GET / HTTP/1.1\r\nHost: h\nX: y\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n";
    let answer = talk(&Echo, input).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
}

#[tokio::test(start_paused = true)]
async fn broken_chunks_never_reach_the_end_of_the_body() {
    let input = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhi\r\n0\r\n\r\n";
    let answer = talk(&Echo, input).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_head_gets_408() {
    let (near, mut far) = duplex(1 << 16);
    let (reader, writer) = split(near);
    let (stop, limits) = (CancellationToken::new(), ConnectionLimits::default());
    let client = async {
        far.write_all(b"GET / HT").await.expect("writes");
        let mut answer = String::new();
        far.read_to_string(&mut answer).await.expect("reads");
        answer
    };
    let (answer, _) = tokio::join!(client, serve(reader, writer, &Echo, &limits, &stop));
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_gets_408_and_each_byte_buys_time() {
    let (near, mut far) = duplex(1 << 16);
    let (reader, writer) = split(near);
    let (stop, limits) = (CancellationToken::new(), ConnectionLimits::default());
    let client = async {
        far.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n").await.expect("writes");
        let began = tokio::time::Instant::now();
        for _ in 0..3 {
            tokio::time::sleep(limits.body_timeout * 2 / 3).await;
            far.write_all(b"x").await.expect("is still read");
        }
        let mut answer = String::new();
        far.read_to_string(&mut answer).await.expect("reads");
        (answer, began.elapsed())
    };
    let ((answer, took), _) = tokio::join!(client, serve(reader, writer, &Echo, &limits, &stop));
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("Connection: close"), "{answer}");
    assert!(took >= limits.body_timeout * 3 && took < limits.body_timeout * 4, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_broken_body_is_refused_whatever_the_service_says() {
    struct Teapot;
    impl Service for Teapot {
        async fn handle(&self, request: Request) -> Response {
            request.body.collect(1 << 20).await.expect_err("is broken");
            plain(418, "teapot")
        }
    }
    let input = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n";
    let answer = talk(&Teapot, input).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("Connection: close"), "{answer}");
    assert!(answer.contains("a chunk is longer than its size"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_a_body_is_not_framed() {
    struct Bodyless(u16);
    impl Service for Bodyless {
        async fn handle(&self, _request: Request) -> Response {
            let body = Body::stream(Body::from(Bytes::from_static(b"not sent")));
            Response { status: self.0, headers: HeaderBlock::new(), body }
        }
    }
    for (status, line) in [(204, "204 No Content"), (304, "304 Not Modified")] {
        for (version, connection) in [("1.1", ""), ("1.0", "Connection: keep-alive\r\n")] {
            let input = format!("GET / HTTP/{version}\r\nHost: h\r\n{connection}\r\n");
            let answer = talk(&Bodyless(status), input.as_bytes()).await;
            assert_eq!(answer, format!("HTTP/{version} {line}\r\n{connection}\r\n"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_beyond_the_limit_is_an_error() {
    let limits = ConnectionLimits { body_bytes_max: 3, ..ConnectionLimits::default() };
    let input = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n";
    let answer = talk_with(&Echo, input, &limits).await;
    assert!(answer.contains("larger than 3 bytes"), "{answer}");
}

#[tokio::test]
async fn the_http2_preface_is_handed_over() {
    let (near, mut far) = duplex(1 << 16);
    let (reader, writer) = split(near);
    let (stop, limits) = (CancellationToken::new(), ConnectionLimits::default());
    far.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("writes");
    match serve(reader, writer, &Echo, &limits, &stop).await {
        Ended::Http2(_, _, read) => assert_eq!(read, &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..]),
        Ended::Closed => panic!("closed"),
    }
}

#[tokio::test]
async fn a_client_that_goes_away_drops_the_call() {
    struct Forever(Arc<AtomicBool>);
    struct Dropped(Arc<AtomicBool>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    impl Service for Forever {
        async fn handle(&self, _request: Request) -> Response {
            let _dropped = Dropped(Arc::clone(&self.0));
            std::future::pending().await
        }
    }
    let (near, mut far) = duplex(1 << 16);
    let (reader, writer) = split(near);
    let (stop, limits) = (CancellationToken::new(), ConnectionLimits::default());
    far.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.expect("writes");
    drop(far);
    let flag = Arc::new(AtomicBool::new(false));
    serve(reader, writer, &Forever(Arc::clone(&flag)), &limits, &stop).await;
    assert!(flag.load(Ordering::Acquire));
}

#[tokio::test]
async fn stopping_closes_idle_connections() {
    let (near, far) = duplex(1 << 16);
    let (reader, writer) = split(near);
    let (stop, limits) = (CancellationToken::new(), ConnectionLimits::default());
    stop.cancel();
    serve(reader, writer, &Echo, &limits, &stop).await;
    drop(far);
}
