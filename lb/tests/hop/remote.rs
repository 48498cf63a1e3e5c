//! What holds for agents elsewhere alone.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use kiln_lb::forward::PoolConfig;
use kiln_shared::body::Body;
use kiln_shared::call::{CallError, FailureKind, Refusal};
use kiln_shared::identity::Role;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{
    Agent, CARRIERS, LONG, NODE, Node, answer, authority, call, credentials, fleet, hop_as, hop_over,
    hop_with, piecewise, reached, remote_hop, request,
};

fn echo() -> Arc<Node> {
    Node::new(|request| async move { Ok(answer(200, request.body)) })
}

#[tokio::test]
async fn an_agent_that_is_not_there_refuses() {
    // Bound and closed: nobody listens there.
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr()).expect("a port");
    for carrier in CARRIERS {
        let hop = hop_over(carrier, address);
        let refused =
            hop.call(request(Body::from(Bytes::from_static(b"kept")))).await.expect_err("nobody is there");
        let CallError::Refused { reason: Refusal::Unreachable, request } = refused else {
            panic!("{carrier:?}: {refused:?}")
        };
        assert_eq!(request.body.collect(10).await.expect("the body"), "kept", "{carrier:?}");
    }
}

#[tokio::test]
async fn only_balancers_of_the_fleet_may_call_and_only_the_right_node_is_called() {
    let node = echo();
    let agent = Agent::start(&node);
    let stranger = credentials(&authority(), Role::Balancer, "lb");
    let own = credentials(fleet(), Role::Balancer, "lb");
    for carrier in CARRIERS {
        for (credentials, name) in [(&stranger, NODE), (&own, "another")] {
            let hop = hop_as(credentials, name, carrier.pools(), agent.address);
            let refused = hop.call(request(Body::Empty)).await.expect_err("no");
            assert!(
                matches!(refused, CallError::Refused { reason: Refusal::Unreachable, .. }),
                "{carrier:?} {name}: {refused:?}"
            );
        }
    }
    assert_eq!(node.calls.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn without_a_certificate_an_agent_tells_only_how_it_is() {
    let node = echo();
    let agent = Agent::start(&node);
    for (request, status) in [
        ("GET /health HTTP/1.1\r\nHost: a\r\n\r\n", "200"),
        ("GET /ready HTTP/1.1\r\nHost: a\r\n\r\n", "503"),
        ("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", "200"),
        ("POST /call HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", "404"),
        ("PUT /functions/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}", "404"),
    ] {
        let mut stream = tokio::net::TcpStream::connect(agent.address).await.expect("connects");
        stream.write_all(request.as_bytes()).await.expect("is sent");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(&answer[9..], status.as_bytes(), "{request}");
    }
    assert_eq!(node.calls.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_function_is_unknown_until_it_was_defined() {
    let node = echo();
    let agent = Agent::start(&node);
    let hop = remote_hop(agent.address);
    let sent = request(Body::from(Bytes::from_static(b"x")));
    let refused = hop.call(sent).await.expect_err("is unknown");
    let CallError::Refused { reason: Refusal::UnknownFunction, request } = refused else {
        panic!("{refused:?}")
    };
    hop.define(&request.function).await;
    assert_eq!(hop.call(request).await.expect("is known").status, 200);
}

#[tokio::test]
async fn a_refusal_does_not_cost_a_large_body() {
    let node = Node::new(|request| async move { Err(CallError::Refused { reason: Refusal::Busy, request }) });
    let agent = Agent::start(&node);
    let (sender, body) = piecewise();
    let refused = call(&*remote_hop(agent.address), request(body)).await.expect_err("is busy");
    assert!(matches!(refused, CallError::Refused { reason: Refusal::Busy, .. }), "{refused:?}");
    // The channel holds one piece; if the body had been asked for there would be room again.
    sender.try_send(Ok(Bytes::from_static(b"first"))).expect("nothing was taken yet");
    assert!(sender.try_send(Ok(Bytes::from_static(b"second"))).is_err());
}

#[tokio::test]
async fn a_call_whose_node_dies_is_lost_and_not_tried_again() {
    for carrier in CARRIERS {
        let node = Node::new(|_| std::future::pending());
        let agent = Agent::start(&node);
        let hop = hop_over(carrier, agent.address);
        let waiting = tokio::spawn(async move { call(&*hop, request(Body::Empty)).await });
        reached(&node.calls, 1).await;
        tokio::task::spawn_blocking(move || drop(agent)).await.expect("ends");
        let error =
            tokio::time::timeout(LONG, waiting).await.expect("ends").expect("ends").expect_err("is lost");
        assert!(
            matches!(&error, CallError::Failed(failure) if failure.kind == FailureKind::NodeLost && failure.status == 502),
            "{carrier:?}: {error:?}"
        );
    }
}

#[tokio::test]
async fn a_node_that_does_not_answer_in_time_is_lost() {
    for carrier in CARRIERS {
        let node = Node::new(|_| std::future::pending());
        let agent = Agent::start(&node);
        let pools = PoolConfig { answer_wait_max: Duration::from_millis(50), ..carrier.pools() };
        let hop = hop_with(pools, agent.address);
        let mut request = request(Body::Empty);
        let function = Arc::make_mut(&mut request.function);
        function.spec.timeout = Duration::from_millis(50);
        let error =
            tokio::time::timeout(LONG, call(&*hop, request)).await.expect("ends").expect_err("is lost");
        assert!(
            matches!(&error, CallError::Failed(failure) if failure.kind == FailureKind::NodeLost),
            "{carrier:?}: {error:?}"
        );
    }
}

#[tokio::test]
async fn an_answer_that_is_not_an_agents_does_not_say_that_the_node_is_lost() {
    for carrier in CARRIERS {
        let node = echo();
        let agent = Agent::start(&node);
        let mut request = request(Body::Empty);
        // More lines than an agent reads.
        for line in 0..200 {
            request.headers.push_valid(format!("X-{line}").as_bytes(), b"x");
        }
        let error = call(&*hop_over(carrier, agent.address), request).await.expect_err("is not read");
        assert!(
            matches!(&error, CallError::Failed(failure) if failure.kind == FailureKind::Unreadable && failure.status == 502),
            "{carrier:?}: {error:?}"
        );
    }
}

#[tokio::test]
async fn a_restarted_agent_is_called_over_new_connections() {
    for carrier in CARRIERS {
        let node = echo();
        let agent = Agent::start(&node);
        let address = agent.address;
        let hop = hop_over(carrier, address);
        for _ in 0..3 {
            assert_eq!(call(&*hop, request(Body::Empty)).await.expect("answers").status, 200);
        }
        let agent = tokio::task::spawn_blocking({
            let node = Arc::clone(&node);
            move || {
                drop(agent);
                Agent::start_at(address, &node)
            }
        });
        let _agent = agent.await.expect("starts again");
        // The runtime has to see that the old connection was closed.
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(call(&*hop, request(Body::Empty)).await.expect("answers").status, 200, "{carrier:?}");
    }
}
