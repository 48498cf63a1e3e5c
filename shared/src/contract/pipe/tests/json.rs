use super::*;

fn sent(call: &CallRequest, pieces: &[&[u8]]) -> Value {
    let bytes = encode(call, pieces);
    let text = std::str::from_utf8(&bytes).expect("UTF-8");
    assert!(text.ends_with("}\n\n") && text.trim_end().lines().count() == 1, "{text}");
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn a_request_is_one_object() {
    let headers =
        [("content-type", "text/plain"), ("X-Two", "one"), ("x-two", "two"), ("Fn_call_id", "client")];
    let call = call(Format::Json, &headers, "line one\nline \"two\" <&> \u{e9}\u{1}");
    let body = call.body.length().expect("known");
    let pieces = [&b"line one\nline \"two\" <&> \xc3"[..], b"\xa9\x01"];
    assert_eq!(
        sent(&call, &pieces),
        json!({
            "call_id": call.id.as_str(), "content_type": "text/plain", "type": "sync",
            "deadline": "2018-02-01T12:00:30.123Z", "body": "line one\nline \"two\" <&> \u{e9}\u{1}",
            "protocol": {
                "type": "http", "method": "POST", "request_url": "http://localhost:8080/t/demo/hello?x=1",
                "headers": {
                    "Content-Length": [body.to_string()], "Content-Type": ["text/plain"],
                    "Fn_call_id": ["client"], "X-Two": ["one", "two"]
                }
            }
        })
    );
}

#[test]
fn a_request_without_body_and_headers_has_empty_ones() {
    let call = call(Format::Json, &[], "");
    let sent = sent(&call, &[]);
    assert_eq!((&sent["body"], &sent["content_type"]), (&json!(""), &json!("")));
    assert_eq!(sent["protocol"]["headers"], json!({}));
}

#[test]
fn an_answer_gives_status_headers_and_one_content_type() {
    let answer = answered(
        Framing::Json,
        " \n{\"body\":\"he}llo\",\"content_type\":\"text/csv\",\"protocol\":{\"status_code\":418,\"headers\":{\
         \"Content-Type\":[\"text/plain\"],\"X-Thing\":[\"a\",\"b\"],\"fn_call_id\":[\"mine\"],\
         \"Connection\":[\"close\"],\"Content-Length\":[\"1\"]}}}\n\n",
    );
    assert_eq!(answer.status, 418);
    assert_eq!(answer.headers, "X-Thing: a\r\nX-Thing: b\r\nContent-Type: text/csv\r\n");
    assert_eq!((answer.body.as_slice(), answer.fate), (&b"he}llo"[..], ContainerFate::Keep));
}

#[test]
fn missing_fields_have_defaults() {
    for output in [
        "{}",
        "{\"foo\":1,\"headers\":{\"X-B\":[\"c\"]},\"status_code\":201}",
        "{\"body\":null,\"content_type\":null,\"protocol\":null}",
        "{\"protocol\":{\"status_code\":0,\"headers\":null}}",
    ] {
        let answer = answered(Framing::Json, output);
        assert_eq!((answer.status, answer.headers.as_str()), (200, "Content-Type: application/json\r\n"));
        assert_eq!(answer.body, b"");
    }
    let answer = answered(Framing::Json, "{\"body\":\"x\",\"protocol\":{\"status_code\":204}}");
    assert_eq!((answer.headers.as_str(), answer.body.as_slice()), ("", &b""[..]));
}

#[test]
fn what_follows_an_answer_kills_the_container() {
    for rest in [" junk", "{\"body\":\"two\"}", "}"] {
        let answer = answered(Framing::Json, &format!("{{\"body\":\"one\"}}{rest}"));
        assert_eq!((answer.body.as_slice(), answer.fate), (&b"one"[..], ContainerFate::Kill), "{rest}");
    }
}

#[test]
fn what_is_no_answer_kills_the_container() {
    for output in [
        "hello, this is not JSON\n",
        "[]",
        "\"x\"",
        "{\"body\":5}",
        "{\"body\":{}}",
        "{\"protocol\":{\"headers\":{\"X-A\":\"b\"}}}",
        "{\"protocol\":{\"headers\":{\"X A\":[\"b\"]}}}",
        "{\"protocol\":{\"headers\":{\"X-A\":[\"b\\r\\nC: d\"]}}}",
        "{\"protocol\":{\"status_code\":99}}",
        "{\"protocol\":{\"status_code\":101}}",
        "{\"protocol\":{\"status_code\":1000}}",
        "{]",
        "{body:1}",
    ] {
        let text = message(decode(Framing::Json, output));
        assert!(text.starts_with("invalid json response from function err: "), "{output}: {text}");
    }
    let text = message(decode(Framing::Json, "hello"));
    assert_eq!(
        text,
        "invalid json response from function err: invalid character 'h' looking for beginning of value"
    );
}

#[test]
fn half_an_answer_is_none() {
    assert_eq!(decode(Framing::Json, "{\"body\":\"abc").expect("no error"), None);
    let ended = decode_with(
        Framing::Json,
        &::http::Method::POST,
        &Limits::default(),
        &[b"{\"body\":\"abc"],
        Some(ContainerExit::Code(4)),
    );
    assert_eq!(message(ended), "container exit code 4");
}

#[test]
fn an_answer_of_too_many_or_too_long_lines_is_refused() {
    let limits = Limits { response_head_bytes_max: 2000, ..Limits::default() };
    let decode = |headers: Value| {
        let object = json!({ "protocol": { "headers": headers } }).to_string();
        decode_with(Framing::Json, &::http::Method::POST, &limits, &[object.as_bytes()], None)
    };
    // With the content type a hundred.
    assert!(decode(json!({ "X": vec!["x"; 99] })).expect("no error").is_some());
    for headers in [json!({ "X": vec!["x"; 100] }), json!({ "X": ["x".repeat(2000)] })] {
        assert_eq!(message(decode(headers)), "function response header too large");
    }
}

#[test]
fn a_large_answer_is_refused_while_it_arrives() {
    let limits = Limits { json_answer_bytes_max: 20, response_bytes_max: 5, ..Limits::default() };
    let decode =
        |output: &str| decode_with(Framing::Json, &::http::Method::POST, &limits, &[output.as_bytes()], None);
    assert!(decode("{\"body\":\"12345\"}    ").expect("no error").is_some());
    for output in ["{\"body\":\"123456\"}", "{\"body\":\"1\"            }", "{                     "] {
        assert_eq!(message(decode(output)), "function response body too large", "{output}");
    }
}
