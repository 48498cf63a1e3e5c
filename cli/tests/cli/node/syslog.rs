//! Logs of functions in real containers on their way to a real rsyslog.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use kiln_testkit::rsyslog::Server;
use reqwest::Method;
use serde_json::json;

use super::detached::call_id;
use super::images::example;
use super::{Kiln, Node, eventually};

/// Lines of each call.
const LINES: u64 = 20;

/// Calls a function, which writes lines, so many times. Returns the calls' ids.
async fn calls(kiln: &Kiln<'_>, function: &str, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let answer = kiln.invoke(function, LINES.to_string()).await;
        assert_eq!(answer.status(), 200);
        ids.push(call_id(&answer));
    }
    ids
}

/// The lines that came of each call, in order; those that came again are left out. The lines' own text counts: what a
/// function wrote comes from the engine after its answer, perhaps when the next call has begun.
fn came(server: &Server) -> BTreeMap<String, u64> {
    let mut came = BTreeMap::<String, u64>::new();
    for message in server.messages().iter().filter(|message| message["kind"] == "lines") {
        let (call, line) = message["text"].as_str().unwrap().split_once(' ').unwrap();
        let line: u64 = line.parse().unwrap();
        let last = came.entry(call.to_owned()).or_default();
        assert!(line <= *last + 1, "line {line} came after {last}");
        *last = line.max(*last);
    }
    came
}

/// What is in the node's spools.
fn spooled(node: &Node) -> String {
    let mut text = String::new();
    for spool in fs::read_dir(node.home.path().join("data/syslog")).unwrap() {
        for file in fs::read_dir(spool.unwrap().path()).unwrap() {
            // Segments come and go.
            let bytes = fs::read(file.unwrap().path()).unwrap_or_default();
            text.push_str(&String::from_utf8_lossy(&bytes));
        }
    }
    text
}

async fn all_come(server: &Server, ids: &[String]) {
    eventually("every line of every call came, in order", async || {
        let came = came(server);
        ids.iter().all(|id| came.get(id) == Some(&LINES))
    })
    .await;
}

#[tokio::test]
async fn logs_outlive_their_sink_and_a_killed_kiln() {
    let mut server = Server::start().await;
    let node = Node::with_memory_mib(128);
    let platform = server.udp();
    let options = ["--syslog-platform-url", &platform];
    let kiln = node.start_with(&options);
    let app = kiln.api(Method::POST, "/v2/apps", json!({ "name": "told", "syslog_url": server.tcp() })).await;
    let app = app["id"].as_str().unwrap();
    let function = kiln.create_function(app, "lines", &example("lines"), json!({})).await;
    let mut ids = calls(&kiln, &function, 10).await;
    all_come(&server, &ids).await;
    let messages = server.messages();
    let ours = messages.iter().find(|message| message["text"].as_str().unwrap().contains("takes calls"));
    let ours = ours.expect("Kiln's own log came, too");
    assert_eq!((&ours["priority"], &ours["app"]), (&"30".into(), &"kiln".into()));
    let theirs = messages.iter().find(|message| message["kind"] == "lines").unwrap();
    assert_eq!((&theirs["priority"], &theirs["app"]), (&"14".into(), &"told".into()));

    server.stop();
    ids.extend(calls(&kiln, &function, 20).await);
    eventually("the lines are in the spool", async || {
        let spooled = spooled(&node);
        ids[10..].iter().all(|id| spooled.contains(&format!("{id} {LINES}")))
    })
    .await;
    kiln.kill();
    let kiln = node.start_with(&options);
    ids.extend(calls(&kiln, &function, 5).await);
    server.begin().await;
    all_come(&server, &ids).await;
    kiln.stop();
}

#[tokio::test]
async fn a_changed_syslog_url_applies_to_the_next_call_and_loses_no_line() {
    let (first, second) = (Server::start().await, Server::start().await);
    let node = Node::with_memory_mib(128);
    let kiln = node.start();
    let url = first.tcp();
    let app = kiln.api(Method::POST, "/v2/apps", json!({ "name": "told", "syslog_url": url })).await;
    let app = app["id"].as_str().unwrap();
    let function = kiln.create_function(app, "lines", &example("lines"), json!({})).await;
    let before = calls(&kiln, &function, 5).await;
    let change = json!({ "syslog_url": second.tcp() });
    kiln.api(Method::PUT, &format!("/v2/apps/{app}"), change).await;
    // Edges learn of changes a moment later; no call is lost meanwhile, and each one's log is in one place.
    let mut after = Vec::new();
    eventually("calls are told to the new sink", async || {
        after.extend(calls(&kiln, &function, 1).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
        !came(&second).is_empty()
    })
    .await;
    all_come(&first, &before).await;
    eventually("each call is told to one of them, whole", async || {
        let (first, second) = (came(&first), came(&second));
        after.iter().all(|id| first.get(id).or(second.get(id)) == Some(&LINES))
    })
    .await;
    kiln.stop();
}
