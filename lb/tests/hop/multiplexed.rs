//! What holds for calls that share a connection.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use bytes::Bytes;
use kiln_lb::forward::PoolConfig;
use kiln_shared::body::Body;
use kiln_shared::call::{CallError, CallHop, CallRequest, CallResponse, FailureKind, Refusal};
use kiln_shared::identity::{ClientAuth, Role, server_config};
use kiln_shared::link::MUX_ALPN;
use kiln_shared::mux::{CREDIT_BYTES, STREAMS_MAX};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::relay::Relay;
use crate::support::{
    Agent, LONG, NODE, Node, answer, credentials, fleet, hop_with, piecewise, reached, remote_hop, request,
};

/// Answers with the call's body, when the gate is opened for it.
fn gated() -> (Arc<Node>, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let node = Node::new(move |request| {
        let gate = Arc::clone(&opened);
        async move {
            gate.acquire().await.expect("open").forget();
            Ok(answer(200, request.body))
        }
    });
    (node, gate)
}

/// A request of the function that the agent knows already.
fn another(of: &CallRequest, body: Body) -> Box<CallRequest> {
    Box::new(CallRequest { function: Arc::clone(&of.function), ..*request(body) })
}

/// Tells the agent what the function of the returned request is.
async fn defined(hop: &dyn CallHop) -> Box<CallRequest> {
    let first = request(Body::Empty);
    hop.define(&first.function).await;
    first
}

type Calling = JoinHandle<Result<CallResponse, CallError>>;

fn calling(hop: &Arc<dyn CallHop>, request: Box<CallRequest>) -> Calling {
    let hop = Arc::clone(hop);
    tokio::spawn(async move { hop.call(request).await })
}

async fn ended(calling: Calling) -> Result<CallResponse, CallError> {
    tokio::time::timeout(LONG, calling).await.expect("in time").expect("ends")
}

fn numbered(number: usize) -> Body {
    Body::from(Bytes::from(number.to_string()))
}

#[tokio::test]
async fn as_many_calls_as_a_connection_takes_share_one_and_further_ones_find_another_way() {
    let (node, gate) = gated();
    let agent = Agent::start(&node);
    let relay = Relay::start(agent.address).await;
    let pools = PoolConfig { mux_connections_max: 2, ..PoolConfig::default() };
    let hop = hop_with(pools, relay.address);
    let first = defined(&*hop).await;
    // The one that carried the definition.
    let others = relay.connections.load(Ordering::Relaxed);
    let mut calls = Vec::new();
    for (all, connections) in [(STREAMS_MAX, 1), (2 * STREAMS_MAX, 2), (2 * STREAMS_MAX + 3, 5)] {
        for number in calls.len()..all {
            calls.push(calling(&hop, another(&first, numbered(number))));
        }
        reached(&node.calls, all).await;
        assert_eq!(relay.connections.load(Ordering::Relaxed) - others, connections, "{all} calls");
    }
    gate.add_permits(calls.len());
    for (number, calling) in calls.into_iter().enumerate() {
        let body = ended(calling).await.expect("answers").body.collect(100).await.expect("a body");
        assert_eq!(body, number.to_string());
    }
    // There is room again.
    let connections = relay.connections.load(Ordering::Relaxed);
    gate.add_permits(1);
    ended(calling(&hop, another(&first, Body::Empty))).await.expect("answers");
    assert_eq!(relay.connections.load(Ordering::Relaxed), connections);
}

#[tokio::test]
async fn a_stalled_reader_delays_no_other_call() {
    const LARGE_BYTES: usize = 8 << 20;
    let node = Node::new(|request| async move {
        let large = request.body.length() == Some(0);
        let body =
            if large { Body::stream(Body::from(Bytes::from(vec![1; LARGE_BYTES]))) } else { request.body };
        Ok(answer(200, body))
    });
    let agent = Agent::start(&node);
    let hop = remote_hop(agent.address);
    let first = defined(&*hop).await;
    let mut stalled = Vec::new();
    for _ in 0..8 {
        stalled.push(hop.call(another(&first, Body::Empty)).await.expect("a head"));
    }
    let mut busy = JoinSet::new();
    for number in 0..32 {
        let hop = Arc::clone(&hop);
        let requests: Vec<_> =
            (0..50).map(|round| another(&first, numbered(number * 50 + round + 1))).collect();
        busy.spawn(async move {
            for request in requests {
                let response = hop.call(request).await.expect("answers");
                assert!(!response.body.collect(100).await.expect("a body").is_empty());
            }
        });
    }
    while let Some(ended) = tokio::time::timeout(LONG, busy.join_next()).await.expect("none waits") {
        ended.expect("answers");
    }
    for mut response in stalled {
        let mut bytes = 0;
        while let Some(piece) = tokio::time::timeout(LONG, response.body.next_chunk()).await.expect("goes on")
        {
            bytes += piece.expect("whole").len();
        }
        assert_eq!(bytes, LARGE_BYTES);
    }
}

#[tokio::test]
async fn bodies_up_to_the_bound_share_and_larger_ones_do_not() {
    let node = Node::new(|request| async move { Ok(answer(200, request.body)) });
    let agent = Agent::start(&node);
    let relay = Relay::start(agent.address).await;
    let hop = remote_hop(relay.address);
    let first = defined(&*hop).await;
    let mut connections = relay.connections.load(Ordering::Relaxed) + 1;
    for (bytes, further) in [(1, 0), (64 << 10, 0), ((64 << 10) + 1, 1), (2 * CREDIT_BYTES as usize, 0)] {
        connections += further;
        let sent = Body::from(Bytes::from(vec![7; bytes]));
        let response = hop.call(another(&first, sent)).await.expect("answers");
        assert!(response.body.collect(1 << 20).await.expect("a body") == vec![7; bytes]);
        assert_eq!(relay.connections.load(Ordering::Relaxed), connections, "{bytes} bytes");
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
async fn a_call_is_cancelled_in_every_phase_and_its_neighbours_live() {
    let (begun, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, ends) = (Arc::clone(&begun), Arc::clone(&dropped));
    let node = Node::new(move |request| {
        let (begun, ends) = (Arc::clone(&counted), Arc::clone(&ends));
        async move {
            match request.body.collect(100).await.expect("a body").as_ref() {
                b"never" => {
                    let _ended = Dropped(ends);
                    begun.fetch_add(1, Ordering::Relaxed);
                    std::future::pending().await
                }
                b"stream" => {
                    let ended = Dropped(ends);
                    let (sender, body) = piecewise();
                    tokio::spawn(async move {
                        while sender.send(Ok(Bytes::from_static(b"more"))).await.is_ok() {}
                        drop(ended);
                    });
                    Ok(answer(200, body))
                }
                _ => Ok(answer(200, Body::Empty)),
            }
        }
    });
    let text = |text: &'static str| Body::from(Bytes::from_static(text.as_bytes()));
    let agent = Agent::start(&node);
    let hop = remote_hop(agent.address);
    let first = defined(&*hop).await;
    let mut neighbour = hop.call(another(&first, text("stream"))).await.expect("a head");
    // Asked for, but not written: the driver had no turn yet.
    {
        let mut unwritten = hop.call(another(&first, text("unwritten")));
        let polled = std::future::poll_fn(|context| Poll::Ready(unwritten.as_mut().poll(context))).await;
        assert!(polled.is_pending());
    }
    let running = calling(&hop, another(&first, text("never")));
    reached(&begun, 1).await;
    running.abort();
    reached(&dropped, 1).await;
    let mut answering = hop.call(another(&first, text("stream"))).await.expect("a head");
    assert!(answering.body.next_chunk().await.is_some());
    drop(answering);
    reached(&dropped, 2).await;
    let unread = hop.call(another(&first, text("stream"))).await.expect("a head");
    drop(unread);
    reached(&dropped, 3).await;
    for _ in 0..100 {
        let piece = neighbour.body.next_chunk().await.expect("lives").expect("whole");
        assert!(piece.chunks(4).all(|word| word == b"more"));
    }
}

#[tokio::test]
async fn an_answer_whose_agent_is_lost_does_not_end_cleanly_and_is_not_tried_again() {
    let node = Node::new(|_| async {
        let (sender, body) = piecewise();
        tokio::spawn(async move {
            sender.send(Ok(Bytes::from_static(b"half"))).await.expect("is wanted");
            sender.closed().await;
        });
        Ok(answer(200, body))
    });
    let agent = Agent::start(&node);
    let relay = Relay::start(agent.address).await;
    let hop = remote_hop(relay.address);
    let first = defined(&*hop).await;
    let mut answers = Vec::new();
    for _ in 0..10 {
        let mut response = hop.call(another(&first, Body::Empty)).await.expect("a head");
        assert_eq!(response.body.next_chunk().await.expect("a piece").expect("whole"), "half");
        answers.push(response);
    }
    relay.cut().await;
    for mut response in answers {
        let end = tokio::time::timeout(LONG, response.body.next_chunk()).await.expect("in time");
        assert!(matches!(end, Some(Err(_))), "{end:?}");
    }
    assert_eq!(node.calls.load(Ordering::Relaxed), 10);
    let refused = hop.call(another(&first, Body::Empty)).await.expect_err("nobody is there");
    assert!(matches!(refused, CallError::Refused { reason: Refusal::Unreachable, .. }), "{refused:?}");
}

#[tokio::test]
async fn an_agent_that_drains_answers_what_it_took_and_refuses_the_rest() {
    let (node, gate) = gated();
    let agent = Agent::start_with(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), &node, LONG);
    let hop = remote_hop(agent.address);
    let first = defined(&*hop).await;
    let taken: Vec<_> = (0..64).map(|number| calling(&hop, another(&first, numbered(number)))).collect();
    reached(&node.calls, taken.len()).await;
    let stopped = tokio::task::spawn_blocking(move || drop(agent));
    // Others are refused from some moment on, and none is lost before or after it.
    let mut crossed = Vec::new();
    let refused = loop {
        let calls = node.calls.load(Ordering::Relaxed);
        let mut calling = calling(&hop, another(&first, numbered(crossed.len())));
        let taken = reached(&node.calls, calls + 1);
        tokio::select! {
            refused = &mut calling => break refused.expect("ends").expect_err("was not let through"),
            () = taken => crossed.push(calling),
        }
    };
    assert!(
        matches!(refused, CallError::Refused { reason: Refusal::Draining | Refusal::Unreachable, .. }),
        "{refused:?}"
    );
    gate.add_permits(taken.len() + crossed.len());
    for calls in [taken, crossed] {
        for (number, calling) in calls.into_iter().enumerate() {
            let response = ended(calling).await.expect("was taken");
            assert_eq!(response.body.collect(100).await.expect("whole"), number.to_string());
        }
    }
    tokio::time::timeout(LONG, stopped).await.expect("ends by itself").expect("ends");
}

/// A connection of a balancer to what stands for an agent.
async fn accept(listener: &TcpListener) -> tokio_rustls::server::TlsStream<tokio::net::TcpStream> {
    let (stream, _) = listener.accept().await.expect("is called");
    let tls = server_config(&credentials(fleet(), Role::Agent, NODE), &[MUX_ALPN], ClientAuth::Required);
    TlsAcceptor::from(tls).accept(stream).await.expect("a handshake")
}

#[tokio::test]
async fn a_server_that_does_not_multiplex_has_taken_no_call() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let hop = remote_hop(listener.local_addr().expect("an address"));
    let calls: Vec<_> = (0..3).map(|number| calling(&hop, request(numbered(number)))).collect();
    let mut stream = accept(&listener).await;
    let mut read = [0; 8];
    stream.read_exact(&mut read).await.expect("a beginning");
    stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("writes");
    stream.flush().await.expect("writes");
    for (number, calling) in calls.into_iter().enumerate() {
        let refused = ended(calling).await.expect_err("is refused");
        let CallError::Refused { reason: Refusal::Unreachable, request } = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(request.body.collect(10).await.expect("the body"), number.to_string());
    }
}

#[tokio::test]
async fn calls_on_a_connection_that_breaks_are_lost_if_they_were_written() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let hop = remote_hop(listener.local_addr().expect("an address"));
    let calls: Vec<_> = (0..3).map(|number| calling(&hop, request(numbered(number)))).collect();
    let mut stream = accept(&listener).await;
    let mut read = Vec::new();
    while read.windows(4).filter(|bytes| *bytes == b"\r\n\r\n").count() < calls.len() {
        stream.read_buf(&mut read).await.expect("heads");
    }
    drop(stream);
    for calling in calls {
        let lost = ended(calling).await.expect_err("is lost");
        assert!(
            matches!(&lost, CallError::Failed(failure) if failure.kind == FailureKind::NodeLost),
            "{lost:?}"
        );
    }
}
