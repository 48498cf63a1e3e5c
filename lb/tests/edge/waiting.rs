//! Calls that wait at the edge for their turn.

use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use kiln_lb::edge::EdgeConfig;
use kiln_shared::body::{Body, BodyError};
use serde_json::json;
use tokio::sync::mpsc;

use crate::fed::fed;
use crate::support::{TestEdge, answer};

const REQUEST: &str = "GET /t/demo/hello HTTP/1.1\r\nHost: kiln.test\r\nConnection: close\r\n\r\n";

/// An edge whose function may have one call at a time, and what keeps the first call's answer from ending.
async fn one_at_a_time(config: EdgeConfig) -> (TestEdge, mpsc::Sender<Result<Bytes, BodyError>>) {
    let (hold, body) = fed(None, 1);
    let first = Mutex::new(Some(body));
    let edge = TestEdge::start_limited(config, json!(1), move |_| {
        let first = first.lock().expect("no panic with it").take();
        answer(200, &[], first.unwrap_or(Body::Empty))
    })
    .await;
    (edge, hold)
}

#[tokio::test]
async fn a_call_beyond_the_functions_limit_runs_when_the_one_before_has_ended() {
    let (edge, hold) = one_at_a_time(EdgeConfig::default()).await;
    hold.send(Ok(Bytes::from_static(b"begun"))).await.expect("the answer is open");
    let mut first = edge.connect().await;
    first.send(REQUEST).await;
    first.until("begun\r\n").await;
    let mut second = edge.connect().await;
    second.send(REQUEST).await;
    drop(hold);
    let (first, second) = tokio::join!(first.rest(), second.rest());
    assert!(first.ends_with("0\r\n\r\n") && second.starts_with("HTTP/1.1 200"), "{first} {second}");
    assert_eq!(edge.node.calls(), 2);
}

#[tokio::test]
async fn a_call_that_waits_for_too_long_is_told_why_and_when_to_come_back() {
    let config = EdgeConfig { wait_max: Duration::from_millis(20), ..EdgeConfig::default() };
    let (edge, hold) = one_at_a_time(config).await;
    hold.send(Ok(Bytes::from_static(b"begun"))).await.expect("the answer is open");
    let mut first = edge.connect().await;
    first.send(REQUEST).await;
    first.until("begun\r\n").await;
    let reply = edge.request("GET", "/t/demo/hello").await;
    reply.refused(503, "Timed out - server too busy: the function's concurrency limit is reached");
    assert_eq!((reply.header("Retry-After"), edge.node.calls()), (Some("15"), 1));
}
