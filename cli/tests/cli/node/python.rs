//! The official Python FDK (`fdk` of `PyPI`) on Kiln, deployed as its users do it.

use std::process::Command;

use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};

use super::python_image::python_image;
use super::{Kiln, Node};

/// Tells what it was given, counts its calls, and answers as the context says it may.
const FUNCTION: &str = r#"
import json

from fdk import response

calls = 0


def handler(ctx, data=None):
    global calls
    calls += 1
    body = data.getvalue().decode()
    if body == "raise":
        raise ValueError("asked to fail")
    if body == "late":
        raise TimeoutError("asked to be late")
    seen = {
        "body": body,
        "calls": calls,
        "call_id": ctx.CallID(),
        "deadline": ctx.Deadline(),
        "method": ctx.Method(),
        "url": ctx.RequestURL(),
        "headers": ctx.Headers(),
        "http_headers": ctx.HTTPHeaders(),
        "config": {name: ctx.Config().get(name) for name in ("GREETING", "FN_MEMORY", "FN_FORMAT", "FN_TYPE")},
        "app": [ctx.AppID(), ctx.AppName()],
        "function": [ctx.FnID(), ctx.FnName()],
    }
    headers = {"Content-Type": "application/json", "X-Pot": "tea"}
    return response.Response(ctx, response_data=json.dumps(seen), headers=headers, status_code=418)
"#;

/// A function that was built and deployed; its image goes when it is dropped.
struct Deployed {
    name: String,
    image: String,
    app_id: String,
    id: String,
}

impl Drop for Deployed {
    fn drop(&mut self) {
        Command::new("docker").args(["image", "rm", "--force", &self.image]).output().unwrap();
    }
}

fn deploy(kiln: &Kiln<'_>) -> Deployed {
    let base = python_image();
    let name = format!("kiln-fdk-test-{}", std::process::id());
    let home = &kiln.node.home;
    home.write("f/func.py", FUNCTION);
    let entry = json!([base.python, "/python/bin/fdk", "/function/func.py", "handler"]);
    home.write(
        "f/Dockerfile",
        &format!("FROM {}\nCOPY func.py /function/\nENTRYPOINT {entry}\n", base.reference),
    );
    home.write(
        "f/func.yaml",
        &format!(
            "schema_version: 20180708\nname: {name}\nversion: 0.0.1\nruntime: docker\nmemory: 128\n\
             config:\n  GREETING: ahoy\ntriggers:\n- name: tea\n  type: http\n  source: /tea/pot\n"
        ),
    );
    let image = format!("{name}:0.0.1");
    let mut deployed = Deployed { name, image, app_id: String::new(), id: String::new() };
    kiln.cli("deploy --app fdk --create-app --local --no-bump --dir f");
    let function: Value =
        serde_json::from_str(&kiln.cli(&format!("inspect function fdk {} --output json", deployed.name)))
            .unwrap();
    function["app_id"].as_str().unwrap().clone_into(&mut deployed.app_id);
    function["id"].as_str().unwrap().clone_into(&mut deployed.id);
    deployed
}

#[tokio::test]
async fn a_function_of_the_official_python_fdk_is_called_both_ways_in_one_container() {
    let node = Node::with_memory_mib(256);
    let kiln = node.start();
    let function = deploy(&kiln);

    // As an invocation: the client's headers as they are, and the function's as it set them.
    let url = format!("{}/invoke/{}", kiln.url, function.id);
    let request = kiln.client.post(&url).header("X-Client", "me").header("Content-Type", "text/plain");
    let answer = request.body("hello").send().await.unwrap();
    let headers = answer.headers().clone();
    assert_eq!(answer.status(), 200, "a function's status is for triggers alone");
    assert_eq!([&headers["content-type"], &headers["x-pot"]], ["application/json", "tea"]);
    assert_eq!(headers["fn-fdk-version"], "fdk-python/0.1.128");
    let seen: Value = answer.json().await.unwrap();
    assert_eq!((&seen["body"], &seen["calls"]), (&json!("hello"), &json!(1)));
    assert_eq!(seen["call_id"], headers["fn-call-id"].to_str().unwrap());
    assert_eq!(
        (&seen["headers"]["x-client"], &seen["headers"]["content-type"]),
        (&json!("me"), &json!("text/plain"))
    );
    assert_eq!(
        (&seen["method"], &seen["url"], &seen["http_headers"]),
        (&json!(null), &json!(null), &json!({}))
    );
    assert_eq!(
        seen["config"],
        json!({ "GREETING": "ahoy", "FN_MEMORY": "128", "FN_FORMAT": "http-stream", "FN_TYPE": "sync" })
    );
    assert_eq!(seen["app"], json!([function.app_id, "fdk"]));
    assert_eq!(seen["function"], json!([function.id, function.name]));
    let deadline: Timestamp = seen["deadline"].as_str().unwrap().parse().unwrap();
    assert!(deadline > Timestamp::now() && seen["deadline"].as_str().unwrap().ends_with('Z'), "{deadline}");

    // As a trigger: the request's line and headers are those of the gateway, the answer is the function's own.
    let url = format!("{}/t/fdk/tea/pot?x=1&y=a%20b", kiln.url);
    let request =
        kiln.client.request(Method::PUT, &url).header("X-Client", "me").header("Content-Type", "text/plain");
    let answer = request.body("again").send().await.unwrap();
    let headers = answer.headers().clone();
    assert_eq!(answer.status(), 418);
    assert_eq!([&headers["content-type"], &headers["x-pot"]], ["application/json", "tea"]);
    assert!(headers.contains_key("fn-call-id") && !headers.contains_key("fn-fdk-version"), "{headers:?}");
    let seen: Value = answer.json().await.unwrap();
    assert_eq!((&seen["body"], &seen["calls"]), (&json!("again"), &json!(2)));
    assert_eq!((&seen["method"], &seen["url"]), (&json!("PUT"), &json!(url)));
    assert_eq!(seen["http_headers"]["x-client"], "me", "{seen}");
    assert_eq!(seen["headers"]["fn-intent"], "httprequest", "{seen}");
    assert_eq!(seen["headers"]["content-type"], "text/plain", "{seen}");

    // What the handler raises ends the call and not the container.
    let failed = kiln.invoke(&function.id, "raise").await;
    assert_eq!(failed.status(), 502);
    assert!(failed.headers().contains_key("fn-call-id"));
    assert_eq!(failed.json::<Value>().await.unwrap(), json!({ "message": "function failed" }));
    let failed = kiln.client.post(format!("{}/t/fdk/tea/pot", kiln.url)).body("raise").send().await.unwrap();
    assert_eq!(failed.status(), 502);
    assert_eq!(failed.json::<Value>().await.unwrap(), json!({ "message": "function failed" }));
    let late = kiln.invoke(&function.id, "late").await;
    assert_eq!(late.status(), 504);
    assert_eq!(late.json::<Value>().await.unwrap(), json!({ "message": "Timed out" }));
    let seen: Value = kiln.invoke(&function.id, "").await.json().await.unwrap();
    assert_eq!((&seen["body"], &seen["calls"]), (&json!(""), &json!(6)), "one container served them all");
    assert_eq!(node.function_containers().len(), 1);

    // Config is environment, so another one is for other containers.
    kiln.cli(&format!("config function fdk {} GREETING hello", function.name));
    let seen: Value = kiln.invoke(&function.id, "").await.json().await.unwrap();
    assert_eq!((&seen["config"]["GREETING"], &seen["calls"]), (&json!("hello"), &json!(1)));
    kiln.stop();
}
