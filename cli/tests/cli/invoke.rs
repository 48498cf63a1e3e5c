//! `kiln invoke`: what is sent, what is printed, how it ends.

use serde_json::json;

use crate::support::{Api, Home};

fn api_that_answers(status: u16, body: &str) -> Api {
    let api = Api::with_demo();
    let headers = [("content-type", "text/plain"), ("fn-call-id", "C1"), ("x-two", "a")];
    api.on_raw("POST /invoke/F1", status, &headers, body.as_bytes().to_vec());
    api
}

#[test]
fn standard_input_is_the_body_and_the_answer_is_printed_as_it_is() {
    let api = api_that_answers(200, "Hello\0Ada");
    let output = Home::with_api(&api).kiln("invoke demo hello").write_stdin("Ada").output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"Hello\0Ada");
    let asked = api.last();
    assert_eq!(asked.body, b"Ada");
    assert_eq!(asked.headers["content-type"], "text/plain");
    assert_eq!(asked.headers["content-length"], "3");
    assert!(!asked.headers.contains_key("fn-invoke-type"));
    assert_eq!(
        api.asked_lines(),
        ["GET /v2/apps?name=demo", "GET /v2/fns?app_id=A1&name=hello", "POST /invoke/F1"]
    );
}

#[test]
fn a_large_body_is_streamed_whole() {
    let api = api_that_answers(200, "ok");
    let body = vec![b'x'; 3 * 1024 * 1024 + 17];
    Home::with_api(&api).kiln("invoke demo hello").write_stdin(body.clone()).assert().success();
    assert!(api.last().body == body);
    assert!(!api.last().headers.contains_key("content-length"));
}

#[test]
fn the_content_type_comes_from_the_flag_else_from_the_functions_own_file() {
    let api = api_that_answers(200, "ok");
    let home = Home::with_api(&api);
    home.write("func.yaml", "schema_version: 20180708\nname: hello\ncontent_type: application/json\n");
    home.ok("invoke demo hello");
    assert_eq!(api.last().headers["content-type"], "application/json");
    home.ok("invoke demo hello --content-type image/png");
    assert_eq!(api.last().headers["content-type"], "image/png");
    home.write("func.yaml", "schema_version: 20180708\nname: other\ncontent_type: application/json\n");
    home.ok("invoke demo hello");
    assert_eq!(api.last().headers["content-type"], "text/plain");
}

#[test]
fn the_call_id_is_shown_before_the_answer() {
    let api = api_that_answers(200, "hi");
    assert_eq!(Home::with_api(&api).ok("invoke demo hello --display-call-id"), "Call ID: C1\nhi");
}

#[test]
fn a_detached_call_shows_its_id() {
    let api = api_that_answers(202, "");
    assert_eq!(Home::with_api(&api).ok("invoke demo hello --detach"), "Call ID: C1\n");
    assert_eq!(api.last().headers["fn-invoke-type"], "detached");
}

#[test]
fn a_failed_call_says_status_and_message_and_ends_with_1() {
    let api = api_that_answers(502, "{\"message\":\"function failed\"}\n");
    let home = Home::with_api(&api);
    let error = home.fails(1, "invoke demo hello");
    assert!(
        error.starts_with("error: Error invoking function. status: 502 message: function failed\n"),
        "{error}"
    );
    assert!(error.contains("kiln logs"));
    let output = home.kiln("invoke demo hello --output json").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["status_code"], json!(502));
}

#[test]
fn programs_get_body_headers_and_status() {
    let api = api_that_answers(200, "hi");
    let answer = Home::with_api(&api).json("invoke demo hello");
    assert_eq!((&answer["body"], &answer["status_code"]), (&json!("hi"), &json!(200)));
    assert_eq!(answer["headers"]["Fn-Call-Id"], json!(["C1"]));
}

#[test]
fn an_endpoint_is_called_without_asking_for_names() {
    let api = api_that_answers(200, "hi");
    assert_eq!(Home::new().ok(&format!("invoke --endpoint {}/invoke/F1", api.url())), "hi");
    assert_eq!(api.asked_lines(), ["POST /invoke/F1"]);
}

#[test]
fn a_function_without_an_endpoint_is_called_at_the_server_itself() {
    let api = api_that_answers(200, "hi");
    api.on("GET /v2/fns?app_id=A1&name=hello", 200, json!({ "items": [{ "id": "F1", "name": "hello" }] }));
    assert_eq!(Home::with_api(&api).ok("invoke demo hello"), "hi");
}

#[test]
fn unknown_names_are_told_apart() {
    let api = Api::with_demo();
    let home = Home::with_api(&api);
    assert!(home.fails(1, "invoke nope hello").starts_with("error: app nope not found\n"));
    assert!(home.fails(1, "invoke demo nope").starts_with("error: function nope not found\n"));
}
