//! Detached calls: accepted when they are safe, run when there is room, never lost.

use std::collections::BTreeSet;
use std::future::ready;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use futures_util::future::join_all;
use kiln_testkit::postgres;
use reqwest::{Method, Response};
use serde_json::{Value, json};

use super::images::example;
use super::{Kiln, Node, eventually};

pub(super) async fn detach(kiln: &Kiln<'_>, function: &str, body: &str, lines: &[(&str, &str)]) -> Response {
    let call = kiln.client.post(format!("{}/invoke/{function}", kiln.url));
    let call = call.header("Fn-Invoke-Type", "detached").body(body.to_owned());
    lines.iter().fold(call, |call, (name, value)| call.header(*name, *value)).send().await.unwrap()
}

pub(super) fn call_id(answer: &Response) -> String {
    answer.headers()["fn-call-id"].to_str().unwrap().to_owned()
}

/// The calls of a function that ended so.
async fn ended(kiln: &Kiln<'_>, function: &str, status: &str) -> BTreeSet<String> {
    let calls = kiln.api(Method::GET, &format!("/v2/fns/{function}/calls?per_page=100"), json!({})).await;
    let calls = calls["items"].as_array().unwrap().iter();
    let calls = calls.filter(|call| call["status"] == json!(status));
    calls.map(|call| call["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_detached_call_is_accepted_before_it_runs_and_runs_when_there_is_room() {
    let node = Node::with_memory_mib(80);
    let kiln = node.start();
    let app = kiln.create_app("later").await;
    let slow = kiln.create_function(&app, "slow", &example("slow"), json!({ "memory": 64 })).await;
    // The one container that there is room for is busy.
    let busy = async { kiln.invoke(&slow, "4s").await.status().as_u16() };
    let accepted = async {
        kiln.runs(1).await;
        let answers = join_all((0..3).map(|_| detach(&kiln, &slow, "1ms", &[]))).await;
        assert!(ended(&kiln, &slow, "success").await.is_empty());
        answers
    };
    let (status, answers) = tokio::join!(busy, accepted);
    assert_eq!(status, 200);
    let mut ids = BTreeSet::new();
    for answer in answers {
        assert_eq!(answer.status().as_u16(), 202);
        ids.insert(call_id(&answer));
        assert_eq!(answer.text().await.unwrap(), "");
    }
    eventually("all have run", async || ended(&kiln, &slow, "success").await.is_superset(&ids)).await;
    assert_eq!(ids.len(), 3);
    kiln.stop();
}

#[tokio::test]
async fn detached_calls_keep_to_their_functions_limit() {
    let node = Node::with_memory_mib(256);
    let kiln = node.start();
    let app = kiln.create_app("limit").await;
    let one = json!({ "memory": 64, "annotations": { "kiln.dev/concurrency-max": 1 } });
    let slow = kiln.create_function(&app, "slow", &example("slow"), one).await;
    let free = kiln.create_function(&app, "free", &example("slow"), json!({ "memory": 64 })).await;
    let answers = join_all((0..4).map(|_| detach(&kiln, &slow, "200ms", &[]))).await;
    assert!(answers.iter().all(|answer| answer.status() == 202));
    let other = detach(&kiln, &free, "1ms", &[]).await;
    assert_eq!(kiln.invoke(&slow, "1ms").await.status(), 200, "a caller gets a turn");
    becomes(&kiln, &free, &call_id(&other), "success").await;
    eventually("all have run", async || ended(&kiln, &slow, "success").await.len() == 5).await;
    let calls = kiln.api(Method::GET, &format!("/v2/fns/{slow}/calls"), json!({})).await;
    let time = |call: &Value, name: &str| call[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let calls = calls["items"].as_array().unwrap().iter();
    let mut ran: Vec<_> = calls.map(|call| (time(call, "started_at"), time(call, "completed_at"))).collect();
    ran.sort();
    assert!(ran.windows(2).all(|pair| pair[0].1 <= pair[1].0), "they overlap: {ran:?}");
    kiln.stop();
}

#[tokio::test]
async fn accepted_calls_outlive_a_kiln_that_is_killed() {
    let node = Node::with_memory_mib(80);
    let kiln = node.start();
    let app = kiln.create_app("lives").await;
    let slow = kiln.create_function(&app, "slow", &example("slow"), json!({ "memory": 64 })).await;
    let answers = join_all((0..6).map(|_| detach(&kiln, &slow, "300ms", &[]))).await;
    let ids: BTreeSet<String> = answers.iter().map(call_id).collect();
    assert!(answers.iter().all(|answer| answer.status() == 202));
    kiln.runs(1).await;
    kiln.kill();

    let second = node.start();
    // The records of what ended in the last moment are lost with the first Kiln; the queue has lost nothing.
    for id in &ids {
        let path = format!("/kiln/v1/queue/calls/{id}");
        eventually("every accepted call has run", async || {
            second.api(Method::GET, &path, json!({})).await["state"] == json!("done")
        })
        .await;
    }
    second.stop();
}

#[tokio::test]
async fn a_caller_may_ask_for_a_delay_and_for_one_call_of_many_tries() {
    let node = Node::with_memory_mib(128);
    let kiln = node.start();
    let app = kiln.create_app("asks").await;
    let hello = kiln.create_function(&app, "hello", &example("hello"), json!({})).await;
    let once = detach(&kiln, &hello, "", &[("Idempotency-Key", "order-7")]).await;
    let again = detach(&kiln, &hello, "", &[("Idempotency-Key", "order-7")]).await;
    assert_eq!((once.status(), again.status()), (202.try_into().unwrap(), 202.try_into().unwrap()));
    assert_eq!(call_id(&once), call_id(&again));
    let late = detach(&kiln, &hello, "", &[("Kiln-Delay", "1h")]).await;
    assert_eq!(late.status(), 202);
    eventually("the first has run", async || {
        ended(&kiln, &hello, "success").await == BTreeSet::from([call_id(&once)])
    })
    .await;
    let refused = detach(&kiln, &hello, "", &[("Kiln-Priority", "9")]).await;
    assert_eq!(refused.status(), 400);
    let told: Value = refused.json().await.unwrap();
    assert_eq!(told["message"], json!("Invalid header Kiln-Priority, it must be 0, 1 or 2"));
    kiln.stop();
}

/// The call as `GET /v2/fns/{fn}/calls/{id}` shows it.
async fn shown(kiln: &Kiln<'_>, function: &str, call: &str) -> Value {
    kiln.api(Method::GET, &format!("/v2/fns/{function}/calls/{call}"), json!({})).await
}

async fn becomes(kiln: &Kiln<'_>, function: &str, call: &str, status: &str) -> Value {
    let is_so = async || shown(kiln, function, call).await["status"] == json!(status);
    eventually(&format!("the call is {status}"), is_so).await;
    shown(kiln, function, call).await
}

fn retry(attempts_max: u32) -> Value {
    json!({ "annotations": { "kiln.dev/retry": { "attempts_max": attempts_max, "backoff_ms": 10 } } })
}

#[tokio::test]
async fn a_call_that_keeps_failing_is_kept_as_dead_and_can_be_put_back() {
    let node = Node::with_memory_mib(128);
    let kiln = node.start();
    let app = kiln.create_app("fails").await;
    let crash = kiln.create_function(&app, "crash", &example("crash"), retry(2)).await;
    let id = call_id(&detach(&kiln, &crash, "error", &[]).await);
    let dead = becomes(&kiln, &crash, &id, "dead").await;
    let call: Value = serde_json::from_str(&kiln.cli(&format!("queue inspect {id} --output json"))).unwrap();
    assert_eq!(
        (&call["attempts"], &call["state"], &call["function"]),
        (&json!(2), &json!("dead"), &json!("fails/crash"))
    );
    assert_eq!(call["last_error"], dead["error"]);
    assert!(call["last_error"].as_str().unwrap().len() > 5, "{call}");
    assert!(kiln.cli("queue status").contains("fails/crash"));
    assert!(kiln.cli("queue list --state dead --function fails/crash").contains(&id));

    // What the call failed of is mended, and it is put back.
    let hello = json!({ "image": example("hello") });
    kiln.api(Method::PUT, &format!("/v2/fns/{crash}"), hello).await;
    eventually("the new image is known", async || {
        kiln.invoke(&crash, "x").await.text().await.unwrap().starts_with("Hello")
    })
    .await;
    assert_eq!(kiln.cli("queue redrive --function fails/crash"), "1 call is queued again.\n");
    let done = becomes(&kiln, &crash, &id, "success").await;
    assert_eq!(done.get("error"), None);
    // Its record says so, too, when it has come.
    eventually("the last attempt is the record", async || {
        ended(&kiln, &crash, "success").await.contains(&id)
    })
    .await;
    kiln.stop();
}

#[tokio::test]
async fn a_call_that_waits_can_be_cancelled_and_one_that_ended_cannot() {
    let node = Node::with_memory_mib(128);
    let kiln = node.start();
    let app = kiln.create_app("stops").await;
    let hello = kiln.create_function(&app, "hello", &example("hello"), json!({})).await;
    let said = kiln.cli("invoke stops hello --detach --delay 1h");
    let late = said.trim().strip_prefix("Call ID: ").unwrap().to_owned();
    assert_eq!(shown(&kiln, &hello, &late).await["status"], json!("delayed"));
    assert_eq!(kiln.cli(&format!("queue cancel {late}")), format!("{late} is cancelled.\n"));
    assert_eq!(shown(&kiln, &hello, &late).await["status"], json!("cancelled"));
    assert!(kiln.cli(&format!("get call stops hello {late}")).contains("Status: cancelled"));

    let done = call_id(&detach(&kiln, &hello, "", &[]).await);
    becomes(&kiln, &hello, &done, "success").await;
    let refused =
        kiln.client.delete(format!("{}/kiln/v1/queue/calls/{done}", kiln.url)).send().await.unwrap();
    assert_eq!(refused.status().as_u16(), 409);
    kiln.stop();
}

#[tokio::test]
async fn higher_priorities_go_first() {
    let node = Node::with_memory_mib(80);
    // Calls that a node takes together begin in any order, so it takes one at a time.
    let kiln = node.start_with(&["--queued-calls-max", "1"]);
    let app = kiln.create_app("order").await;
    let slow = kiln.create_function(&app, "slow", &example("slow"), json!({ "memory": 64 })).await;
    // All become due while a caller waits for the one container: nothing is taken from the queue then.
    let busy = async { kiln.invoke(&slow, "8s").await.status() };
    let waits = async {
        kiln.runs(1).await;
        kiln.invoke(&slow, "1ms").await.status()
    };
    let queued = async {
        kiln.runs(1).await;
        eventually("a caller waits", async || kiln.metric("kiln_calls_waiting").await >= 1.0).await;
        let mut ids = Vec::new();
        for priority in ["0", "1", "2"] {
            let lines = [("Kiln-Priority", priority), ("Kiln-Delay", "2")];
            ids.push(call_id(&detach(&kiln, &slow, "200ms", &lines).await));
        }
        ids
    };
    let (first, second, ids) = tokio::join!(busy, waits, queued);
    assert_eq!((first.as_u16(), second.as_u16()), (200, 200));
    let mut started = Vec::new();
    for id in &ids {
        // Until its record is there, a call shows when a node took it from the queue.
        eventually("its record is there", async || ended(&kiln, &slow, "success").await.contains(id)).await;
        let call = shown(&kiln, &slow, id).await;
        started.push((call["started_at"].as_str().unwrap().to_owned(), id));
    }
    started.sort();
    let order: Vec<&String> = started.into_iter().map(|(_, id)| id).collect();
    assert_eq!(order, ids.iter().rev().collect::<Vec<_>>());
    kiln.stop();
}

/// Takes POSTs, refuses the first one, and keeps their bodies.
async fn receiver() -> (String, Arc<Mutex<Vec<Value>>>) {
    let kept: Arc<Mutex<Vec<Value>>> = Arc::default();
    let keep = Arc::clone(&kept);
    let refused = AtomicBool::new(false);
    let take = move |Json(body): Json<Value>| {
        let is_first = !refused.swap(true, Ordering::SeqCst);
        if !is_first {
            keep.lock().unwrap().push(body);
        }
        ready(if is_first { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::NO_CONTENT })
    };
    let take = Arc::new(take);
    let router = Router::new().route("/ended", post(move |body: Json<Value>| take(body)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/ended", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, kept)
}

#[tokio::test]
async fn destinations_hear_how_calls_ended() {
    let (url, heard) = receiver().await;
    let node = Node::with_memory_mib(256);
    let kiln = node.start();
    let app = kiln.create_app("tells").await;
    let echo = kiln.create_function(&app, "echo", &example("echo"), json!({})).await;
    let crash = json!({ "annotations": {
        "kiln.dev/retry": { "attempts_max": 1 }, "kiln.dev/on-success": "tells/echo", "kiln.dev/on-failure": url,
    }});
    let crash = kiln.create_function(&app, "crash", &example("crash"), crash).await;
    let good = call_id(&detach(&kiln, &crash, "", &[]).await);
    let bad = call_id(&detach(&kiln, &crash, "error", &[]).await);
    eventually("the function was told of the success", async || {
        !ended(&kiln, &echo, "success").await.is_empty()
    })
    .await;
    becomes(&kiln, &crash, &good, "success").await;
    eventually("the URL was told of the failure, after it had refused once", async || {
        !heard.lock().unwrap().is_empty()
    })
    .await;
    let told = heard.lock().unwrap()[0].clone();
    assert_eq!(
        (&told["call_id"], &told["status"], &told["attempts"]),
        (&json!(bad), &json!("dead"), &json!(1))
    );
    assert_eq!((&told["app"], &told["function"]), (&json!("tells"), &json!("crash")));
    assert_eq!(told["error"], shown(&kiln, &crash, &bad).await["error"]);
    kiln.stop();
}

#[tokio::test]
async fn a_call_that_was_not_started_in_time_is_dead_and_its_destination_hears_of_it() {
    let (url, heard) = receiver().await;
    let node = Node::with_memory_mib(128);
    let kiln = node.start();
    let app = kiln.create_app("late").await;
    let annotations = json!({ "annotations": { "kiln.dev/on-failure": url } });
    let hello = kiln.create_function(&app, "hello", &example("hello"), annotations).await;
    let late = detach(&kiln, &hello, "", &[("Kiln-Delay", "4"), ("Kiln-Start-Within", "1")]).await;
    let id = call_id(&late);
    let call = kiln.api(Method::GET, &format!("/kiln/v1/queue/calls/{id}"), json!({})).await;
    let deadline: jiff::Timestamp = call["deadline_at"].as_str().unwrap().parse().unwrap();
    kiln.stop();
    eventually("its deadline is over", async || jiff::Timestamp::now() > deadline).await;
    // Nobody settles it: the queue lets it die by itself.
    let kiln = node.start();
    let dead = becomes(&kiln, &hello, &id, "dead").await;
    assert_eq!(dead["error"], json!("the deadline passed before it started"));
    eventually("the URL was told", async || !heard.lock().unwrap().is_empty()).await;
    let told = heard.lock().unwrap()[0].clone();
    assert_eq!(
        (&told["call_id"], &told["attempts"], &told["error"]),
        (&json!(id), &json!(0), &dead["error"])
    );
    kiln.stop();
}

#[tokio::test]
async fn without_the_queue_callers_who_wait_are_served_and_others_are_told() {
    let mut server = postgres::Server::start().await;
    let url = server.address.url("postgres");
    let node = Node::with_memory_mib(128);
    let kiln = node.start_with(&["--queue-url", &url]);
    let app = kiln.create_app("away").await;
    let hello = kiln.create_function(&app, "hello", &example("hello"), json!({})).await;
    let first = call_id(&detach(&kiln, &hello, "", &[]).await);
    becomes(&kiln, &hello, &first, "success").await;
    server.stop();
    eventually("detached calls are refused", async || detach(&kiln, &hello, "", &[]).await.status() == 503)
        .await;
    let refused = detach(&kiln, &hello, "", &[]).await;
    assert!(refused.headers().contains_key("retry-after"));
    let told: Value = refused.json().await.unwrap();
    assert!(
        told["message"]
            .as_str()
            .unwrap()
            .starts_with("The call was not accepted: the queue cannot be reached"),
        "{told}"
    );
    assert_eq!(kiln.invoke(&hello, "Ada").await.status(), 200);
    assert_eq!(shown(&kiln, &hello, &first).await["status"], json!("success"));
    let queue = kiln.client.get(format!("{}/kiln/v1/queue", kiln.url)).send().await.unwrap();
    assert_eq!(queue.status(), 503);
    server.begin().await;
    let mut again = String::new();
    eventually("detached calls are taken again", async || {
        let answer = detach(&kiln, &hello, "", &[]).await;
        let is_taken = answer.status() == 202;
        if is_taken {
            again = call_id(&answer);
        }
        is_taken
    })
    .await;
    becomes(&kiln, &hello, &again, "success").await;
    kiln.stop();
}

#[tokio::test]
async fn without_any_configuration_the_queue_is_a_file_beside_the_catalog() {
    let node = Node::with_memory_mib(128);
    let kiln = node.start();
    let app = kiln.create_app("plain").await;
    let hello = kiln.create_function(&app, "hello", &example("hello"), json!({})).await;
    let late = detach(&kiln, &hello, "", &[("Kiln-Delay", "1h")]).await;
    assert_eq!(late.status(), 202);
    let file = std::fs::read(node.home.path().join("data/queue.db")).unwrap();
    assert!(file.starts_with(b"SQLite format 3"));
    eventually("the metrics show it", async || {
        kiln.metric("kiln_queue_depth{state=\"delayed\"}").await >= 1.0
    })
    .await;
    assert!(kiln.metric("kiln_queue_enqueued_total{outcome=\"new\"}").await >= 1.0);
    kiln.stop();
}
