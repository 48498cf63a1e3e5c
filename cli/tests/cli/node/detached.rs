//! Detached calls: accepted when they are safe, run when there is room, never lost.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use reqwest::{Method, Response};
use serde_json::{Value, json};

use super::images::example;
use super::{Kiln, Node, eventually};

async fn detach(kiln: &Kiln<'_>, function: &str, body: &str, lines: &[(&str, &str)]) -> Response {
    let call = kiln.client.post(format!("{}/invoke/{function}", kiln.url));
    let call = call.header("Fn-Invoke-Type", "detached").body(body.to_owned());
    lines.iter().fold(call, |call, (name, value)| call.header(*name, *value)).send().await.unwrap()
}

fn call_id(answer: &Response) -> String {
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
    let busy = async { kiln.invoke(&slow, "1500ms").await.status().as_u16() };
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
async fn accepted_calls_outlive_a_kiln_that_is_killed() {
    let node = Node::with_memory_mib(80);
    let kiln = node.start();
    let app = kiln.create_app("lives").await;
    let slow = kiln.create_function(&app, "slow", &example("slow"), json!({ "memory": 64 })).await;
    let answers = join_all((0..6).map(|_| detach(&kiln, &slow, "300ms", &[]))).await;
    let ids: BTreeSet<String> = answers.iter().map(call_id).collect();
    assert!(answers.iter().all(|answer| answer.status() == 202));
    kiln.runs(1).await;
    kiln.process.signal(Signal::SIGKILL);

    let second = node.start();
    eventually("every accepted call has run", async || {
        ended(&second, &slow, "success").await.is_superset(&ids)
    })
    .await;
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
