//! What holds for every way to a node.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use kiln_shared::body::{Body, BodyError};
use kiln_shared::call::{CallError, Failure, Refusal};
use kiln_shared::ids::NodeId;
use kiln_shared::story::{Placement, Reason, RefusedTry};

use crate::support::{BALANCER, LONG, Node, WAYS, answer, call, piecewise, reached, request, ways};

#[tokio::test]
async fn request_and_answer_arrive_as_they_were_sent() {
    let node = Node::new(|request| async move {
        assert_eq!((request.method.as_str(), &*request.url), ("PATCH", "http://example.com/t/a/s?q=1"));
        assert_eq!(request.headers.get("authorization"), Some(&b"Bearer the-clients-own"[..]));
        assert_eq!(request.headers.get("kiln-token"), Some(&b"forged"[..]));
        assert_eq!(request.headers.iter().count(), 2, "{:?}", request.headers);
        assert_eq!(request.function.spec.config["KEY"], "value");
        Ok(answer(418, Body::from(request.body.collect(100).await.expect("a body"))))
    });
    for (name, way) in ways(&node) {
        for body in [&b""[..], b"hello"] {
            let response = call(&*way.hop, request(Body::from(Bytes::from_static(body)))).await.expect(name);
            assert_eq!((response.status, response.stages.cold), (418, true), "{name}");
            let times = [response.stages.wait, response.stages.start, response.stages.run];
            assert_eq!(times, [7, 6, 8].map(Duration::from_micros), "{name}");
            assert_eq!(
                response.headers.iter().collect::<Vec<_>>(),
                [(&b"X-Answer"[..], &b"yes"[..])],
                "{name}"
            );
            assert_eq!(response.body.collect(100).await.expect(name), body, "{name}");
        }
    }
}

#[tokio::test]
async fn the_node_learns_why_it_gets_a_call_and_of_which_balancer() {
    let told = Placement {
        balancer: "forged".into(),
        reason: Some(Reason::QueueSpill),
        asked: 4,
        calls: 3,
        tries: 2,
        refused: vec![RefusedTry {
            node: NodeId::new("other"),
            reason: Reason::WarmHome,
            calls: 1,
            refusal: Refusal::Draining,
        }],
        waits: 1,
        waited: Duration::from_micros(5),
        before: Duration::from_micros(6),
    };
    let seen = Arc::new(Mutex::new(VecDeque::new()));
    let kept = Arc::clone(&seen);
    let node = Node::new(move |request| {
        kept.lock().expect("no panic with it").push_back(request.placement);
        async { Ok(answer(200, Body::Empty)) }
    });
    for (name, way) in ways(&node) {
        // Over the network a balancer's name is what its certificate says.
        let balancer = if name == "in process" { "forged" } else { BALANCER };
        let expected = Placement { balancer: balancer.into(), ..told.clone() };
        for (sent, expected) in [(Some(told.clone()), Some(expected)), (None, None)] {
            let mut request = request(Body::Empty);
            request.placement = sent;
            call(&*way.hop, request).await.expect(name);
            let seen = seen.lock().expect("no panic with it").pop_front().expect(name);
            assert_eq!(seen, expected, "{name}");
        }
    }
}

#[tokio::test]
async fn a_refused_request_comes_back_whole_and_can_be_sent_again() {
    for streamed in [false, true] {
        let refusals = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&refusals);
        let node = Node::new(move |request| {
            let refuse = counted.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
            async move {
                if refuse {
                    return Err(CallError::Refused { reason: Refusal::Busy, request });
                }
                Ok(answer(200, Body::from(request.body.collect(1 << 20).await.expect("a body"))))
            }
        });
        for (name, way) in ways(&node) {
            let whole = Body::from(Bytes::from(vec![7; 100_000]));
            let body = if streamed { Body::stream(whole) } else { whole };
            let refused = call(&*way.hop, request(body)).await.expect_err(name);
            let CallError::Refused { reason: Refusal::Busy, request } = refused else {
                panic!("{name}: {refused:?}")
            };
            assert_eq!(request.headers.iter().count(), 2, "{name}");
            let response = call(&*way.hop, request).await.expect(name);
            assert_eq!(response.body.collect(1 << 20).await.expect(name), vec![7; 100_000], "{name}");
        }
    }
}

#[tokio::test]
async fn a_failure_arrives_with_its_words_and_its_detail() {
    let failure = Failure::out_of_memory().with_detail("exit code 137");
    let sent = failure.clone();
    let node = Node::new(move |_| {
        let sent = sent.clone();
        async move { Err(CallError::Failed(sent)) }
    });
    for (name, way) in ways(&node) {
        for _ in 0..2 {
            let error = call(&*way.hop, request(Body::Empty)).await.expect_err(name);
            assert!(matches!(&error, CallError::Failed(read) if *read == failure), "{name}: {error:?}");
        }
    }
}

#[tokio::test]
async fn a_piece_of_an_answer_arrives_before_the_next_is_made() {
    let (senders, bodies): (Vec<_>, VecDeque<_>) = (0..WAYS).map(|_| piecewise()).unzip();
    let bodies = Arc::new(Mutex::new(bodies));
    let node = Node::new(move |_| {
        let body = bodies.lock().expect("not poisoned").pop_front().expect("a body a way");
        async move { Ok(answer(200, body)) }
    });
    for ((name, way), sender) in ways(&node).into_iter().zip(senders) {
        let mut response = call(&*way.hop, request(Body::Empty)).await.expect(name);
        for piece in ["one", "two"] {
            sender.send(Ok(Bytes::from(piece))).await.expect("is wanted");
            let arrived = tokio::time::timeout(LONG, response.body.next_chunk()).await.expect(name);
            assert_eq!(arrived.expect(name).expect(name), piece, "{name}");
        }
        drop(sender);
        assert!(response.body.next_chunk().await.is_none(), "{name}");
    }
}

#[tokio::test]
async fn large_bodies_stream_both_ways_at_once() {
    const PIECES: usize = 400;
    let node = Node::new(|request| async move { Ok(answer(200, request.body)) });
    for (name, way) in ways(&node) {
        let (sender, body) = piecewise();
        let sending = tokio::spawn(async move {
            for _ in 0..PIECES {
                sender.send(Ok(Bytes::from(vec![b'z'; 64 << 10]))).await.expect("is wanted");
            }
        });
        let mut response = call(&*way.hop, request(body)).await.expect(name);
        let mut bytes = 0;
        while let Some(piece) = response.body.next_chunk().await {
            let piece = piece.expect(name);
            assert!(piece.iter().all(|byte| *byte == b'z'), "{name}");
            bytes += piece.len();
        }
        assert_eq!(bytes, PIECES * (64 << 10), "{name}");
        sending.await.expect("ends");
    }
}

/// Counts when it is dropped.
struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_is_cancelled() {
    let dropped = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&dropped);
    let node = Node::new(move |_| {
        let dropped = Dropped(Arc::clone(&counted));
        async move {
            std::future::pending::<()>().await;
            drop(dropped);
            unreachable!("nothing ends the wait")
        }
    });
    for (cancelled, (name, way)) in ways(&node).into_iter().enumerate() {
        let calls = node.calls.load(Ordering::Relaxed);
        let hop = Arc::clone(&way.hop);
        let waiting = tokio::spawn(async move { call(&*hop, request(Body::Empty)).await });
        reached(&node.calls, calls + 1).await;
        waiting.abort();
        assert!(waiting.await.expect_err(name).is_cancelled());
        reached(&dropped, cancelled + 1).await;
    }
}

#[tokio::test]
async fn an_answer_that_nobody_reads_on_is_cancelled() {
    let endings = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&endings);
    let node = Node::new(move |_| {
        let ended = Dropped(Arc::clone(&counted));
        async move {
            let (sender, body) = piecewise();
            tokio::spawn(async move {
                while sender.send(Ok(Bytes::from_static(b"more"))).await.is_ok() {}
                drop(ended);
            });
            Ok(answer(200, body))
        }
    });
    for (ended, (name, way)) in ways(&node).into_iter().enumerate() {
        let mut response = call(&*way.hop, request(Body::Empty)).await.expect(name);
        assert!(response.body.next_chunk().await.is_some(), "{name}");
        drop(response);
        reached(&endings, ended + 1).await;
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_does_not_end_cleanly() {
    let node = Node::new(|_| async move {
        let (sender, body) = piecewise();
        tokio::spawn(async move {
            sender.send(Ok(Bytes::from_static(b"half"))).await.expect("is wanted");
            sender.send(Err(BodyError::DeadlineExceeded)).await.expect("is wanted");
        });
        Ok(answer(200, body))
    });
    for (name, way) in ways(&node) {
        let mut response = call(&*way.hop, request(Body::Empty)).await.expect(name);
        assert_eq!(response.body.next_chunk().await.expect(name).expect(name), "half", "{name}");
        assert!(response.body.next_chunk().await.expect(name).is_err(), "{name}");
        // The way is good for further calls.
        let mut next = call(&*way.hop, request(Body::Empty)).await.expect(name);
        assert_eq!(next.body.next_chunk().await.expect(name).expect(name), "half", "{name}");
    }
}

#[tokio::test]
async fn a_request_that_breaks_off_fails_the_call() {
    let node = Node::new(|request| async move {
        match request.body.collect(1 << 20).await {
            Ok(body) => Ok(answer(200, Body::from(body))),
            Err(error) => Err(Failure::of_body(&error).into()),
        }
    });
    for (name, way) in ways(&node) {
        let (sender, body) = piecewise();
        tokio::spawn(async move {
            sender.send(Ok(Bytes::from_static(b"half"))).await.expect("is wanted");
            sender.send(Err(BodyError::TooLarge { bytes_max: 4 })).await.expect("is wanted");
        });
        let error = call(&*way.hop, request(body)).await.expect_err(name);
        assert!(matches!(&error, CallError::Failed(failure) if failure.status == 413), "{name}: {error:?}");
    }
}

#[tokio::test]
async fn calls_at_the_same_time_do_not_mix() {
    let node = Node::new(|request| async move { Ok(answer(200, request.body)) });
    for (name, way) in ways(&node) {
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..64 {
            let hop = Arc::clone(&way.hop);
            calls.spawn(async move {
                for round in 0..10 {
                    let text = format!("{number} {round}");
                    let body = Body::from(Bytes::from(text.clone()));
                    let response = call(&*hop, request(body)).await.expect(name);
                    assert_eq!(response.body.collect(100).await.expect(name), text, "{name}");
                }
            });
        }
        while let Some(ended) = calls.join_next().await {
            ended.expect(name);
        }
    }
}
