//! Calls over standard input and output into real containers (`spec/container-contract.md`, part B, as corrected by
//! `spec/corrections-2018.md`).

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use kiln_shared::body::BodyError;
use kiln_shared::call::{CallResponse, FailureKind};
use kiln_shared::function::{Format, Function, FunctionSpec};
use kiln_shared::record::CallStatus;
use serde_json::{Value, json};

use crate::agent::{Agent, header, trigger_request};
use crate::support::calls::{request, text_of};
use crate::support::{image, spec};

/// The formats whose containers serve many calls.
const HOT: [Format; 3] = [Format::Http, Format::Json, Format::Cloudevent];
const TIMEOUT: Duration = Duration::from_secs(30);
/// Of functions that hang: as short as it may be while their other calls still end in time on a busy machine.
const SHORT_TIMEOUT: Duration = Duration::from_secs(3);

impl Agent {
    /// Answers with how many calls the container has served, this one included.
    async fn count(&self, function: &Arc<Function>) -> String {
        let answer = self.caller.call(function, body_for(function, "count")).await.expect("an answer");
        let count = header(&answer.headers, "X-Count");
        let text = text_of(answer).await;
        assert!(count.is_none_or(|count| count == text), "{text}");
        text
    }
}

/// A function of the test program that serves this format.
fn function(format: Format, timeout: Duration) -> Arc<Function> {
    let mut spec = FunctionSpec { format, timeout, ..spec(&image("function"), "pipes") };
    for (name, value) in [("GREETING", "ahoy"), ("FN_MEMORY", "lots"), ("FN_DEADLINE", "never")] {
        spec.config.insert(name.to_owned(), value.to_owned());
    }
    Arc::new(Function::new(spec))
}

/// A command as the function's format takes it: events hold JSON.
fn body_for(function: &Arc<Function>, command: &str) -> Bytes {
    match function.spec.format {
        Format::Cloudevent => Bytes::from(json!(command).to_string()),
        _ => Bytes::from(command.to_owned()),
    }
}

/// `name=value` lines.
fn variables(text: &str) -> BTreeMap<&str, &str> {
    text.lines().map(|line| line.split_once('=').unwrap()).collect()
}

/// When a call with this deadline began.
fn start_of(deadline: &str, timeout: Duration) -> Timestamp {
    assert!(deadline.ends_with('Z') && deadline.len() == "2018-02-01T12:00:30.123Z".len(), "{deadline}");
    deadline.parse::<Timestamp>().unwrap() - timeout
}

/// That a call with this deadline began between these times. Deadlines are cut to milliseconds.
fn assert_began(deadline: &str, timeout: Duration, after: Timestamp, before: Timestamp) {
    let start = start_of(deadline, timeout);
    let millisecond = Duration::from_millis(1);
    assert!(after - millisecond <= start && start <= before, "{after} <= {start} <= {before}");
}

#[tokio::test]
async fn a_hot_container_of_each_format_serves_many_calls() {
    let mut agent = Agent::start().await;
    for format in HOT {
        let function = function(format, TIMEOUT);
        for number in 1..=3 {
            assert_eq!(agent.count(&function).await, number.to_string(), "{format:?}");
        }
        let answer = agent.caller.call(&function, body_for(&function, "a \"quoted\"\nline")).await.unwrap();
        assert_eq!(answer.status, 201, "{format:?}");
        assert_eq!(header(&answer.headers, "Content-Type").as_deref(), Some("text/plain"), "{format:?}");
        assert_eq!(text_of(answer).await, "a \"quoted\"\nline", "{format:?}");
        assert!(agent.caller.records(4).await.iter().all(|record| record.status == CallStatus::Success));
    }
    assert_eq!(agent.node.containers().len(), HOT.len());
    agent.close().await;
}

#[tokio::test]
async fn an_http_function_sees_the_clients_request_and_kilns_headers() {
    let agent = Agent::start().await;
    let function = function(Format::Http, TIMEOUT);
    let call = trigger_request(&function, body_for(&function, "request"));
    let (id, before) = (call.id, Timestamp::now());
    let answer = agent.caller.send(call).await.unwrap();
    let after = Timestamp::now();
    let seen = text_of(answer).await;
    let (head, body) = seen.split_once("\r\n\r\n").unwrap();
    let mut lines: Vec<&str> = head.lines().collect();
    let deadline = lines.iter().position(|line| line.starts_with("Fn_deadline: ")).unwrap();
    assert_began(lines.remove(deadline).split_once(": ").unwrap().1, TIMEOUT, before, after);
    assert_eq!(
        lines,
        [
            "PUT /t/tests/hello?x=1 HTTP/1.1",
            "Host: api.example.com",
            "Content-Length: 7",
            "Content-Type: text/plain",
            "X-Two: one",
            "X-Two: two",
            &format!("Fn_call_id: {id}"),
            "Fn_method: PUT",
            "Fn_request_url: http://api.example.com/t/tests/hello?x=1",
        ]
    );
    assert_eq!(body, "request");
    agent.close().await;
}

#[tokio::test]
async fn a_json_function_sees_the_call_as_an_object() {
    let agent = Agent::start().await;
    let function = function(Format::Json, TIMEOUT);
    let call = trigger_request(&function, body_for(&function, "request"));
    let (id, before) = (call.id, Timestamp::now());
    let answer = agent.caller.send(call).await.unwrap();
    let after = Timestamp::now();
    let seen = text_of(answer).await;
    assert!(seen.ends_with("}\n\n"), "{seen:?}");
    let mut seen: Value = serde_json::from_str(&seen).unwrap();
    assert_began(seen["deadline"].take().as_str().unwrap(), TIMEOUT, before, after);
    assert_eq!(
        seen,
        json!({
            "call_id": id.as_str(), "content_type": "text/plain", "type": "sync", "deadline": null, "body": "request",
            "protocol": {
                "type": "http", "method": "PUT", "request_url": "http://api.example.com/t/tests/hello?x=1",
                "headers": {
                    "Content-Length": ["7"], "Content-Type": ["text/plain"], "X-Two": ["one", "two"],
                    "Fn_call_id": ["forged"],
                },
            },
        })
    );
    agent.close().await;
}

#[tokio::test]
async fn a_cloudevent_function_sees_the_call_as_an_event_in_one_line() {
    let agent = Agent::start().await;
    let function = function(Format::Cloudevent, TIMEOUT);
    let call = trigger_request(&function, body_for(&function, "request"));
    let (id, before) = (call.id, Timestamp::now());
    let answer = agent.caller.send(call).await.unwrap();
    let after = Timestamp::now();
    let seen = text_of(answer).await;
    assert!(seen.trim_end_matches('\n').lines().count() == 1 && seen.ends_with("}\n"), "{seen:?}");
    let mut seen: Value = serde_json::from_str(&seen).unwrap();
    assert_began(seen["extensions"]["deadline"].take().as_str().unwrap(), TIMEOUT, before, after);
    assert_eq!(
        seen,
        json!({
            "cloudEventsVersion": "0.1", "eventID": id.as_str(), "eventType": "http", "eventTypeVersion": "",
            "source": "http://api.example.com/t/tests/hello?x=1", "eventTime": "0001-01-01T00:00:00.000Z",
            "schemaURL": "", "contentType": "text/plain", "data": "request",
            "extensions": {
                "deadline": null,
                "protocol": {
                    "type": "http", "method": "PUT", "request_url": "http://api.example.com/t/tests/hello?x=1",
                    "headers": {
                        "Content-Length": ["9"], "Content-Type": ["text/plain"], "X-Two": ["one", "two"],
                        "Fn_call_id": ["forged"],
                    },
                },
            },
        })
    );
    let bad = agent.caller.call(&function, "not json").await.unwrap_err();
    assert_eq!(bad.status, 400, "{bad:?}");
    assert_eq!(agent.count(&function).await, "2", "the container saw nothing of it");
    agent.close().await;
}

#[tokio::test]
async fn the_environment_of_hot_containers_holds_config_and_nothing_of_a_call() {
    let agent = Agent::start().await;
    for format in HOT {
        let function = function(format, TIMEOUT);
        let answer = agent.caller.call(&function, body_for(&function, "environment")).await.unwrap();
        let text = text_of(answer).await;
        let seen = variables(&text);
        let spec = &function.spec;
        for (name, value) in [
            ("FN_FORMAT", format.as_str()),
            ("FN_APP_NAME", "tests"),
            ("FN_PATH", "/invoke"),
            ("FN_MEMORY", "64"),
            ("FN_TYPE", "sync"),
            ("FN_FN_ID", spec.id.as_str()),
            ("FN_APP_ID", spec.app_id.as_str()),
            ("GREETING", "ahoy"),
            // A hot container has no deadline of its own, so the name is free for config.
            ("FN_DEADLINE", "never"),
        ] {
            assert_eq!(seen.get(name), Some(&value), "{name} of {format:?}");
        }
        for name in ["FN_LISTENER", "FN_CALL_ID", "FN_METHOD", "FN_REQUEST_URL"] {
            assert_eq!(seen.get(name), None, "{name} of {format:?}");
        }
    }
    agent.close().await;
}

#[tokio::test]
async fn a_default_container_knows_its_call_and_serves_no_other() {
    let mut agent = Agent::start().await;
    let function = function(Format::Default, TIMEOUT);
    let mut hosts = HashSet::new();
    for _ in 0..3 {
        let call = trigger_request(&function, Bytes::from_static(b"environment"));
        let (id, before) = (call.id, Timestamp::now());
        let answer = agent.caller.send(call).await.unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(header(&answer.headers, "Content-Type").as_deref(), Some("application/json"));
        let text = text_of(answer).await;
        let seen = variables(&text);
        for (name, value) in [
            ("FN_CALL_ID", id.as_str()),
            ("FN_METHOD", "PUT"),
            ("FN_REQUEST_URL", "http://api.example.com/t/tests/hello?x=1"),
            ("FN_PATH", "/hello"),
            ("FN_FORMAT", "default"),
            ("FN_MEMORY", "64"),
            ("FN_HEADER_Content-Type", "text/plain"),
            ("FN_HEADER_CONTENT_TYPE", "text/plain"),
            ("FN_HEADER_X-Two", "one, two"),
            ("FN_HEADER_X_TWO", "one, two"),
            ("FN_HEADER_Content-Length", "11"),
            ("GREETING", "ahoy"),
        ] {
            assert_eq!(seen.get(name), Some(&value), "{name}");
        }
        let [record] = agent.caller.records(1).await.try_into().unwrap();
        assert_eq!((record.status, record.cold), (CallStatus::Success, true));
        assert_began(seen["FN_DEADLINE"], TIMEOUT, before, record.started_at.unwrap());
        assert!(hosts.insert(seen["HOSTNAME"].to_owned()), "{hosts:?} served twice");
    }
    agent.close().await;
}

#[tokio::test]
async fn the_deadline_of_a_default_container_does_not_count_the_wait_for_room() {
    // Room for one of them at a time.
    let agent = Agent::with_memory_mib(64).await;
    let function = function(Format::Default, TIMEOUT);
    let slept = Duration::from_millis(500);
    let script = |command: &str| Bytes::from(command.to_owned());
    let began = Timestamp::now();
    let (first, second) = tokio::join!(
        agent.caller.text(&function, script(&format!("sleep {}", slept.as_millis()))),
        // Both are under way at once, in this order.
        agent.caller.text(&function, script("environment")),
    );
    assert_eq!(first, "ok");
    let start = start_of(variables(&second)["FN_DEADLINE"], TIMEOUT);
    assert!(
        start - slept >= began,
        "the container was made at {start}, its room was free after {began} + 500 ms"
    );
    agent.close().await;
}

#[tokio::test]
async fn a_default_container_reads_its_input_to_the_end_and_answers_meanwhile() {
    let agent = Agent::start().await;
    let spec = FunctionSpec { format: Format::Default, ..spec(&image("function"), "cat") };
    let function = Arc::new(Function::new(spec));
    let body = Bytes::from(vec![b'x'; 3 << 20]);
    let answer = agent.caller.call(&function, body.clone()).await.unwrap();
    assert_eq!(answer.body.collect(1 << 24).await.unwrap(), body);
    let mut get = request(&function, Bytes::new());
    get.method = http::Method::GET;
    assert_eq!(text_of(agent.caller.send(get).await.unwrap()).await, "");
    agent.close().await;
}

#[tokio::test]
async fn an_answer_may_come_in_pieces() {
    let agent = Agent::start().await;
    for format in HOT {
        let function = function(format, TIMEOUT);
        let answer = agent.caller.call(&function, body_for(&function, "slowly but whole")).await.unwrap();
        assert_eq!(text_of(answer).await, "but whole", "{format:?}");
        assert_eq!(agent.count(&function).await, "2", "{format:?}");
    }
    let http = function(Format::Http, TIMEOUT);
    assert_eq!(agent.caller.text(&http, "chunked möre").await, "möre");
    assert_eq!(agent.count(&http).await, "2");
    agent.close().await;
}

#[tokio::test]
async fn what_is_no_answer_fails_its_call_alone() {
    let mut agent = Agent::start().await;
    for format in HOT {
        let function = function(format, TIMEOUT);
        let failure = agent.caller.call(&function, body_for(&function, "garbage")).await.unwrap_err();
        assert_eq!(
            (failure.status, failure.kind),
            (502, FailureKind::InvalidResponse),
            "{format:?}: {failure:?}"
        );
        assert!(failure.message.contains("response from function err: "), "{failure}");
        assert_eq!(
            agent.count(&function).await,
            "1",
            "{format:?}: a container in an unknown state served again"
        );
        let statuses: Vec<_> = agent.caller.records(2).await.iter().map(|record| record.status).collect();
        assert_eq!(statuses, [CallStatus::Error, CallStatus::Success]);
    }
    agent.close().await;
}

#[tokio::test]
async fn what_follows_an_answer_is_given_to_nobody() {
    let agent = Agent::start().await;
    for format in HOT {
        let function = function(format, TIMEOUT);
        let answer = agent.caller.call(&function, body_for(&function, "twice over")).await.unwrap();
        assert_eq!(text_of(answer).await, "over", "{format:?}");
        assert_eq!(
            agent.count(&function).await,
            "1",
            "{format:?}: the next caller was served by the same container"
        );
    }
    agent.close().await;
}

#[tokio::test]
async fn a_container_that_ends_in_the_middle_of_an_answer_fails_its_call_alone() {
    let agent = Agent::start().await;
    for format in HOT.into_iter().chain([Format::Default]) {
        let function = function(format, TIMEOUT);
        match agent.caller.call(&function, body_for(&function, "cut 7")).await {
            // The head of the answer was out: its body must not end as if it were whole.
            Ok(CallResponse { body, .. }) => {
                let cut = body.collect(1 << 20).await;
                assert!(matches!(cut, Err(BodyError::Interrupted(_))), "{format:?}: {cut:?}");
                assert!(
                    matches!(format, Format::Http | Format::Default),
                    "{format:?} has no head of its own"
                );
            }
            Err(failure) => {
                assert_eq!(
                    (failure.status, failure.message.as_ref()),
                    (502, "container exit code 7"),
                    "{format:?}"
                );
            }
        }
        assert_eq!(agent.count(&function).await, "1", "{format:?}");
    }
    agent.close().await;
}

#[tokio::test]
async fn a_container_that_ends_without_an_answer_fails_its_call_at_once() {
    let mut agent = Agent::start().await;
    for format in HOT.into_iter().chain([Format::Default]) {
        let function = function(format, TIMEOUT);
        let out_of_memory =
            "container out of memory, you may want to raise fn.memory for this function (default: 128MB)";
        let mut ways = vec![("exit 7", "container exit code 7"), ("eat", out_of_memory)];
        if format != Format::Default {
            // A hot container that ends well has not answered either.
            ways.push(("exit 0", "container exit code 0"));
        }
        for (command, message) in ways {
            let failure = agent.caller.call(&function, body_for(&function, command)).await.unwrap_err();
            assert_eq!((failure.status, failure.message.as_ref()), (502, message), "{format:?}");
            assert_eq!(agent.caller.records(1).await[0].status, CallStatus::Error);
            assert_eq!(agent.count(&function).await, "1", "{format:?}");
            agent.caller.records(1).await;
        }
    }
    agent.close().await;
}

#[tokio::test]
async fn a_call_that_takes_too_long_fails_alone() {
    let agent = Agent::start().await;
    let hang = async |format: Format| {
        let function = function(format, SHORT_TIMEOUT);
        let failure = agent.caller.call(&function, body_for(&function, "hang")).await.unwrap_err();
        assert_eq!((failure.status, failure.message.as_ref()), (504, "Timed out"), "{format:?}");
        assert_eq!(agent.count(&function).await, "1", "{format:?}");
    };
    tokio::join!(hang(Format::Http), hang(Format::Json), hang(Format::Cloudevent), hang(Format::Default));
    agent.close().await;
}

#[tokio::test]
async fn what_a_function_writes_to_stderr_is_its_calls_log() {
    let mut agent = Agent::start().await;
    for format in HOT.into_iter().chain([Format::Default]) {
        let function = function(format, TIMEOUT);
        let word = format!("woe-of-{}", format.as_str());
        let answer = agent.caller.call(&function, body_for(&function, &format!("complain {word}"))).await;
        assert_eq!(text_of(answer.unwrap()).await, "ok");
        agent.caller.logged(&word).await;
    }
    agent.close().await;
}
