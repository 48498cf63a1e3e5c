//! What clients get from functions that fail.

use reqwest::Method;
use serde_json::{Value, json};

use super::images::example;
use super::{Kiln, Node, eventually};

/// Status and error of a call's record.
async fn record(kiln: &Kiln<'_>, function: &str, call: &str) -> (String, String) {
    let mut found = None;
    eventually("the call has its record", async || {
        let calls = kiln.api(Method::GET, &format!("/v2/fns/{function}/calls"), json!({})).await;
        let calls = calls["items"].as_array().unwrap();
        found = calls.iter().find(|known| known["id"] == call).cloned();
        found.is_some()
    })
    .await;
    let text = |name: &str| found.as_ref().unwrap()[name].as_str().unwrap_or_default().to_owned();
    (text("status"), text("error"))
}

#[tokio::test]
async fn a_function_that_fails_is_reported_and_the_next_call_works() {
    let node = Node::with_memory_mib(64);
    let kiln = node.start();
    let app = kiln.create_app("failures").await;
    // Short, for the way that hangs; but long enough for the others on a busy machine.
    let function = kiln.create_function(&app, "crash", &example("crash"), json!({ "timeout": 3 })).await;
    let out_of_memory =
        "container out of memory, you may want to raise fn.memory for this function (default: 128MB)";
    for (way, status, message, recorded) in [
        ("error", 502, "function failed", "error"),
        ("panic", 502, "function failed", "error"),
        ("abort", 502, "error receiving function response", "error"),
        ("exit 3", 502, "error receiving function response", "error"),
        ("memory", 502, out_of_memory, "error"),
        ("hang", 504, "Timed out", "timeout"),
    ] {
        let failed = kiln.invoke(&function, way).await;
        assert_eq!(failed.status(), status, "{way}");
        assert_eq!(failed.headers()["content-type"], "application/json; charset=utf-8", "{way}");
        let call = failed.headers()["fn-call-id"].to_str().unwrap().to_owned();
        assert_eq!(failed.json::<Value>().await.unwrap(), json!({ "message": message }), "{way}");
        let (status, error) = record(&kiln, &function, &call).await;
        assert!(status == recorded && error.starts_with(message), "{way}: {status} {error}");
        assert_eq!(kiln.invoke(&function, "").await.text().await.unwrap(), "still here\n", "after {way}");
    }

    // The head of this answer was out: what is missing must show as missing.
    let cut = kiln.invoke(&function, "cut").await;
    assert_eq!(cut.status(), 200);
    let call = cut.headers()["fn-call-id"].to_str().unwrap().to_owned();
    let body = cut.bytes().await;
    assert!(body.is_err(), "{body:?}");
    assert_eq!(record(&kiln, &function, &call).await.0, "error");
    assert_eq!(kiln.invoke(&function, "").await.text().await.unwrap(), "still here\n");
    kiln.stop();
}
