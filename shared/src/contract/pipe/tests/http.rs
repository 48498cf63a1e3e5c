use super::*;

#[test]
fn a_request_carries_the_clients_headers_and_the_calls() {
    let mut call = call(
        Format::Http,
        &[
            ("x-two", "one"),
            ("X-Two", "two"),
            ("fn_call_id", "forged"),
            ("Fn-Other", "o"),
            ("Content-Length", "9"),
        ],
        "hello",
    );
    let id = call.id;
    let expected = |method: &str, lines: &str| {
        format!(
            "{method} /t/demo/hello?x=1 HTTP/1.1\r\nHost: localhost:8080\r\n{lines}X-Two: one\r\nX-Two: two\r\n\
             Fn-Other: o\r\nFn_call_id: {id}\r\nFn_deadline: 2018-02-01T12:00:30.123Z\r\nFn_method: {method}\r\n\
             Fn_request_url: http://localhost:8080/t/demo/hello?x=1\r\n\r\n"
        )
    };
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    assert_eq!(text(encode(&call, &[b"hel", b"lo"])), expected("POST", "Content-Length: 5\r\n") + "hello");
    call.body = Body::Empty;
    assert_eq!(text(encode(&call, &[])), expected("POST", "Content-Length: 0\r\n"));
    call.method = ::http::Method::GET;
    assert_eq!(text(encode(&call, &[])), expected("GET", ""));
    call.method = ::http::Method::PUT;
    call.body = Body::stream(Body::Empty);
    assert_eq!(
        text(encode(&call, &[b"hello", b""])),
        expected("PUT", "Transfer-Encoding: chunked\r\n") + "5\r\nhello\r\n0\r\n\r\n"
    );
}

#[test]
fn a_target_cannot_end_its_line() {
    for (url, target) in [
        ("http://h/a b\x7f", "/a%20b%7F"),
        ("http://h", "/"),
        ("http://h?q=1", "/?q=1"),
        ("http://h/%2F?a=http://x/", "/%2F?a=http://x/"),
    ] {
        let mut call = call(Format::Http, &[], "");
        url.clone_into(&mut call.url);
        let sent = String::from_utf8(encode(&call, &[])).expect("text");
        assert!(sent.starts_with(&format!("POST {target} HTTP/1.1\r\nHost: h\r\n")), "{sent}");
    }
}

#[test]
fn a_body_must_be_as_long_as_declared() {
    let call = call(Format::Http, &[], "hello");
    for pieces in [&[&b"hell"[..]][..], &[b"hello", b"!"]] {
        let failed = try_encode(&call, pieces, &Limits::default()).expect_err("refused");
        assert_eq!((failed.failure.status, failed.container), (500, ContainerFate::Kill));
    }
}

#[test]
fn status_and_headers_reach_the_client_once_and_hop_by_hop_ones_do_not() {
    let answer = answered(
        Framing::Http,
        "HTTP/1.1 418 Whatever\r\nContent-Type: text/plain\r\nX-Thing: a\r\nX-Thing: b\r\nfn_call_id: mine\r\n\
         XXX-FXLB-WAIT: mine\r\nConnection: keep-alive, X-Named\r\nX-Named: x\r\nKeep-Alive: x\r\n\
         Content-Length: 5\r\n\r\nhello\n",
    );
    assert_eq!(answer.status, 418);
    assert_eq!(answer.headers, "X-Thing: a\r\nX-Thing: b\r\nContent-Type: text/plain\r\n");
    assert_eq!((answer.body.as_slice(), answer.fate), (&b"hello"[..], ContainerFate::Keep));
}

#[test]
fn a_body_ends_where_its_framing_says() {
    for (output, body) in [
        (
            "\r\n HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
            "abcde",
        ),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", "x"),
        ("HTTP/1.1 204 No Content\r\n\r\n", ""),
    ] {
        let answer = answered(Framing::Http, output);
        assert_eq!(
            (answer.body.as_slice(), answer.fate),
            (body.as_bytes(), ContainerFate::Keep),
            "{output:?}"
        );
    }
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n";
    let answer = decode_with(Framing::Http, &::http::Method::HEAD, &Limits::default(), &[head], None);
    assert_eq!(answer.expect("no error").expect("whole").body, b"");
}

#[test]
fn an_answer_without_length_ends_with_the_container() {
    let output = "HTTP/1.1 200 OK\r\nX-A: b\r\n\r\nno length";
    assert_eq!(decode(Framing::Http, output).expect("no error"), None);
    let ended = |exit| {
        decode_with(
            Framing::Http,
            &::http::Method::POST,
            &Limits::default(),
            &[output.as_bytes()],
            Some(exit),
        )
    };
    let answer = ended(ContainerExit::Code(0)).expect("no error").expect("whole");
    assert_eq!((answer.body.as_slice(), answer.fate), (&b"no length"[..], ContainerFate::Kill));
    assert_eq!(message(ended(ContainerExit::Code(4))), "container exit code 4");
}

#[test]
fn an_exit_before_the_end_fails_the_call_at_once_even_with_code_0() {
    for output in ["", "HTTP/1.1 200", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc"] {
        let ended = decode_with(
            Framing::Http,
            &::http::Method::POST,
            &Limits::default(),
            &[output.as_bytes()],
            Some(ContainerExit::Code(0)),
        );
        assert_eq!(message(ended), "container exit code 0");
    }
}

#[test]
fn what_follows_an_answer_kills_the_container() {
    let output =
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\noneHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntwo";
    let answer = answered(Framing::Http, output);
    assert_eq!((answer.body.as_slice(), answer.fate), (&b"one"[..], ContainerFate::Kill));
}

#[test]
fn garbage_is_refused_without_waiting_for_its_end() {
    for (output, detail) in [
        ("hello, this is not HTTP\n", "malformed HTTP response \"hello, this is not HTTP\\n\""),
        ("HTTX", "malformed HTTP response \"HTTX\""),
        ("HTTP/1.1 200 OK\n", "a line ends without carriage return"),
        ("HTTP/1.1 abc OK\r\n\r\n", "bad status"),
        ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "bad Content-Length"),
        ("HTTP/1.1 101 Switching\r\n\r\n", "the function switches protocols"),
    ] {
        let text = message(decode(Framing::Http, output));
        assert_eq!(text, format!("invalid http response from function err: {detail}"));
    }
}

#[test]
fn large_heads_and_bodies_are_refused_before_the_client_hears_of_them() {
    let limits = Limits { response_head_bytes_max: 40, response_bytes_max: 5, ..Limits::default() };
    let decode =
        |output: &str| decode_with(Framing::Http, &::http::Method::POST, &limits, &[output.as_bytes()], None);
    assert!(decode("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").is_ok());
    let declared = decode("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n");
    assert_eq!(message(declared), "function response body too large");
    let chunked = decode("HTTP/1.1 200 OK\r\nTransfer-Encoding: x\r\n\r\n");
    assert_eq!(message(chunked), "function response header too large");
    let long = format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(40));
    assert_eq!(message(decode(&long)), "function response header too large");
    let growing = decode("HTTP/1.1 200 OK\r\n\r\nsixsix");
    assert_eq!(message(growing), "function response body too large");
}
