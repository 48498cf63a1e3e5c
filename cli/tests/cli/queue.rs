//! `kiln queue` and the options of `kiln invoke --detach`: what is asked, what is shown.

use serde_json::{Value, json};

use crate::support::{Api, Home};

const CALL: &str = "01M857XH5W1VF3216WYJPN885B";

fn call(state: &str) -> Value {
    json!({
        "id": CALL, "function": "demo/hello", "function_id": "01M857XH5W1VF3216WYJPN8F00",
        "app_id": "01M857XH5W1VF3216WYJPN8A00", "priority": 2, "state": state, "attempts": 3, "attempts_max": 3,
        "created_at": "2026-01-31T09:00:00Z", "due_at": "2026-01-31T09:00:01Z", "deadline_at": null,
        "started_at": "2026-01-31T09:00:02Z", "leased_until": null, "worker": "node7",
        "ended_at": "2026-01-31T09:00:03Z", "last_error": "broken\nmore", "payload_bytes": 5,
    })
}

#[test]
fn the_queue_is_shown_by_function() {
    let api = Api::with_demo();
    let home = Home::with_api(&api);
    let function = json!({
        "fn_id": "01M857XH5W1VF3216WYJPN8F00", "name": "demo/hello", "queued": 7, "delayed": 1, "running": 2, "dead": 3,
        "oldest_seconds": 75.5,
    });
    let queue = json!({
        "queued": 7, "delayed": 1, "running": 2, "dead": 3, "oldest_seconds": 75.5, "functions": [function],
    });
    api.on("GET /kiln/v1/queue", 200, queue.clone());
    assert_eq!(
        home.ok("queue status"),
        "FUNCTION    QUEUED  DELAYED  RUNNING  DEAD  OLDEST\n\
         demo/hello  7       1        2        3     1m\n"
    );
    assert_eq!(home.json("queue status"), queue);
    api.on("GET /kiln/v1/queue", 503, json!({ "message": "the queue cannot be reached: it is away" }));
    assert!(home.fails(1, "queue status").contains("error: the queue cannot be reached: it is away"));
}

#[test]
fn calls_are_listed_by_function_and_state() {
    let api = Api::with_demo();
    let home = Home::with_api(&api);
    let line = "GET /kiln/v1/queue/calls?function=F1&state=dead&per_page=10";
    api.on(line, 200, json!({ "items": [call("dead")] }));
    let said = home.ok("queue list --function demo/hello --state dead -n 10");
    let mut lines = said.lines();
    assert_eq!(
        lines.next().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).as_deref(),
        Some("CALL FUNCTION STATE PRIORITY ATTEMPTS AGE LAST ERROR")
    );
    let row = lines.next().unwrap();
    assert!(
        row.starts_with(CALL) && row.contains("dead") && row.contains("3 of 3") && row.ends_with("broken"),
        "{row}"
    );
    assert!(
        home.fails(2, "queue list --state asleep")
            .contains("queued, delayed, running, done, dead or cancelled")
    );
    assert!(home.fails(2, "queue list --function hello").contains("APP/FUNCTION"));
}

#[test]
fn a_call_is_inspected_and_cancelled_by_its_id() {
    let api = Api::with_demo();
    let home = Home::with_api(&api);
    let path = format!("/kiln/v1/queue/calls/{CALL}");
    api.on(&format!("GET {path}"), 200, call("dead"));
    let said = home.ok(&format!("queue inspect {CALL}"));
    for line in [
        "Function    demo/hello",
        "State       dead",
        "Attempts    3 of 3",
        "Node        node7",
        "Last error  broken",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert_eq!(home.json(&format!("queue inspect {CALL}"))["state"], json!("dead"));
    api.on(&format!("DELETE {path}"), 200, call("cancelled"));
    assert_eq!(home.ok(&format!("queue cancel {CALL}")), format!("{CALL} is cancelled.\n"));
    api.on(
        &format!("DELETE {path}"),
        409,
        json!({ "message": "call X runs; only one that waits can be cancelled" }),
    );
    let said = home.fails(1, &format!("queue cancel {CALL}"));
    assert!(said.contains("only one that waits") && said.contains("kiln queue inspect"), "{said}");
    api.on("GET /kiln/v1/queue/calls/nope", 404, json!({ "message": "call nope is not in the queue" }));
    assert!(home.fails(1, "queue inspect nope").contains("kiln queue list"));
}

#[test]
fn dead_calls_are_put_back() {
    let api = Api::with_demo();
    let home = Home::with_api(&api);
    api.on("POST /kiln/v1/queue/redrive", 200, json!({ "redriven": 1 }));
    assert_eq!(home.ok(&format!("queue redrive {CALL}")), "1 call is queued again.\n");
    assert_eq!(api.last().json(), json!({ "call": CALL }));
    api.on("POST /kiln/v1/queue/redrive", 200, json!({ "redriven": 5 }));
    let said = home.ok("queue redrive --function demo/hello --max 5");
    assert_eq!(said, "5 calls are queued again; there may be more.\n");
    assert_eq!(api.last().json(), json!({ "app": "demo", "function": "hello", "max": 5 }));
    home.fails(2, "queue redrive");
    home.fails(2, &format!("queue redrive {CALL} --function demo/hello"));
    home.fails(2, "queue redrive --function demo/hello --max 1001");
}

#[test]
fn a_detached_call_carries_what_is_asked_of_the_queue() {
    let api = Api::with_demo();
    let home = Home::with_api(&api);
    api.on_raw("POST /invoke/F1", 202, &[("fn-call-id", "C1")], Vec::new());
    let said = home
        .ok("invoke demo hello --detach --delay 5m --priority 2 --idempotency-key order-7 --start-within 1h");
    assert_eq!(said, "Call ID: C1\n");
    let headers = api.last().headers;
    for (name, value) in [
        ("fn-invoke-type", "detached"),
        ("kiln-delay", "300"),
        ("kiln-priority", "2"),
        ("idempotency-key", "order-7"),
        ("kiln-start-within", "3600"),
    ] {
        assert_eq!(headers[name], value, "{name}");
    }
    home.ok("invoke demo hello --detach");
    let headers = api.last().headers;
    assert!(headers.contains_key("fn-invoke-type") && !headers.contains_key("kiln-delay"));
}

#[test]
fn what_is_asked_of_the_queue_needs_a_detached_call() {
    let home = Home::with_api(&Api::with_demo());
    for option in ["--delay 5m", "--priority 1", "--idempotency-key k", "--start-within 1h"] {
        let said = home.fails(2, &format!("invoke demo hello {option}"));
        assert!(said.contains("--detach"), "{option}: {said}");
    }
    home.fails(2, "invoke demo hello --detach --priority 3");
    home.fails(2, "invoke demo hello --detach --delay soon");
}
