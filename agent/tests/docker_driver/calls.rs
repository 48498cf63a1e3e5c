//! Calls over the socket into real containers (`spec/container-contract.md`, part A).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};
use kiln_agent::slots::SlotsConfig;
use kiln_shared::body::BodyError;
use kiln_shared::call::{CallResponse, Failure, FailureKind};
use kiln_shared::contract::Limits;
use kiln_shared::function::{Function, FunctionSpec};
use kiln_shared::record::CallStatus;

use crate::agent::{Agent, header, trigger_request};
use crate::freezing::{freezer_file, is_frozen};
use crate::support::calls::{request, text_of};
use crate::support::{eventually, image, spec};

/// Of functions that hang: as short as it may be while their other calls still end in time on a busy machine.
const SHORT_TIMEOUT: Duration = Duration::from_secs(3);

fn function() -> Arc<Function> {
    Arc::new(Function::new(spec(&image("function"), "phony")))
}

fn short_function() -> Arc<Function> {
    let spec = FunctionSpec { timeout: SHORT_TIMEOUT, ..spec(&image("function"), "phony") };
    Arc::new(Function::new(spec))
}

/// The failure of a call without a whole answer, whether or not its head was out.
async fn failure(called: Result<CallResponse, Failure>) -> Result<Failure, BodyError> {
    match called {
        Ok(response) => Err(response.body.collect(1 << 20).await.unwrap_err()),
        Err(failure) => Ok(failure),
    }
}

#[tokio::test]
async fn only_502_and_504_of_a_function_keep_its_container() {
    let agent = Agent::start().await;
    let function = function();
    let mut served = 0;
    for (status, kept, client_status, message) in [
        (502, true, 502, "function failed"),
        (504, true, 504, "Timed out"),
        (500, false, 502, "invalid function response"),
        (404, false, 502, "invalid function response"),
        (201, false, 502, "invalid function response"),
    ] {
        let failure = agent.caller.call(&function, format!("status {status}")).await.unwrap_err();
        assert_eq!((failure.status, failure.message.as_ref()), (client_status, message), "{status}");
        served = if kept { served + 2 } else { 1 };
        assert_eq!(agent.caller.text(&function, "count").await, served.to_string(), "after {status}");
    }
    agent.close().await;
}

#[tokio::test]
async fn a_function_sees_an_invocation_as_the_client_sent_it() {
    let agent = Agent::start().await;
    let function = function();
    let mut call = request(&function, Bytes::from_static(b"request"));
    for (name, value) in
        [("content-type", "text/plain"), ("Authorization", "Bearer x"), ("fn-call-id", "forged")]
    {
        call.headers.push(name.as_bytes(), value.as_bytes()).unwrap();
    }
    let (id, before) = (call.id, Timestamp::now());
    let answer = agent.caller.send(call).await.unwrap();
    let after = Timestamp::now();
    assert_eq!(header(&answer.headers, "Content-Type").as_deref(), Some("text/plain"));
    let seen = text_of(answer).await;
    let (head, body) = seen.split_once("\r\n\r\n").unwrap();
    let mut lines: Vec<&str> = head.lines().collect();
    let deadline = lines.iter().position(|line| line.starts_with("Fn-Deadline: ")).unwrap();
    let deadline = lines.remove(deadline).split_once(": ").unwrap().1;
    assert!(deadline.len() == "2018-09-30T12:00:30Z".len() && deadline.ends_with('Z'), "{deadline}");
    let start = deadline.parse::<Timestamp>().unwrap() - function.spec.timeout;
    // It has whole seconds.
    assert!(before - SignedDuration::from_secs(1) < start && start <= after, "{before} {start} {after}");
    assert_eq!(
        lines,
        [
            "POST /call HTTP/1.1",
            "Host: localhost",
            &format!("Fn-Call-Id: {id}"),
            "Content-Length: 7",
            "Content-Type: text/plain",
            "Authorization: Bearer x",
        ]
    );
    assert_eq!(body, "request");
    agent.close().await;
}

#[tokio::test]
async fn a_function_sees_the_request_behind_a_trigger() {
    let agent = Agent::start().await;
    let function = function();
    let call = trigger_request(&function, Bytes::from_static(b"request"));
    let id = call.id;
    let answer = agent.caller.send(call).await.unwrap();
    let seen = text_of(answer).await;
    let (head, _) = seen.split_once("\r\n\r\n").unwrap();
    let lines: Vec<&str> = head.lines().filter(|line| !line.starts_with("Fn-Deadline: ")).collect();
    assert_eq!(
        lines,
        [
            "POST /call HTTP/1.1",
            "Host: localhost",
            &format!("Fn-Call-Id: {id}"),
            "Content-Length: 7",
            "Fn-Intent: httprequest",
            "Fn-Http-Method: PUT",
            "Fn-Http-Request-Url: http://api.example.com/t/tests/hello?x=1",
            "Content-Type: text/plain",
            "Fn-Http-H-X-Two: one",
            "Fn-Http-H-X-Two: two",
            "Fn-Http-H-Fn_call_id: forged",
            "Fn-Http-H-Content-Length: 7",
        ]
    );
    agent.close().await;
}

#[tokio::test]
async fn a_container_that_breaks_off_fails_its_call_alone() {
    let mut agent = Agent::start().await;
    let function = function();
    for (command, kind, record) in [
        ("exit 7", FailureKind::NoResponse, "error receiving function response: container exit code 7"),
        ("garbage", FailureKind::NoResponse, "error receiving function response: "),
        ("eat", FailureKind::OutOfMemory, "container out of memory, you may want to raise fn.memory"),
    ] {
        let failure = agent.caller.call(&function, command).await.unwrap_err();
        assert_eq!((failure.status, failure.kind), (502, kind), "{command}: {failure:?}");
        let [ended] = agent.caller.records(1).await.try_into().unwrap();
        assert_eq!(ended.status, CallStatus::Error);
        assert!(ended.error.as_ref().unwrap().starts_with(record), "{command}: {ended:?}");
        assert_eq!(agent.caller.text(&function, "count").await, "1", "after {command}");
        agent.caller.records(1).await;
    }
    let cut = failure(agent.caller.call(&function, "cut 7").await).await;
    assert!(matches!(cut, Err(BodyError::Interrupted(_))), "{cut:?}");
    assert_eq!(agent.caller.text(&function, "count").await, "1");
    agent.close().await;
}

#[tokio::test]
async fn an_answer_may_come_in_pieces_and_nothing_behind_it_reaches_the_next_caller() {
    let agent = Agent::start().await;
    let function = function();
    assert_eq!(agent.caller.text(&function, "slowly but whole").await, "but whole");
    assert_eq!(agent.caller.text(&function, "chunked möre").await, "möre");
    assert_eq!(agent.caller.text(&function, "count").await, "3");
    assert_eq!(agent.caller.text(&function, "twice over").await, "over");
    // Whether the container is kept or not: this is the answer to this call.
    let count = agent.caller.text(&function, "count").await;
    assert!(["1", "5"].contains(&count.as_str()), "{count}");
    agent.close().await;
}

#[tokio::test]
async fn a_call_that_takes_too_long_fails_alone() {
    let agent = Agent::start().await;
    let hang = async {
        let function = short_function();
        let failure = agent.caller.call(&function, "hang").await.unwrap_err();
        assert_eq!((failure.status, failure.message.as_ref()), (504, "Timed out"));
        assert_eq!(agent.caller.text(&function, "count").await, "1");
    };
    let stall = async {
        let function = short_function();
        let cut = failure(agent.caller.call(&function, "stall").await).await;
        assert!(matches!(cut, Err(BodyError::DeadlineExceeded)), "{cut:?}");
        assert_eq!(agent.caller.text(&function, "count").await, "1");
    };
    tokio::join!(hang, stall);
    agent.close().await;
}

#[tokio::test]
async fn answers_larger_than_allowed_fail_their_call_alone() {
    let limits = Limits { response_bytes_max: 100, ..Limits::default() };
    let agent = Agent::with(SlotsConfig::for_node(1024, 2), limits).await;
    let function = function();
    let head_bytes_max = limits.response_head_bytes_max;
    for (command, message) in [
        (format!("bloat {head_bytes_max}"), "function response header too large"),
        (format!("slowly {}", "x".repeat(101)), "function response body too large"),
    ] {
        let failure = agent.caller.call(&function, command).await.unwrap_err();
        assert_eq!((failure.status, failure.message.as_ref()), (502, message));
        assert_eq!(agent.caller.text(&function, "count").await, "1");
    }
    let cut = failure(agent.caller.call(&function, format!("chunked {}", "x".repeat(101))).await).await;
    assert!(
        matches!(
            cut,
            Err(BodyError::TooLarge { bytes_max: 100 })
                | Ok(Failure { kind: FailureKind::ResponseTooLarge, .. })
        ),
        "{cut:?}"
    );
    assert_eq!(agent.caller.text(&function, "count").await, "1");
    agent.close().await;
}

#[tokio::test]
async fn a_caller_that_goes_away_takes_its_container_along() {
    let mut agent = Agent::start().await;
    let function = function();
    let mut reports = agent.caller.agent.reports();
    {
        let call = std::pin::pin!(agent.caller.call(&function, "hang"));
        let runs = async {
            reports
                .wait_for(|report| report.functions.iter().any(|function| function.busy == 1))
                .await
                .unwrap();
        };
        tokio::select! {
            answer = call => panic!("{answer:?}"),
            () = runs => {}
        }
    }
    let [ended] = agent.caller.records(1).await.try_into().unwrap();
    assert_eq!((ended.status, ended.error.as_deref()), (CallStatus::Error, Some("context canceled")));
    assert_eq!(agent.caller.text(&function, "count").await, "1");
    agent.close().await;
}

#[tokio::test]
async fn a_container_serves_one_call_at_a_time() {
    let agent = Agent::with_memory_mib(64).await;
    let function = function();
    let answers = join_all((0..8).map(|_| agent.caller.text(&function, "alone 20"))).await;
    assert_eq!(answers, ["alone"; 8]);
    assert_eq!(agent.caller.text(&function, "count").await, "9");
    assert_eq!(agent.node.containers().len(), 1);
    agent.close().await;
}

#[tokio::test]
async fn a_frozen_container_serves_on_after_its_connection_was_closed() {
    let slots = SlotsConfig {
        freeze_after: Duration::from_millis(50),
        connection_idle_timeout: Duration::from_millis(50),
        ..SlotsConfig::for_node(1024, 2)
    };
    let agent = Agent::with(slots, Limits::default()).await;
    let function = function();
    for number in 1..=3 {
        assert_eq!(agent.caller.text(&function, "count").await, number.to_string());
        let file = freezer_file(&agent.node.containers()[0]);
        eventually("the idle container is frozen", async || is_frozen(&file)).await;
    }
    agent.close().await;
}

#[tokio::test]
async fn an_idle_container_is_removed_in_time() {
    let agent = Agent::start().await;
    let spec = FunctionSpec { idle_timeout: Duration::from_secs(1), ..spec(&image("function"), "phony") };
    let function = Arc::new(Function::new(spec));
    assert_eq!(agent.caller.text(&function, "count").await, "1");
    eventually("the idle container is gone", async || agent.node.containers().is_empty()).await;
    assert_eq!(agent.caller.text(&function, "count").await, "1");
    agent.close().await;
}

#[tokio::test]
async fn both_outputs_are_the_calls_log_up_to_its_limit() {
    let mut agent = Agent::start().await;
    let function = function();
    assert_eq!(agent.caller.text(&function, "complain of woe").await, "ok");
    agent.caller.logged("of woe").await;
    assert_eq!(agent.caller.text(&function, "print 3000000").await, "ok");
    agent.caller.logged("\n-----max log size 1048576 bytes exceeded, truncating log-----\n").await;
    assert_eq!(agent.caller.text(&function, "count").await, "3");
    agent.close().await;
}
