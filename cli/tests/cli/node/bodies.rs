//! Large and slow bodies, both ways.

use std::convert::Infallible;
use std::fs;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use reqwest::Body;
use serde_json::json;
use tokio::sync::mpsc;

use super::images::example;
use super::{Kiln, Node};

/// Length of a piece that bodies repeat. Odd, so that a piece that is lost, doubled or moved shows.
const PIECE_BYTES: usize = 999_983;

/// Bytes of a body from `offset` on, up to the next piece's beginning.
fn rest_of_piece(piece: &Bytes, offset: usize) -> Bytes {
    piece.slice(offset % PIECE_BYTES..)
}

fn piece() -> Bytes {
    (0..PIECE_BYTES).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// Most memory that the process has held so far, in bytes.
fn peak_memory_bytes(kiln: &Kiln<'_>) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", kiln.process.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

/// Sends so many bytes through an echo function and checks what comes back.
async fn echo(kiln: &Kiln<'_>, function: &str, bytes: usize) {
    let piece = piece();
    let sent = piece.clone();
    let request = stream::unfold(0, move |offset| {
        let mut next = rest_of_piece(&sent, offset);
        next.truncate(bytes - offset);
        let after = offset + next.len();
        std::future::ready((!next.is_empty()).then_some((Ok::<_, Infallible>(next), after)))
    });
    let answer = kiln.invoke(function, Body::wrap_stream(request)).await;
    assert_eq!(answer.status(), 200);
    let mut answer = answer.bytes_stream();
    let mut offset = 0;
    while let Some(arrived) = answer.next().await {
        let mut arrived = arrived.unwrap();
        while !arrived.is_empty() {
            let mut expected = rest_of_piece(&piece, offset);
            expected.truncate(arrived.len());
            assert!(arrived.split_to(expected.len()) == expected, "other bytes came back after {offset}");
            offset += expected.len();
        }
    }
    assert_eq!(offset, bytes);
}

#[tokio::test]
async fn a_large_body_goes_through_both_ways_in_little_memory() {
    let node = Node::with_memory_mib(64);
    let kiln = node.start();
    let app = kiln.create_app("bodies").await;
    let function = kiln.create_function(&app, "echo", &example("echo"), json!({})).await;
    echo(&kiln, &function, 1 << 20).await;
    let before = peak_memory_bytes(&kiln);
    echo(&kiln, &function, 100 << 20).await;
    let grown_mib = (peak_memory_bytes(&kiln) - before) >> 20;
    assert!(grown_mib < 32, "Kiln grew by {grown_mib} MiB for bodies of 100 MiB");
    kiln.stop();
}

#[tokio::test]
async fn an_answer_begins_before_its_end_is_known() {
    let node = Node::with_memory_mib(64);
    let kiln = node.start();
    let app = kiln.create_app("bodies").await;
    let function = kiln.create_function(&app, "echo", &example("echo"), json!({})).await;
    let (sender, receiver) = mpsc::channel::<Bytes>(1);
    let request = stream::unfold(receiver, async |mut receiver| {
        receiver.recv().await.map(|piece| (Ok::<_, Infallible>(piece), receiver))
    });
    // More than the function gathers before it sends.
    let beginning = Bytes::from(vec![b'a'; 64 * 1024]);
    sender.send(beginning.clone()).await.unwrap();
    let answer = kiln.invoke(&function, Body::wrap_stream(request)).await;
    assert_eq!(answer.status(), 200);
    let mut answer = answer.bytes_stream();
    let mut arrived = answer.next().await.unwrap().unwrap().to_vec();
    assert!(!arrived.is_empty());
    // Only now is there an end that the function could answer with.
    sender.send(Bytes::from_static(b"the end")).await.unwrap();
    drop(sender);
    while let Some(piece) = answer.next().await {
        arrived.extend(piece.unwrap());
    }
    assert!(arrived == [&beginning[..], b"the end"].concat(), "{} bytes", arrived.len());
    kiln.stop();
}
