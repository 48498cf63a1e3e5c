//! What the edge tells of calls: to their nodes, to their callers, and to the records.

use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use kiln_lb::edge::{EdgeConfig, ServerTiming};
use kiln_shared::body::{Body, BodyError};
use kiln_shared::call::{Failure, Stages};
use kiln_shared::ids::NodeId;
use kiln_shared::record::CallStatus;
use kiln_shared::story::Reason;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::fed::fed;
use crate::support::{Client, Reply, TestEdge, answer};

/// Keeps an answer from ending.
type Hold = mpsc::Sender<Result<Bytes, BodyError>>;

const PATH: &str = "/t/demo/hello";

#[tokio::test]
async fn a_node_is_told_why_it_gets_a_call_whatever_the_client_says() {
    let mut edge = TestEdge::start(|_| answer(200, &[], Body::Empty)).await;
    let request = format!(
        "GET {PATH} HTTP/1.1\r\nHost: kiln.test\r\nKiln-Call: warm_spill 9 9 9 9 9 9\r\nConnection: close\r\n\r\n"
    );
    assert_eq!(Reply::parse(&edge.exchange(request).await).status, 200);
    let told = edge.node.whole().remove(0).placement.expect("it is told");
    assert_eq!((&*told.balancer, told.reason), ("local", Some(Reason::RoomHome)));
    assert_eq!((told.asked, told.calls, told.tries, told.waits), (1, 0, 1, 0));
    assert!(told.refused.is_empty() && told.waited.is_zero());
    assert_eq!(edge.recorded(), [], "the node records what it took");
}

/// An edge one call of whose function runs, on the connection that comes with it, until the sender is dropped.
async fn busy(config: EdgeConfig, calls_max: Value) -> (TestEdge, Client, Hold) {
    let (hold, body) = fed(None, 1);
    let first = Mutex::new(Some(body));
    let edge = TestEdge::start_limited(config, calls_max, move |_| {
        let first = first.lock().expect("no panic with it").take();
        answer(200, &[], first.unwrap_or(Body::Empty))
    })
    .await;
    hold.send(Ok(Bytes::from_static(b"begun"))).await.expect("the answer is open");
    let mut client = edge.connect().await;
    client.send(format!("GET {PATH} HTTP/1.1\r\nHost: kiln.test\r\n\r\n")).await;
    client.until("begun\r\n").await;
    (edge, client, hold)
}

#[tokio::test]
async fn a_call_that_waited_in_vain_is_recorded_with_the_nodes_of_that_moment() {
    let wait_max = Duration::from_millis(20);
    let config = EdgeConfig { wait_max, ..EdgeConfig::default() };
    let (mut edge, _client, _hold) = busy(config, json!(1)).await;
    let reply = edge.request("GET", PATH).await;
    assert_eq!(reply.status, 503);
    let call = edge.recorded().pop().expect("it is recorded");
    assert_eq!(reply.header("Fn-Call-Id"), Some(call.id.as_str()));
    assert_eq!((call.status, call.started_at, call.trigger_id.is_some()), (CallStatus::Error, None, true));
    let error = call.error.as_deref();
    assert_eq!(error, Some("Timed out - server too busy: the function's concurrency limit is reached"));
    let told = call.story.placement.expect("it is told");
    assert_eq!((told.tries, told.reason, told.waits), (0, None, 1));
    assert!(told.before >= wait_max && told.before >= told.waited && !told.waited.is_zero(), "{told:?}");
    let taken = call.completed_at.duration_since(call.created_at).unsigned_abs();
    assert!(taken >= wait_max, "{taken:?}");
    let candidate = &call.story.candidates[0];
    assert_eq!((candidate.node.as_str(), candidate.calls, candidate.is_chosen), ("node", 1, true));
    assert_eq!((call.story.node, call.story.times), (None, None));
}

#[tokio::test]
async fn a_call_that_was_lost_with_its_node_is_recorded_and_what_functions_do_is_not() {
    let failures = Mutex::new(vec![Failure::function_failed(), Failure::node_lost(), Failure::timed_out()]);
    let mut edge = TestEdge::start_failing(EdgeConfig::default(), Value::Null, move |_| {
        Err(failures.lock().expect("no panic with it").pop().expect("three calls"))
    })
    .await;
    for status in [504, 502, 502] {
        assert_eq!(edge.request("GET", PATH).await.status, status);
    }
    let [call] = &edge.recorded()[..] else { panic!("one of them is recorded") };
    assert_eq!(call.story.node.as_ref().map(NodeId::as_str), Some("node"));
    assert_eq!((call.story.candidates.len(), call.status), (0, CallStatus::Error));
    assert_eq!(call.story.placement.as_ref().map(|told| told.tries), Some(1));
}

#[tokio::test]
async fn calls_over_the_edges_own_limit_are_recorded() {
    let config = EdgeConfig { calls_max: 1, ..EdgeConfig::default() };
    let (mut edge, _client, _hold) = busy(config, Value::Null).await;
    assert_eq!(edge.request("GET", PATH).await.status, 503);
    let recorded = edge.recorded();
    assert_eq!((recorded.len(), edge.node.calls()), (1, 1));
    assert_eq!(recorded[0].story.placement.as_ref().map(|told| told.tries), Some(0));
}

#[tokio::test]
async fn what_the_caller_did_wrong_is_not_recorded() {
    let config = EdgeConfig { body_bytes_max: 1, ..EdgeConfig::default() };
    let mut edge = TestEdge::start_with(config, |_| answer(200, &[], Body::Empty)).await;
    let request = format!(
        "POST {PATH} HTTP/1.1\r\nHost: kiln.test\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab"
    );
    assert_eq!(Reply::parse(&edge.exchange(request).await).status, 413);
    assert_eq!(edge.recorded(), []);
}

/// The values of `Server-Timing` in their order.
fn timings(reply: &Reply) -> Vec<&str> {
    reply.head.lines().filter_map(|line| line.strip_prefix("Server-Timing: ")).collect()
}

#[tokio::test]
async fn callers_are_told_the_stages_only_where_that_is_wanted_and_kilns_line_is_the_last() {
    let [wait, start, run] = [9_000, 8_000, 1_500].map(Duration::from_micros);
    let stages = Stages { cold: true, wait, start, run };
    let script = move |_: &_| {
        let forged = [("Server-Timing", "run;dur=0"), ("X-Other", "y")];
        kiln_shared::call::CallResponse { stages, ..answer(200, &forged, Body::Empty) }
    };
    let edge = TestEdge::start(script).await;
    assert_eq!(timings(&edge.request("GET", PATH).await), ["run;dur=0"]);
    let shown = EdgeConfig { server_timing: ServerTiming::Shown, ..EdgeConfig::default() };
    let edge = TestEdge::start_with(shown.clone(), script).await;
    let reply = edge.request("GET", PATH).await;
    let [functions, kilns] = timings(&reply)[..] else { panic!("{reply:?}") };
    let told = "wait;dur=0.000, queue;dur=1.000, start;dur=8.000, run;dur=1.500, cold, total;dur=";
    assert!(functions == "run;dur=0" && kilns.starts_with(told), "{kilns}");
    let edge = TestEdge::start_failing(shown, Value::Null, |_| Err(Failure::function_failed())).await;
    let reply = edge.request("GET", PATH).await;
    assert!(reply.status == 502 && timings(&reply)[0].starts_with("wait;dur=0.000, total;dur="), "{reply:?}");
}
