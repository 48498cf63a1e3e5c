//! How a Kiln ends, and what its next life finds.

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

use super::images::example;
use super::{Kiln, Node, eventually};

/// All that the API knows of apps, functions and triggers, less the addresses of their endpoints.
async fn metadata(kiln: &Kiln<'_>, app: &str) -> Vec<Value> {
    let mut known = Vec::new();
    for path in ["/v2/apps", &format!("/v2/fns?app_id={app}"), &format!("/v2/triggers?app_id={app}")] {
        let text = kiln.api(Method::GET, path, json!({})).await.to_string();
        known.push(serde_json::from_str(&text.replace(&kiln.url, "")).unwrap());
    }
    known
}

#[tokio::test]
async fn a_killed_kiln_leaves_nothing_that_its_next_life_does_not_clear_up() {
    const CALLS: usize = 3;
    let node = Node::with_memory_mib(64 * CALLS as u64);
    let kiln = node.start();
    let app = kiln.create_app("lives").await;
    let function =
        kiln.create_function(&app, "slow", &example("slow"), json!({ "config": { "A": "1" } })).await;
    let trigger =
        json!({ "app_id": app, "fn_id": function, "name": "slow", "type": "http", "source": "/slow" });
    kiln.api(Method::POST, "/v2/triggers", trigger).await;
    let before = metadata(&kiln, &app).await;

    // Dropped with the first Kiln: these calls never end.
    let calls = join_all((0..CALLS).map(async |_| {
        let call = kiln.client.post(format!("{}/invoke/{function}", kiln.url)).body("1000s").send();
        call.await.expect_err("its Kiln was killed")
    }));
    let killed = async {
        kiln.runs(CALLS).await;
        let left = node.function_containers();
        kiln.process.signal(Signal::SIGKILL);
        left
    };
    let (_, left) = tokio::join!(calls, killed);
    assert_eq!(left.len(), CALLS);
    kiln.kill();

    let second = node.start();
    // Any other Kiln of this machine may have begun to clear up after the dead one, and still be at it.
    eventually("the containers of the previous life are gone", async || {
        !node.function_containers().iter().any(|id| left.contains(id))
    })
    .await;
    assert_eq!(metadata(&second, &app).await, before);
    let answer = second.invoke(&function, "1ms").await;
    assert_eq!((answer.status().as_u16(), answer.text().await.unwrap().as_str()), (200, "slept 1ms\n"));
    second.stop();
}

#[tokio::test]
async fn a_kiln_that_is_stopped_lets_calls_end_and_takes_no_more() {
    let node = Node::with_memory_mib(64);
    let kiln = node.start();
    let app = kiln.create_app("stops").await;
    let function = kiln.create_function(&app, "slow", &example("slow"), json!({})).await;
    let call = async {
        let answer = kiln.invoke(&function, "2s").await;
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let stop = async {
        kiln.runs(1).await;
        kiln.process.signal(Signal::SIGTERM);
        eventually("no new client is served", async || {
            let client = reqwest::Client::builder().no_proxy().build().unwrap();
            client.get(format!("{}/version", kiln.url)).send().await.is_err()
        })
        .await;
    };
    let (answered, ()) = tokio::join!(call, stop);
    assert_eq!(answered, (200, "slept 2s\n".to_owned()));
    kiln.stop();
}

#[tokio::test]
async fn a_kiln_that_is_stopped_cuts_calls_that_outlast_its_grace() {
    let node = Node::with_memory_mib(64);
    let kiln = node.start_with(&["--grace-seconds", "1"]);
    let app = kiln.create_app("stops").await;
    let function = kiln.create_function(&app, "slow", &example("slow"), json!({})).await;
    let call = async {
        let call = kiln.client.post(format!("{}/invoke/{function}", kiln.url)).body("1000s").send().await;
        call.is_ok_and(|answer| answer.status() == 200)
    };
    let stop = async {
        kiln.runs(1).await;
        kiln.process.signal(Signal::SIGTERM);
    };
    let (succeeded, ()) = tokio::join!(call, stop);
    assert!(!succeeded);
    kiln.stop();
}
