//! What Kiln tells of calls that ended, and of those that would come.

use reqwest::{Method, Response};
use serde_json::{Value, json};

use super::images::example;
use super::{Kiln, Node, eventually};

fn call_id(answer: &Response) -> String {
    answer.headers()["fn-call-id"].to_str().unwrap().to_owned()
}

/// What became of a call, when its record is there.
async fn why(kiln: &Kiln<'_>, call: &str) -> Value {
    eventually("the call has its record", async || {
        let path = format!("{}/kiln/v1/calls/{call}/why", kiln.url);
        kiln.client.get(path).send().await.unwrap().status().is_success()
    })
    .await;
    serde_json::from_str(&kiln.cli(&format!("why {call} --output json"))).unwrap()
}

#[tokio::test]
async fn why_tells_the_truth_of_cold_warm_and_refused_calls() {
    let node = Node::with_memory_mib(128);
    let kiln = node.start_with(&["--server-timing", "--wait-seconds", "0"]);
    let app = kiln.create_app("whys").await;
    let hello = kiln.create_function(&app, "hello", &example("hello"), json!({})).await;
    let node_id = std::fs::read_to_string(node.home.path().join("data/node-id")).unwrap();

    let before: Value = serde_json::from_str(&kiln.cli("why --function whys/hello --output json")).unwrap();
    assert_eq!((&before["reason"], &before["node"]), (&json!("room_home"), &json!(node_id.trim())));

    let cold = kiln.invoke(&hello, "").await;
    let timing = cold.headers()["server-timing"].to_str().unwrap().to_owned();
    assert!(timing.contains(", cold, total;dur="), "{timing}");
    let told = why(&kiln, &call_id(&cold)).await;
    let (story, times) = (&told["story"], &told["story"]["times"]);
    assert_eq!((&told["function"], &told["call"]["cold"]), (&json!("whys/hello"), &json!(true)));
    assert_eq!(story["node"], json!(node_id.trim()));
    let placement = &story["placement"];
    assert_eq!((&placement["balancer"], &placement["reason"]), (&json!("local"), &json!("room_home")));
    assert_eq!(
        (&placement["tries"], &placement["waits"], &placement["asked"]),
        (&json!(1), &json!(0), &json!(1))
    );
    let micros = |name: &str| times[name].as_u64().unwrap();
    assert!(micros("start_micros") > 1000 && micros("run_micros") > 0, "{times}");
    let parts = micros("queue_micros") + micros("start_micros") + micros("run_micros");
    assert!(micros("node_micros") >= parts, "{times}");
    let text = kiln.cli(&format!("why {}", call_id(&cold)));
    assert!(text.contains("success, cold") && text.contains("room_home: room for a container"), "{text}");

    eventually("the balancer knows of the warm container", async || {
        let now = kiln.api(Method::GET, &format!("/kiln/v1/fns/{hello}/why"), json!({})).await;
        now["candidates"][0]["idle"] == json!(1) && now["reason"] == json!("warm_home")
    })
    .await;
    let warm = kiln.invoke(&hello, "").await;
    let timing = warm.headers()["server-timing"].to_str().unwrap().to_owned();
    assert!(timing.contains("start;dur=0.000") && !timing.contains("cold"), "{timing}");
    let told = why(&kiln, &call_id(&warm)).await;
    assert_eq!(told["story"]["placement"]["reason"], json!("warm_home"));
    assert_eq!((&told["story"]["times"]["start_micros"], &told["call"]["cold"]), (&json!(0), &Value::Null));

    // No node took these: the balancer tells of them.
    let large = kiln.create_function(&app, "large", &example("hello"), json!({ "memory": 4096 })).await;
    let refused = kiln.invoke(&large, "").await;
    assert_eq!(refused.status(), 400);
    let told = why(&kiln, &call_id(&refused)).await;
    assert_eq!((&told["call"]["status"], told["story"].get("node")), (&json!("error"), None));
    assert_eq!(
        told["story"]["candidates"][0]["against"],
        json!(["it is smaller than one container of the function"])
    );
    let listed = kiln.cli("list calls whys large");
    assert!(listed.contains("Requested CPU/Memory cannot be allocated"), "{listed}");
    let now = kiln.cli("why --function whys/large");
    assert!(now.contains("nowhere: no node is large enough") && now.contains("it is smaller than"), "{now}");

    let one = json!({ "annotations": { "kiln.dev/concurrency-max": 1 } });
    let slow = kiln.create_function(&app, "slow", &example("slow"), one).await;
    let runs = async {
        kiln.runs(1).await;
        let refused = kiln.invoke(&slow, "").await;
        assert_eq!(refused.status(), 503);
        let told = why(&kiln, &call_id(&refused)).await;
        let error = told["call"]["error"].as_str().unwrap();
        assert!(error.ends_with("the function's concurrency limit is reached"), "{error}");
        let now = kiln.api(Method::GET, &format!("/kiln/v1/fns/{slow}/why"), json!({})).await;
        let told = (&now["waits_for"], &now["calls"], &now["calls_max"]);
        assert_eq!(told, (&json!("concurrency"), &json!(1), &json!(1)));
    };
    let call = kiln.invoke(&slow, "1000s");
    tokio::select! {
        answer = call => panic!("it ended: {answer:?}"),
        () = runs => {}
    }
    node.home.fails(1, &format!("why 01KB3S6Y7XNG8G00RZJ0000001 --api-url {}", kiln.url));
}
