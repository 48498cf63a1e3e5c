//! Both sides on one connection in memory; what no peer of ours would say is in `hostile`.

mod hostile;
mod life;

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncWrite, duplex};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::body::{Body, BodyError};
use crate::http1::HeaderBlock;
use crate::http1::client::ExchangeError;
use crate::http1::head::HeadLimits;
use crate::http1::server::{ConnectionLimits, Request, Response, Service};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(20);
/// Nothing is idle for that long.
const NEVER_IDLE: Duration = Duration::from_hours(1);

type Script = dyn Fn(Request) -> Pin<Box<dyn Future<Output = Response> + Send>> + Send + Sync;

struct Scripted(Box<Script>);

impl Service for Scripted {
    fn handle(&self, request: Request) -> impl Future<Output = Response> + Send {
        (self.0)(request)
    }

    fn sends_date(&self) -> bool {
        false
    }
}

fn scripted<F>(script: impl Fn(Request) -> F + Send + Sync + 'static) -> Arc<Scripted>
where
    F: Future<Output = Response> + Send + 'static,
{
    Arc::new(Scripted(Box::new(move |request| Box::pin(script(request)))))
}

fn echo() -> Arc<Scripted> {
    scripted(|request| async move { ok(request.body) })
}

fn ok(body: Body) -> Response {
    Response { status: 200, headers: HeaderBlock::new(), body }
}

/// A client, and what serves it.
struct Pair {
    client: Client,
    stop: CancellationToken,
    driver: JoinHandle<Closed>,
    server: JoinHandle<Closed>,
}

/// `buffer_bytes` fit between the two.
fn pair(service: Arc<Scripted>, buffer_bytes: usize) -> Pair {
    let (near, far) = duplex(buffer_bytes);
    pair_over(service, near, far)
}

fn pair_over<I>(service: Arc<Scripted>, near: I, far: I) -> Pair
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (client, driver) = Client::new();
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let limits = ConnectionLimits { idle_timeout: NEVER_IDLE, ..ConnectionLimits::default() };
    Pair {
        client,
        stop,
        driver: tokio::spawn(driver.run(std::future::ready(Ok(near)), NEVER_IDLE)),
        server: tokio::spawn(async move { serve(far, service, &limits, &stopped).await }),
    }
}

fn head(body: &Body) -> Vec<u8> {
    let length = body.length().expect("is declared");
    format!("POST /call HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n").into_bytes()
}

fn start(client: &Client, body: Body) -> Exchange {
    client.start(head(&body), body).expect("room")
}

async fn collect(mut exchange: Exchange) -> Result<Vec<u8>, ExchangeError> {
    match exchange.answer(&HeadLimits::default()).await {
        Ok(_) => {}
        Err(StartError::Failed(error)) => return Err(error),
        Err(error) => panic!("{error}"),
    }
    let mut whole = Vec::new();
    while let Some(piece) = poll_fn(|context| exchange.poll_chunk(context)).await {
        whole.extend_from_slice(&piece?);
    }
    Ok(whole)
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.expect("in time")
}

/// A body whose pieces a test sends; of unknown length unless declared.
fn fed(length: Option<u64>) -> (mpsc::Sender<Result<Bytes, BodyError>>, Body) {
    struct Fed(mpsc::Receiver<Result<Bytes, BodyError>>);
    impl http_body::Body for Fed {
        type Data = Bytes;
        type Error = BodyError;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, BodyError>>> {
            self.0.poll_recv(context).map(|piece| piece.map(|piece| piece.map(http_body::Frame::data)))
        }
    }
    let (sender, receiver) = mpsc::channel(1);
    (sender, Body::Stream { stream: Box::pin(Fed(receiver)), length })
}

#[tokio::test]
async fn a_small_body_comes_at_once_and_the_connection_is_used_again() {
    let pair = pair(echo(), 64 << 10);
    for text in ["", "hello", "again"] {
        let mut exchange = start(&pair.client, Body::from(Bytes::from(text)));
        let head = soon(exchange.answer(&HeadLimits::default())).await.expect("an answer");
        assert_eq!(head.status, 200);
        assert_eq!(exchange.take_arrived_body().expect("came with the head"), text);
        assert!(exchange.is_complete());
    }
}

#[tokio::test]
async fn a_connections_streams_run_side_by_side() {
    let gate = Arc::new(Semaphore::new(0));
    let (waiting, opened) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&gate));
    let counted = Arc::clone(&waiting);
    let pair = pair(
        scripted(move |request| {
            let (gate, waiting) = (Arc::clone(&opened), Arc::clone(&counted));
            async move {
                waiting.fetch_add(1, Ordering::Relaxed);
                gate.acquire().await.expect("open").forget();
                ok(request.body)
            }
        }),
        4 << 10,
    );
    let calls: Vec<_> = (0..STREAMS_MAX)
        .map(|number| start(&pair.client, Body::from(Bytes::from(number.to_string()))))
        .collect();
    assert!(!pair.client.has_room() && pair.client.is_open());
    let none = Body::Empty;
    assert!(pair.client.start(head(&none), none).is_err());
    let all_there = async {
        while waiting.load(Ordering::Relaxed) < STREAMS_MAX {
            tokio::task::yield_now().await;
        }
    };
    soon(all_there).await;
    gate.add_permits(STREAMS_MAX);
    for (number, call) in calls.into_iter().enumerate() {
        assert_eq!(soon(collect(call)).await.expect("answers"), number.to_string().as_bytes());
    }
    assert!(pair.client.has_room());
}

#[tokio::test]
async fn a_slow_reader_holds_up_no_other_stream_and_gets_all_in_the_end() {
    const BYTES: usize = 4 << 20;
    let pair = pair(
        scripted(|request| async move {
            let large = request.body.length() == Some(0);
            ok(if large { Body::stream(Body::from(Bytes::from(vec![7; BYTES]))) } else { request.body })
        }),
        16 << 10,
    );
    let mut slow = start(&pair.client, Body::Empty);
    soon(slow.answer(&HeadLimits::default())).await.expect("a head");
    for number in 0..500 {
        let text = number.to_string();
        let other = start(&pair.client, Body::from(Bytes::from(text.clone())));
        assert_eq!(soon(collect(other)).await.expect("answers"), text.as_bytes());
    }
    let mut bytes = 0;
    while let Some(piece) = soon(poll_fn(|context| slow.poll_chunk(context))).await {
        bytes += piece.expect("whole").len();
    }
    assert_eq!(bytes, BYTES);
}

#[tokio::test]
async fn bodies_longer_than_the_credit_stream_both_ways_at_once() {
    const PIECES: usize = 100;
    const PIECE_BYTES: usize = 50_000;
    let pair = pair(echo(), 8 << 10);
    let (sender, body) = fed(Some((PIECES * PIECE_BYTES) as u64));
    let sending = tokio::spawn(async move {
        for number in 0..PIECES {
            sender.send(Ok(Bytes::from(vec![number as u8; PIECE_BYTES]))).await.expect("is wanted");
        }
    });
    let whole = soon(collect(start(&pair.client, body))).await.expect("whole");
    assert_eq!(whole.len(), PIECES * PIECE_BYTES);
    for (number, piece) in whole.chunks(PIECE_BYTES).enumerate() {
        assert!(piece.iter().all(|byte| *byte == number as u8));
    }
    sending.await.expect("ends");
}

#[tokio::test]
async fn a_head_longer_than_a_frame_and_the_credit_arrives() {
    let long = "x".repeat(CREDIT_BYTES as usize + 100_000);
    let sent = long.clone();
    let pair = pair(
        scripted(move |_| {
            let mut headers = HeaderBlock::new();
            headers.push_valid(b"X-Long", sent.as_bytes());
            async move { Response { headers, ..ok(Body::Empty) } }
        }),
        8 << 10,
    );
    let limits = HeadLimits { bytes_max: 1 << 20, ..HeadLimits::default() };
    let head = soon(start(&pair.client, Body::Empty).answer(&limits)).await.expect("an answer");
    assert_eq!(head.headers.get("x-long"), Some(long.as_bytes()));
}

#[tokio::test]
async fn an_answer_whose_source_fails_does_not_end_cleanly() {
    let pair = pair(
        scripted(|_| async {
            let (sender, body) = fed(None);
            tokio::spawn(async move {
                sender.send(Ok(Bytes::from_static(b"half"))).await.expect("is wanted");
                sender.send(Err(BodyError::DeadlineExceeded)).await.expect("is wanted");
            });
            ok(body)
        }),
        64 << 10,
    );
    let mut exchange = start(&pair.client, Body::Empty);
    soon(exchange.answer(&HeadLimits::default())).await.expect("a head");
    let first = soon(poll_fn(|context| exchange.poll_chunk(context))).await;
    assert_eq!(first.expect("a piece").expect("good"), "half");
    let second = soon(poll_fn(|context| exchange.poll_chunk(context))).await;
    assert!(matches!(second, Some(Err(ExchangeError::Connection(_)))), "{second:?}");
    assert!(pair.client.is_open(), "others go on");
}

#[tokio::test]
async fn the_end_of_the_answer_ends_the_request() {
    let pair = pair(scripted(|_| async { ok(Body::from(Bytes::from_static(b"no thanks"))) }), 8 << 10);
    for _ in 0..2 * STREAMS_MAX {
        let (sender, body) = fed(Some(1 << 20));
        sender.try_send(Ok(Bytes::from(vec![1; 100_000]))).expect("room for one");
        assert_eq!(soon(collect(start(&pair.client, body))).await.expect("answers"), b"no thanks");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn whatever_is_sent_side_by_side_arrives_unmixed(
        sizes in prop::collection::vec(0_usize..300_000, 1..24),
        buffer_bytes in 1_usize..100_000,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let pair = pair(echo(), buffer_bytes.max(sizes.iter().sum::<usize>() / 500));
            let mut calls = Vec::new();
            for (number, size) in sizes.into_iter().enumerate() {
                while !pair.client.has_room() {
                    tokio::task::yield_now().await;
                }
                let call = start(&pair.client, Body::from(Bytes::from(vec![number as u8; size])));
                calls.push(tokio::spawn(async move {
                    assert!(collect(call).await.expect("answers") == vec![number as u8; size]);
                }));
            }
            for call in calls {
                soon(call).await.expect("arrives as it was sent");
            }
        });
    }
}
