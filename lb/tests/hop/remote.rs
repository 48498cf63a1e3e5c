//! What holds for agents elsewhere alone.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use kiln_shared::body::Body;
use kiln_shared::call::{CallError, FailureKind, Refusal};

use crate::support::{
    Agent, CARRIERS, LONG, Node, answer, call, hop_over, piecewise, reached, remote_hop, request,
};

fn echo() -> Arc<Node> {
    Node::new(|request| async move { Ok(answer(200, request.body)) })
}

#[tokio::test]
async fn an_agent_that_is_not_there_refuses() {
    // Bound and closed: nobody listens there.
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr()).expect("a port");
    for carrier in CARRIERS {
        let hop = hop_over(carrier, address, None);
        let refused =
            hop.call(request(Body::from(Bytes::from_static(b"kept")))).await.expect_err("nobody is there");
        let CallError::Refused { reason: Refusal::Unreachable, request } = refused else {
            panic!("{carrier:?}: {refused:?}")
        };
        assert_eq!(request.body.collect(10).await.expect("the body"), "kept", "{carrier:?}");
    }
}

#[tokio::test]
async fn a_balancer_with_another_token_is_refused() {
    let node = echo();
    let agent = Agent::start(&node, Some("s3cret"));
    for (token, carrier) in
        [None, Some("other")].into_iter().flat_map(|token| CARRIERS.map(|way| (token, way)))
    {
        let refused =
            hop_over(carrier, agent.address, token).call(request(Body::Empty)).await.expect_err("no");
        assert!(matches!(refused, CallError::Refused { reason: Refusal::Unreachable, .. }), "{refused:?}");
    }
    assert_eq!(node.calls.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_function_is_unknown_until_it_was_defined() {
    let node = echo();
    let agent = Agent::start(&node, None);
    let hop = remote_hop(agent.address, None);
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
    let agent = Agent::start(&node, None);
    let (sender, body) = piecewise();
    let refused = call(&*remote_hop(agent.address, None), request(body)).await.expect_err("is busy");
    assert!(matches!(refused, CallError::Refused { reason: Refusal::Busy, .. }), "{refused:?}");
    // The channel holds one piece; if the body had been asked for there would be room again.
    sender.try_send(Ok(Bytes::from_static(b"first"))).expect("nothing was taken yet");
    assert!(sender.try_send(Ok(Bytes::from_static(b"second"))).is_err());
}

#[tokio::test]
async fn a_call_whose_node_dies_is_lost_and_not_tried_again() {
    for carrier in CARRIERS {
        let node = Node::new(|_| std::future::pending());
        let agent = Agent::start(&node, None);
        let hop = hop_over(carrier, agent.address, None);
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
async fn a_restarted_agent_is_called_over_new_connections() {
    for carrier in CARRIERS {
        let node = echo();
        let agent = Agent::start(&node, None);
        let address = agent.address;
        let hop = hop_over(carrier, address, None);
        for _ in 0..3 {
            assert_eq!(call(&*hop, request(Body::Empty)).await.expect("answers").status, 200);
        }
        let agent = tokio::task::spawn_blocking({
            let node = Arc::clone(&node);
            move || {
                drop(agent);
                Agent::start_at(address, &node, None)
            }
        });
        let _agent = agent.await.expect("starts again");
        // The runtime has to see that the old connection was closed.
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(call(&*hop, request(Body::Empty)).await.expect("answers").status, 200, "{carrier:?}");
    }
}
