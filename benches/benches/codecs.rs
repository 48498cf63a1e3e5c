//! Bytes to meaning and back: heads of HTTP/1.1, and a call's frames in each format of the contract.

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{Criterion, criterion_group, criterion_main};
use jiff::Timestamp;
use kiln_benches::{CpuTime, call, function, short};
use kiln_shared::call::CallKind;
use kiln_shared::contract::Limits;
use kiln_shared::contract::http_stream::{request_head, verdict};
use kiln_shared::contract::pipe::{AnswerDecoder, Event, Framing, RequestEncoder};
use kiln_shared::function::Format;
use kiln_shared::http1::chunked::{ChunkedDecoder, Decoded, LAST_CHUNK, encode_chunk};
use kiln_shared::http1::head::{HeadLimits, find_end, parse_request, parse_response};
use kiln_shared::ids::TriggerId;

/// What a call carries each way.
const BODY_BYTES: usize = 1024;

const CURL: &str = "POST /t/demo/hello HTTP/1.1\r\nHost: kiln.example.com:8080\r\nUser-Agent: curl/8.5.0\r\n\
                    Accept: */*\r\nContent-Type: application/json\r\nContent-Length: 1024\r\n\r\n";

/// A browser's head: a score of lines, one of them long.
fn browser() -> String {
    let cookie = "session=0123456789abcdef; ".repeat(20);
    let many = "X-Header: a value of some length\r\n".repeat(14);
    format!(
        "GET /t/demo/hello?name=Ada HTTP/1.1\r\nHost: kiln.example.com\r\nConnection: keep-alive\r\n\
         Accept: text/html,application/xhtml+xml\r\nAccept-Encoding: gzip, br\r\nCookie: {cookie}\r\n{many}\r\n"
    )
}

/// The answer of a function written with an FDK.
const FUNCTION_ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nFn-Http-Status: 201\r\n\
                               Fn-Http-H-Location: /t/demo/hello/1\r\nFn-Fdk-Version: fdk-rust/0.1.0\r\n\
                               Content-Length: 1024\r\n\r\n";

fn heads(criterion: &mut Criterion<CpuTime>) {
    let limits = HeadLimits::default();
    let mut group = criterion.benchmark_group("head");
    for (name, head) in [("request of curl", CURL.to_owned()), ("request of a browser", browser())] {
        group.bench_function(name, |bench| {
            bench.iter(|| {
                let head = black_box(head.as_bytes());
                let end = find_end(head, 0, &limits)?.expect("the head is whole");
                parse_request(&head[..end], &limits)
            });
        });
    }
    group.bench_function("response of a function", |bench| {
        bench.iter(|| parse_response(black_box(FUNCTION_ANSWER.as_bytes()), &limits));
    });
    group.finish();
}

fn chunks(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("chunked");
    let mut coded = Vec::new();
    for _ in 0..16 {
        encode_chunk(&[b'x'; BODY_BYTES], &mut coded);
    }
    coded.extend_from_slice(LAST_CHUNK);
    group.bench_function("16 chunks of 1 KiB taken apart", |bench| {
        bench.iter(|| {
            let mut input = BytesMut::from(black_box(coded.as_slice()));
            let mut decoder = ChunkedDecoder::default();
            let mut body_bytes = 0;
            while let Decoded::Data(data) = decoder.decode(&mut input).expect("the coding is right") {
                body_bytes += data.len();
            }
            body_bytes
        });
    });
    group.finish();
}

fn http_stream(criterion: &mut Criterion<CpuTime>) {
    let function = function(Format::HttpStream);
    let response = parse_response(FUNCTION_ANSWER.as_bytes(), &HeadLimits::default()).expect("a head");
    let mut group = criterion.benchmark_group("http-stream");
    for (name, kind) in [("invoke", CallKind::Invoke), ("trigger", CallKind::Trigger(TriggerId::generate()))]
    {
        let call = call(&function, kind, BODY_BYTES);
        let mut head = Vec::new();
        group.bench_function(format!("{name}: head of the request"), |bench| {
            bench.iter(|| {
                head.clear();
                request_head(black_box(&call), Timestamp::UNIX_EPOCH, &mut head);
            });
        });
        group.bench_function(format!("{name}: headers of the answer"), |bench| {
            bench.iter(|| verdict(kind, 200, black_box(&response.headers)));
        });
    }
    group.finish();
}

fn pipes(criterion: &mut Criterion<CpuTime>) {
    let text = "x".repeat(BODY_BYTES);
    let answers = [
        (
            Format::Http,
            format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {BODY_BYTES}\r\n\r\n{text}"
            ),
        ),
        (
            Format::Json,
            format!(r#"{{"body":"{text}","content_type":"text/plain","protocol":{{"status_code":200}}}}"#)
                + "\n",
        ),
        (
            Format::Cloudevent,
            format!(
                r#"{{"cloudEventsVersion":"0.1","eventID":"1","source":"s","eventType":"t","contentType":"text/plain","data":"{text}"}}"#
            ) + "\n",
        ),
    ];
    let limits = Limits::default();
    let mut group = criterion.benchmark_group("pipes/1 KiB");
    for (format, answer) in answers {
        let call = call(&function(format), CallKind::Invoke, BODY_BYTES);
        let framing = Framing::of(&call).expect("the format is one over pipes");
        let body = vec![b'x'; BODY_BYTES];
        let mut out = Vec::new();
        group.bench_function(format!("{format:?}: request"), |bench| {
            bench.iter(|| {
                out.clear();
                let mut encoder =
                    RequestEncoder::new(framing, black_box(&call), Timestamp::UNIX_EPOCH, &limits, &mut out);
                encoder.body(&body, &mut out)?;
                encoder.finish(&mut out)
            });
        });
        let answer = Bytes::from(answer);
        group.bench_function(format!("{format:?}: answer"), |bench| {
            bench.iter(|| {
                let mut input = BytesMut::from(black_box(&answer[..]));
                let mut decoder = AnswerDecoder::new(framing, &call, &limits);
                while decoder.decode(&mut input).expect("an answer").expect("a whole one") != Event::End {}
            });
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = short(); targets = heads, chunks, http_stream, pipes }
criterion_main!(benches);
