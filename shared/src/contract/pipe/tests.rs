use bytes::BytesMut;
use serde_json::{Value, json};

use super::*;
use crate::body::Body;
use crate::contract::testing::{call, function};

mod cloudevent;
mod default;
mod http;
mod json;
mod properties;

const EVENTS: Framing = Framing::Cloudevent { client_speaks_events: false };

fn deadline() -> Timestamp {
    "2018-02-01T12:00:30.123Z".parse().expect("a time")
}

fn framing_of(format: Format) -> Framing {
    Framing::of(&call(format, &[], "")).expect("a pipe format")
}

fn try_encode(call: &CallRequest, pieces: &[&[u8]], limits: &Limits) -> Result<Vec<u8>, CallFailed> {
    let mut out = Vec::new();
    let framing = Framing::of(call).expect("a pipe format");
    let mut encoder = RequestEncoder::new(framing, call, deadline(), limits, &mut out);
    for piece in pieces {
        encoder.body(piece, &mut out)?;
    }
    encoder.finish(&mut out)?;
    Ok(out)
}

fn encode(call: &CallRequest, pieces: &[&[u8]]) -> Vec<u8> {
    try_encode(call, pieces, &Limits::default()).expect("encoded")
}

/// What came of an answer.
#[derive(Debug, PartialEq)]
struct Answered {
    status: u16,
    headers: String,
    body: Vec<u8>,
    fate: ContainerFate,
}

/// Decodes an answer that comes in pieces; the output stays open unless `exit` says otherwise.
fn decode_with(
    framing: Framing,
    method: &::http::Method,
    limits: &Limits,
    pieces: &[&[u8]],
    exit: Option<ContainerExit>,
) -> Result<Option<Answered>, CallFailed> {
    let mut call = call(Format::Http, &[], "");
    call.method = method.clone();
    let mut decoder = AnswerDecoder::new(framing, &call, limits);
    let mut input = BytesMut::new();
    let mut events = Vec::new();
    for piece in pieces {
        input.extend_from_slice(piece);
        while let Some(event) = decoder.decode(&mut input)? {
            events.push(event);
        }
    }
    while let Some(exit) = exit
        && events.last() != Some(&Event::End)
    {
        events.push(decoder.finish(exit)?);
    }
    let mut answered = None;
    let mut ended = false;
    for event in events {
        assert!(!ended, "something after the end");
        match event {
            Event::Head { status, headers } => {
                assert!(answered.is_none(), "two heads");
                let headers = String::from_utf8_lossy(headers.as_bytes()).into_owned();
                answered = Some(Answered { status, headers, body: Vec::new(), fate: ContainerFate::Kill });
            }
            Event::Body(piece) => {
                assert!(!piece.is_empty());
                answered.as_mut().expect("a head first").body.extend_from_slice(&piece);
            }
            Event::End => ended = true,
        }
    }
    if let Some(answered) = answered.as_mut() {
        answered.fate = decoder.fate(&input);
    }
    Ok(answered.filter(|_| ended))
}

fn decode(framing: Framing, output: &str) -> Result<Option<Answered>, CallFailed> {
    decode_with(framing, &::http::Method::POST, &Limits::default(), &[output.as_bytes()], None)
}

fn answered(framing: Framing, output: &str) -> Answered {
    decode(framing, output).expect("no error").expect("a whole answer")
}

fn message(result: Result<Option<Answered>, CallFailed>) -> String {
    let failed = result.expect_err("refused");
    assert_eq!((failed.failure.status, failed.container), (502, ContainerFate::Kill));
    failed.failure.message.into_owned()
}

#[test]
fn every_pipe_format_has_a_framing() {
    assert_eq!(Framing::of(&call(Format::HttpStream, &[], "")), None);
    assert_eq!(framing_of(Format::Default), Framing::Default);
    assert!(Framing::Default.closes_input() && !Framing::Http.closes_input());
    let event = [("content-type", "application/CloudEvents+json; charset=utf-8")];
    for format in [Format::Http, Format::Json, Format::Cloudevent] {
        let framing = Framing::of(&call(format, &event, "{}"));
        assert_eq!(framing, Some(Framing::Cloudevent { client_speaks_events: true }));
    }
    assert_eq!(Framing::of(&call(Format::Default, &event, "{}")), Some(Framing::Default));
    assert_eq!(Framing::of(&call(Format::HttpStream, &event, "{}")), None);
}

#[test]
fn only_blanks_may_come_between_calls() {
    assert!(is_blank(b"") && is_blank(b" \r\n\t"));
    assert!(!is_blank(b"\nx") && !is_blank(b"\0"));
}
