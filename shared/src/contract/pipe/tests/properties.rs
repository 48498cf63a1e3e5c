use proptest::prelude::*;

use super::*;
use crate::http1::buffer::BodyDecoder;
use crate::http1::chunked::{Decoded, LAST_CHUNK, encode_chunk};
use crate::http1::head::{HeadLimits, find_end, parse_request};

/// `bytes` in pieces whose lengths repeat `cuts`.
fn cut<'a>(mut bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for cut in cuts.iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        let (piece, rest) = bytes.split_at((*cut).min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
    }
    pieces
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1usize..9, 1..20)
}

fn framings() -> impl Strategy<Value = Framing> {
    prop_oneof![
        Just(Framing::Default),
        Just(Framing::Http),
        Just(Framing::Json),
        Just(EVENTS),
        Just(Framing::Cloudevent { client_speaks_events: true }),
    ]
}

/// Output that is now and then an answer.
fn outputs() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..20),
        "[ {}\\[\\]\"\\\\:,a1\n]{0,12}".prop_map(String::into_bytes),
        prop::sample::select(vec![
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 204 X\r\n",
            "HTTP/1.1 100 C\r\n\r\n",
            "Content-Length: 3\r\n",
            "Transfer-Encoding: chunked\r\n",
            "Connection: close\r\n",
            "X: y\r\n",
            "\r\n",
            "3\r\nabc\r\n",
            "0\r\n\r\n",
            "abc",
            "{",
            "}",
            "{}",
            "{\"body\":\"x\"}",
            "\"protocol\":{\"status_code\":201}",
            "\"data\":[1]",
            ",",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
    ];
    let whole = prop::sample::select(vec![
        "",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1;x\r\nd\r\n0\r\nT: v\r\n\r\n",
        "\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 304 Not Modified\r\nX: y\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\nuntil the end",
        " {\"body\":\"}\\\"{\",\"data\":[\"]\"],\"protocol\":{\"headers\":{\"X\":[\"y\"]}}}",
        "{\"contentType\":\"text/plain\",\"data\":\"x\"}\n",
    ]);
    (whole, any::<prop::sample::Index>(), any::<bool>(), prop::collection::vec(part, 0..8)).prop_map(
        |(whole, end, cut_off, parts)| {
            let end = if cut_off { end.index(whole.len() + 1) } else { whole.len() };
            [&whole.as_bytes()[..end], &parts.concat()].concat()
        },
    )
}

proptest! {
    #[test]
    fn an_answer_is_the_same_however_it_is_cut(
        framing in framings(), output in outputs(), cuts in cuts(), exits: bool, head_call: bool,
    ) {
        let method = if head_call { ::http::Method::HEAD } else { ::http::Method::POST };
        let exit = exits.then_some(ContainerExit::Code(0));
        let limits = Limits { response_bytes_max: 64, json_answer_bytes_max: 64, ..Limits::default() };
        let whole = decode_with(framing, &method, &limits, &[&output], exit);
        let pieces = decode_with(framing, &method, &limits, &cut(&output, &cuts), exit);
        match (whole, pieces) {
            (Ok(whole), Ok(pieces)) => prop_assert_eq!(whole, pieces),
            // The text may quote more or less of what came.
            (Err(whole), Err(pieces)) => prop_assert_eq!(whole.failure.kind, pieces.failure.kind),
            (whole, pieces) => prop_assert!(false, "{whole:?} and {pieces:?}"),
        }
    }

    #[test]
    fn http_answers_round_trip(
        status in 200u16..600, name in "X-[a-z]{1,8}", value in "[!-~]([ -~]{0,20}[!-~])?",
        body: Vec<u8>, chunked: bool, cuts in cuts(),
    ) {
        let mut output = format!("HTTP/1.1 {status} X\r\n{name}: {value}\r\n").into_bytes();
        let bodyless = status == 204 || status == 304;
        if bodyless {
            output.extend_from_slice(b"\r\n");
        } else if chunked {
            output.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            for piece in cut(&body, &cuts) {
                encode_chunk(piece, &mut output);
            }
            output.extend_from_slice(LAST_CHUNK);
        } else {
            output.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
            output.extend_from_slice(&body);
        }
        let pieces = cut(&output, &cuts);
        let answer = decode_with(Framing::Http, &::http::Method::POST, &Limits::default(), &pieces, None);
        let answer = answer.expect("no error").expect("whole");
        prop_assert_eq!(answer.status, status);
        let line = format!("{name}: {value}\r\n");
        prop_assert!(answer.headers.starts_with(&line));
        prop_assert_eq!(answer.body, if bodyless { Vec::new() } else { body });
        prop_assert_eq!(answer.fate, ContainerFate::Keep);
    }

    #[test]
    fn json_answers_round_trip(body: String, status in 200u16..600, cuts in cuts()) {
        let output = json!({"body": body, "protocol": {"status_code": status}}).to_string();
        let pieces = cut(output.as_bytes(), &cuts);
        let answer = decode_with(Framing::Json, &::http::Method::POST, &Limits::default(), &pieces, None);
        let answer = answer.expect("no error").expect("whole");
        let bodyless = status == 204 || status == 304;
        prop_assert_eq!((answer.status, answer.fate), (status, ContainerFate::Keep));
        prop_assert_eq!(answer.body, if bodyless { "" } else { &body }.as_bytes());
    }

    #[test]
    fn http_requests_round_trip(body: Vec<u8>, known_length: bool, cuts in cuts(), value in "[!-~]{1,20}") {
        let mut call = call(Format::Http, &[("X-Value", &value)], "");
        call.body = Body::Stream { stream: Box::pin(Body::Empty), length: known_length.then_some(body.len() as u64) };
        let mut sent = BytesMut::from(encode(&call, &cut(&body, &cuts)).as_slice());
        let limits = HeadLimits::default();
        let end = find_end(&sent, 0, &limits).expect("a head").expect("a whole head");
        let head = parse_request(&sent.split_to(end), &limits).expect("valid");
        prop_assert_eq!(head.headers.get("x-value"), Some(value.as_bytes()));
        prop_assert_eq!(head.headers.get("fn_call_id"), Some(call.id.as_bytes()));
        let mut decoder = BodyDecoder::new(head.length);
        let mut received = Vec::new();
        while let Decoded::Data(piece) = decoder.decode(&mut sent).expect("valid") {
            received.extend_from_slice(&piece);
        }
        prop_assert_eq!(received, body);
        prop_assert!(sent.is_empty());
    }

    #[test]
    fn json_requests_round_trip(body: Vec<u8>, text: String, cuts in cuts()) {
        for body in [body.as_slice(), text.as_bytes()] {
            let call = call(Format::Json, &[], "");
            let sent: Value = serde_json::from_slice(&encode(&call, &cut(body, &cuts))).expect("JSON");
            prop_assert_eq!(sent["body"].as_str().expect("text"), String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn event_data_round_trips(texts in prop::collection::vec(any::<String>(), 0..5), number: i64, pretty: bool, cuts in cuts()) {
        let data = json!({"texts": texts, "number": number, "none": null});
        let body = if pretty { serde_json::to_vec_pretty(&data) } else { serde_json::to_vec(&data) }.expect("JSON");
        let sent = encode(&call(Format::Cloudevent, &[], ""), &cut(&body, &cuts));
        prop_assert_eq!(memchr::memchr_iter(b'\n', &sent).count(), 1);
        let mut event: Value = serde_json::from_slice(&sent).expect("JSON");
        prop_assert_eq!(event["data"].take(), data);
    }
}
