//! Bytes that no peer of ours would send.

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::connection::{Connection, Side};
use super::super::frame::{HEAD_BYTES, Head, Kind, PAYLOAD_BYTES_MAX};
use super::*;

fn preface() -> Vec<u8> {
    [&PREFACE[..], &[VERSION]].concat()
}

fn frame(kind: Kind, stream: u32, payload: &[u8]) -> Vec<u8> {
    [&Head { kind, stream, payload_bytes: payload.len() }.encode()[..], payload].concat()
}

/// What a side says to these frames.
fn said(side: Side, frames: &[Vec<u8>]) -> Result<(), Violation> {
    let mut connection = Connection::new(side);
    let mut chunk = Bytes::from_static(b"x");
    if side == Side::Client {
        connection.open(&mut chunk, true);
    }
    let mut input = BytesMut::from(&[preface(), frames.concat()].concat()[..]);
    connection.receive(&mut input)
}

#[test]
fn broken_rules_are_named() {
    let data = |stream, payload: &[u8]| frame(Kind::Data, stream, payload);
    let full = vec![0; PAYLOAD_BYTES_MAX];
    let pieces = CREDIT_BYTES as usize / PAYLOAD_BYTES_MAX + 1;
    let cases = [
        (Side::Server, vec![data(2, b"x")], Violation::Stream { stream: 2 }),
        (Side::Server, vec![data(0, b"x"), data(1, b"x"), data(3, b"x")], Violation::Stream { stream: 3 }),
        (Side::Server, vec![frame(Kind::Reset, 1, b"")], Violation::Stream { stream: 1 }),
        (Side::Server, vec![frame(Kind::End, 1, b"x"), data(1, b"y")], Violation::Ended { stream: 1 }),
        (Side::Server, vec![data(1, &full); pieces], Violation::Credit { stream: 1 }),
        (
            Side::Server,
            vec![data(1, b"x"), frame(Kind::Credit, 1, &[0, 0, 0, 1])],
            Violation::Grant { stream: 1 },
        ),
        (Side::Client, vec![frame(Kind::Credit, 1, &[0xff; 4])], Violation::Grant { stream: 1 }),
        (Side::Client, vec![data(2, b"x")], Violation::Stream { stream: 2 }),
        (Side::Client, vec![frame(Kind::End, 1, b"x"), data(1, b"x")], Violation::Ended { stream: 1 }),
        (Side::Client, vec![vec![0, 0, 0, 9, 0, 0, 0, 0]], Violation::Kind { kind: 9 }),
        (Side::Client, vec![vec![0xff; HEAD_BYTES]], Violation::Kind { kind: 0xff }),
        (
            Side::Server,
            (1..=STREAMS_MAX as u32 + 1).map(|stream| data(stream, b"x")).collect(),
            Violation::Streams,
        ),
    ];
    for (side, frames, violation) in cases {
        assert_eq!(said(side, &frames), Err(violation));
    }
}

#[test]
fn frames_of_streams_that_have_ended_are_passed_over() {
    let mut connection = Connection::new(Side::Server);
    let frames = [preface(), frame(Kind::Data, 1, b"x"), frame(Kind::Reset, 1, b"")].concat();
    connection.receive(&mut BytesMut::from(&frames[..])).expect("is allowed");
    assert_eq!(connection.next_incoming(), None, "was given up before anybody took it");
    let late = [frame(Kind::Data, 1, b"y"), frame(Kind::Credit, 1, &[0; 4]), frame(Kind::Reset, 1, b"")];
    connection.receive(&mut BytesMut::from(&late.concat()[..])).expect("crossed on the way");
    assert!(connection.is_quiet());
}

proptest! {
    /// Neither side panics, and what is kept of the peer's bytes is bounded by its credit.
    #[test]
    fn no_bytes_are_too_strange(
        side in prop::bool::ANY,
        frames in prop::collection::vec((0_u8..6, 0_u32..6, prop::collection::vec(any::<u8>(), 0..40)), 0..60),
        noise in prop::collection::vec(any::<u8>(), 0..40),
        cut in 1_usize..50,
    ) {
        let mut connection = Connection::new(if side { Side::Client } else { Side::Server });
        if side {
            for _ in 0..3 {
                connection.open(&mut Bytes::from_static(b"x"), false);
            }
        }
        let mut bytes = preface();
        for (kind, stream, payload) in frames {
            bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
            bytes.push(kind);
            bytes.extend_from_slice(&stream.to_be_bytes());
            bytes.extend_from_slice(&payload);
        }
        bytes.extend_from_slice(&noise);
        let mut input = BytesMut::new();
        for piece in bytes.chunks(cut) {
            input.extend_from_slice(piece);
            if let Err(violation) = connection.receive(&mut input) {
                connection.close(violation.into());
                break;
            }
            prop_assert!(input.len() < HEAD_BYTES + PAYLOAD_BYTES_MAX);
        }
    }
}

/// Sends a server these bytes; what it says until it closes, and why it does.
async fn told(bytes: &[u8]) -> (Vec<u8>, Closed) {
    let (mut near, far) = duplex(64 << 10);
    let limits = ConnectionLimits::default();
    let server = tokio::spawn(async move { serve(far, echo(), &limits, &CancellationToken::new()).await });
    near.write_all(bytes).await.expect("writes");
    let mut said = Vec::new();
    soon(near.read_to_end(&mut said)).await.expect("reads");
    (said, soon(server).await.expect("ends"))
}

#[tokio::test]
async fn another_version_is_refused_in_words() {
    let (said, how) = told(b"\0KilnMx\x02and what only that version knows").await;
    assert_eq!(how, Closed::Violation(Violation::Version { theirs: 2 }));
    assert_eq!(said[..8], preface());
    let words = String::from_utf8_lossy(&said[8 + HEAD_BYTES..]);
    assert_eq!(words, "the peer speaks version 2 of Kiln's multiplexing; this side speaks version 1");
    let (_, how) = told(b"GET / HTTP/1.1\r\n\r\n").await;
    assert_eq!(how, Closed::Violation(Violation::Preface));
}

#[tokio::test]
async fn a_client_of_another_version_knows_that_nothing_was_taken() {
    for answer in [&b"\0KilnMx\x02..."[..], b"HTTP/1.1 400 Bad Request\r\n\r\n"] {
        let (near, mut far) = duplex(64 << 10);
        let (client, driver) = Client::new();
        let driver = tokio::spawn(driver.run(std::future::ready(Ok(near)), NEVER_IDLE));
        let mut waiting = start(&client, Body::Empty);
        far.write_all(answer).await.expect("writes");
        let refused = soon(waiting.answer(&HeadLimits::default())).await.expect_err("is refused");
        assert!(matches!(refused, StartError::NotTaken(Closed::Violation(_))), "{refused:?}");
        assert!(matches!(soon(driver).await.expect("ends"), Closed::Violation(_)));
    }
}

#[tokio::test]
async fn a_call_that_waits_to_be_written_may_have_run_after_a_violation() {
    let mut connection = Connection::new(Side::Client);
    let id = connection.open(&mut Bytes::from_static(b"x"), true);
    connection.close(Violation::Kind { kind: 9 }.into());
    assert!(!connection.out.is_empty(), "the call is written with what the peer is told");
    let ended = poll_fn(|context| connection.poll_receive(id, context)).await;
    assert!(matches!(ended, Some(Err(StreamError::Lost(Closed::Violation(_))))), "{ended:?}");
}

#[tokio::test]
async fn a_request_that_is_not_http_gets_an_answer_and_the_connection_goes_on() {
    let pair = pair(echo(), 64 << 10);
    for (head, status) in [
        (&b"nonsense\r\n\r\n"[..], 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", 200),
    ] {
        let mut exchange = pair.client.start(head.to_vec(), Body::Empty).expect("room");
        let answer = soon(exchange.answer(&HeadLimits::default())).await.expect("an answer");
        assert_eq!(answer.status, status);
    }
}

#[tokio::test]
async fn a_client_that_never_reads_does_not_make_a_server_keep_its_answers() {
    let answered = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&answered);
    let service = scripted(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        async { ok(Body::from(Bytes::from(vec![1; 4000]))) }
    });
    let (mut near, far) = duplex(1 << 10);
    let limits = ConnectionLimits::default();
    let server = tokio::spawn(async move { serve(far, service, &limits, &CancellationToken::new()).await });
    let request = b"POST / HTTP/1.1\r\nHost: a\r\n\r\n";
    near.write_all(&preface()).await.expect("writes");
    let flood = async {
        for stream in 1.. {
            near.write_all(&frame(Kind::End, stream, request)).await.expect("writes");
        }
    };
    assert!(tokio::time::timeout(Duration::from_millis(300), flood).await.is_err(), "it reads no more");
    // As many as fill the outbox, and those that had been read by then.
    let bound = (OUT_BYTES_MAX / 4000) + (64 << 10) / request.len();
    assert!(answered.load(Ordering::Relaxed) < bound, "{} answered", answered.load(Ordering::Relaxed));
    server.abort();
}
