//! What holds for agents elsewhere alone.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kiln_lb::fleet::{Address, Fleet, LivenessPolicy, NodeConfig, NodeState};
use kiln_lb::forward::Control;
use kiln_lb::nodes::Nodes;
use kiln_shared::body::Body;
use kiln_shared::call::{CallError, FailureKind, Refusal};
use kiln_shared::ids::NodeId;
use kiln_shared::record::RecordSink;
use kiln_shared::report::NodeReport;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::support::{
    Agent, LONG, Node, a_record, answer, call, piecewise, reached, remote_hop, report, request,
};

fn echo() -> Arc<Node> {
    Node::new(|request| async move { Ok(answer(200, request.body)) })
}

#[tokio::test]
async fn an_agent_that_is_not_there_refuses() {
    // Bound and closed: nobody listens there.
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr()).expect("a port");
    let hop = remote_hop(address, None);
    let refused =
        hop.call(request(Body::from(Bytes::from_static(b"kept")))).await.expect_err("nobody is there");
    let CallError::Refused { reason: Refusal::Unreachable, request } = refused else { panic!("{refused:?}") };
    assert_eq!(request.body.collect(10).await.expect("the body"), "kept");
}

#[tokio::test]
async fn a_balancer_with_another_token_is_refused() {
    let node = echo();
    let agent = Agent::start(&node, Some("s3cret"));
    for token in [None, Some("other")] {
        let refused = remote_hop(agent.address, token).call(request(Body::Empty)).await.expect_err("no");
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
    let node = Node::new(|_| std::future::pending());
    let agent = Agent::start(&node, None);
    let hop = remote_hop(agent.address, None);
    let waiting = tokio::spawn(async move { call(&*hop, request(Body::Empty)).await });
    reached(&node.calls, 1).await;
    tokio::task::spawn_blocking(move || drop(agent)).await.expect("ends");
    let error = tokio::time::timeout(LONG, waiting).await.expect("ends").expect("ends").expect_err("is lost");
    assert!(
        matches!(&error, CallError::Failed(failure) if failure.kind == FailureKind::NodeLost && failure.status == 502),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_restarted_agent_is_called_over_new_connections() {
    let node = echo();
    let agent = Agent::start(&node, None);
    let address = agent.address;
    let hop = remote_hop(address, None);
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
    assert_eq!(call(&*hop, request(Body::Empty)).await.expect("answers").status, 200);
}

/// A fleet of one remote node that is followed, with what it takes to end that.
struct Followed {
    reader: kiln_lb::fleet::FleetReader,
    stop: CancellationToken,
    tasks: TaskTracker,
}

fn follow(address: SocketAddr, liveness: LivenessPolicy, records: RecordSink) -> Followed {
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let id = NodeId::new("mine");
    let mut fleet = Fleet::new(liveness, Instant::now());
    let remote = Address::Remote(address.to_string().into());
    fleet.join(NodeConfig { id: id.clone(), address: remote, weight: None, zone: None }, Instant::now());
    let reader = fleet.reader();
    let nodes = Nodes::keep(fleet, &tasks, &stop);
    let control = Control::new(address.to_string().into(), None, Duration::from_secs(1));
    nodes.follow_remote(&id, &control, records);
    Followed { reader, stop, tasks }
}

impl Followed {
    /// Waits until the node is as `wanted` says.
    async fn until(&mut self, wanted: impl Fn(&kiln_lb::fleet::Node) -> bool) {
        let reached = async {
            while !wanted(self.reader.view().members()[0].node()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LONG, reached).await.expect("the view follows");
    }

    async fn end(self) {
        self.stop.cancel();
        self.tasks.close();
        tokio::time::timeout(LONG, self.tasks.wait()).await.expect("its tasks end");
    }
}

#[tokio::test]
async fn reports_arrive_as_they_are_made_and_silence_is_noticed() {
    let agent = Agent::start(&echo(), None);
    let (records, _kept) = RecordSink::bounded(8);
    let second = Duration::from_secs(1);
    let liveness = LivenessPolicy { slack: second / 4, ..LivenessPolicy::of_beat(second / 4) };
    let mut followed = follow(agent.address, liveness, records);
    followed.until(|node| node.memory_total_mib() == Some(8192)).await;
    agent.reports.send_replace(Arc::new(NodeReport { calls: 5, ..report(2) }));
    followed.until(|node| node.load() == 5).await;
    agent.reports.send_replace(Arc::new(NodeReport { draining: true, ..report(3) }));
    followed.until(|node| node.state() == NodeState::Draining).await;
    agent.reports.send_replace(Arc::new(report(4)));
    followed.until(|node| node.state() == NodeState::Up).await;
    tokio::task::spawn_blocking(move || drop(agent)).await.expect("ends");
    followed.until(|node| node.state() == NodeState::Suspect).await;
    followed.end().await;
}

#[tokio::test]
async fn records_are_fetched_in_order_and_once() {
    let agent = Agent::start(&echo(), None);
    let (records, mut kept) = RecordSink::bounded(64);
    let followed = follow(agent.address, LivenessPolicy::default(), records);
    let sent: Vec<_> = (0..30).map(|number| a_record(&number.to_string())).collect();
    for record in &sent {
        agent.records.send(record.clone());
    }
    for record in &sent {
        let fetched = tokio::time::timeout(LONG, kept.recv()).await.expect("arrives");
        assert_eq!(fetched.as_ref(), Some(record));
    }
    followed.end().await;
    assert!(kept.recv().await.is_none(), "a record came twice");
}
