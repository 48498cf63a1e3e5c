//! Schedules: each tick is called for once, over a restart too.

use std::collections::BTreeSet;

use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};

use super::images::example;
use super::{Kiln, Node, eventually};

/// The calls of a function that ended well: when each was made.
async fn calls(kiln: &Kiln<'_>, function: &str) -> Vec<Value> {
    let calls = kiln.api(Method::GET, &format!("/v2/fns/{function}/calls?per_page=100"), json!({})).await;
    let calls = calls["items"].as_array().unwrap().iter();
    calls.filter(|call| call["status"] == json!("success")).cloned().collect()
}

#[tokio::test]
async fn each_tick_is_called_for_once_and_a_restart_loses_none() {
    let node = Node::with_memory_mib(128);
    let kiln = node.start();
    let app = kiln.create_app("clock").await;
    let hello = kiln.create_function(&app, "hello", &example("hello"), json!({})).await;
    let trigger = json!({
        "app_id": app, "fn_id": hello, "name": "each-second", "type": "schedule", "source": "* * * * * *",
    });
    let trigger = kiln.api(Method::POST, "/v2/triggers", trigger).await;
    let made: Timestamp = trigger["updated_at"].as_str().unwrap().parse().unwrap();
    eventually("some ticks were called for", async || calls(&kiln, &hello).await.len() >= 3).await;
    kiln.kill();

    let second = node.start();
    let path = format!("/v2/triggers/{}", trigger["id"].as_str().unwrap());
    let before = calls(&second, &hello).await.len();
    eventually("it goes on", async || calls(&second, &hello).await.len() >= before + 4).await;
    let gone = second.client.delete(format!("{}{path}", second.url)).send().await.unwrap();
    assert_eq!(gone.status(), 204);
    let deleted = Timestamp::now();
    let ticks = usize::try_from(deleted.as_second() - made.as_second()).unwrap();
    // The last tick may be on its way still, or have come after the trigger was read for the last time.
    let done = async || {
        // Not the records: those of what ended in the last moment are lost with the first Kiln.
        let path = format!("/kiln/v1/queue/calls?function={hello}&state=done&per_page=500");
        second.api(Method::GET, &path, json!({})).await["items"].as_array().unwrap().len()
    };
    eventually("every tick was called for", async || done().await >= ticks).await;
    let done = done().await;
    assert!(done <= ticks + 1, "{done} calls for {ticks} ticks");
    let ended = calls(&second, &hello).await;
    let ids: BTreeSet<_> = ended.iter().map(|call| call["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), ended.len());
    assert!(ended.iter().all(|call| call["trigger_id"] == trigger["id"]), "{ended:?}");
    second.stop();
}
