use super::*;

fn failure(call: &CallRequest, body: &[u8], limits: &Limits) -> CallFailed {
    try_encode(call, &[body], limits).expect_err("refused")
}

#[test]
fn a_body_becomes_the_data_of_an_event() {
    let call = call(Format::Cloudevent, &[("Content-Type", "application/json"), ("X", "1")], "");
    let bytes = encode(&call, &[b"{ \"n\": 12345678901234567890.10,\n", b"\"t\": \"a  b\" }"]);
    let text = String::from_utf8(bytes).expect("UTF-8");
    assert!(text.ends_with(",\"data\":{\"n\":12345678901234567890.10,\"t\":\"a  b\"}}\n"), "{text}");
    assert_eq!(text.lines().count(), 1);
    let mut event: Value = serde_json::from_str(&text).expect("JSON");
    event["data"].take();
    assert_eq!(
        event,
        json!({
            "cloudEventsVersion": "0.1", "eventID": call.id.as_str(),
            "source": "http://localhost:8080/t/demo/hello?x=1", "eventType": "http", "eventTypeVersion": "",
            "eventTime": "0001-01-01T00:00:00.000Z", "schemaURL": "", "contentType": "application/json",
            "extensions": {
                "protocol": {
                    "type": "http", "method": "POST", "request_url": "http://localhost:8080/t/demo/hello?x=1",
                    "headers": {"Content-Type": ["application/json"], "X": ["1"]}
                },
                "deadline": "2018-02-01T12:00:30.123Z"
            },
            "data": null
        })
    );
    assert!(!String::from_utf8_lossy(&encode(&call, &[b" \n"])).contains("\"data\""));
}

#[test]
fn a_body_that_is_not_json_fails_and_the_container_saw_nothing() {
    let call = call(Format::Cloudevent, &[], "");
    for body in ["hello", "{\"a\":1", "1 2", "{} {}", "tr ue"] {
        let failed = failure(&call, body.as_bytes(), &Limits::default());
        assert_eq!((failed.failure.status, failed.container), (400, ContainerFate::Keep), "{body}");
        let text = &failed.failure.message;
        assert!(text.starts_with("Invalid json body with contentType 'application/json'"), "{text}");
    }
    let limits = Limits { event_bytes_max: 4, ..Limits::default() };
    let failed = failure(&call, b"12345", &limits);
    assert_eq!((failed.failure.status, failed.container), (413, ContainerFate::Keep));
}

#[test]
fn a_clients_event_keeps_its_fields_and_gets_the_calls() {
    let body = r#"{ "eventID": "own", "extensions": {"a": 1.0, "deadline": "x"},
        "data": 3 }"#;
    let mut call = call(Format::Json, &[("Content-Type", "application/cloudevents+json")], "");
    call.function = std::sync::Arc::new(function(Format::Json));
    let text = String::from_utf8(encode(&call, &[body.as_bytes()])).expect("UTF-8");
    let event: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&event["eventID"], &event["data"]), (&json!("own"), &json!(3)));
    assert_eq!(
        (&event["extensions"]["a"], &event["extensions"]["deadline"]),
        (&json!(1.0), &json!("2018-02-01T12:00:30.123Z"))
    );
    assert_eq!(event["extensions"]["protocol"]["method"], json!("POST"));
    for body in ["", "[]", "{\"extensions\":3}"] {
        let failed = failure(&call, body.as_bytes(), &Limits::default());
        assert_eq!((failed.failure.status, failed.container), (400, ContainerFate::Keep), "{body}");
    }
}

#[test]
fn an_answers_data_is_the_body() {
    let protocol = r#""extensions":{"protocol":{"status_code":201,"headers":{"X":["y"]}}}"#;
    for (content_type, data, body) in [
        (r#""contentType":"application/json; charset=utf-8","#, r#"{"a": 1}"#, r#"{"a": 1}"#),
        (r#""contentType":"text/plain","#, r#""a \"b\"""#, "a \"b\""),
        ("", "[1.50]", "[1.50]"),
    ] {
        let answer = answered(EVENTS, &format!("{{{content_type}{protocol},\"data\":{data}}}\n"));
        assert_eq!((answer.status, answer.body.as_slice()), (201, body.as_bytes()));
        assert_eq!(answer.fate, ContainerFate::Keep);
        assert!(answer.headers.starts_with("X: y\r\nContent-Type: "), "{}", answer.headers);
    }
    assert_eq!(answered(EVENTS, "{\"contentType\":\"image/png\"}").body, b"");
    let text = message(decode(EVENTS, "{\"contentType\":\"image/png\",\"data\":\"x\"}"));
    assert!(text.ends_with("Error: Unknown content type: image/png"), "{text}");
    assert!(decode(EVENTS, "{\"contentType\":\"text/plain\",\"data\":5}").is_err());
}

#[test]
fn a_client_that_sent_an_event_gets_one() {
    let event = r#"{"eventID": "x", "contentType": "image/png", "data": "abc"}"#;
    let answer = answered(Framing::Cloudevent { client_speaks_events: true }, event);
    assert_eq!(answer.headers, "Content-Type: application/cloudevents+json\r\n");
    assert_eq!(answer.body, event.as_bytes());
}
