//! Call records and logs: from the agents' sink to `/v2/fns/{fn_id}/calls` (`spec/api-v2.md`, part 8).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use jiff::Timestamp;
use kiln_api::{RecordWriter, Retention};
use kiln_shared::call::Refusal;
use kiln_shared::ids::{AppId, CallId, FunctionId, NodeId, TriggerId};
use kiln_shared::queue::{NewMessage, Outcome, Queue, Reserve, Retry, RetryPolicy, Settlement};
use kiln_shared::record::{CallRecord, CallStatus, LogChunk, Record, RecordSink};
use kiln_shared::story::{Candidate, NodeTimes, Placement, Reason, RefusedTry, Story};
use kiln_testkit::until;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{Answer, Api, DATABASE_AWAY, TEXT};

/// A function with a writer of its calls.
struct Calls {
    api: Api,
    app_id: AppId,
    function_id: FunctionId,
    sink: RecordSink,
    stop: CancellationToken,
    writer: JoinHandle<()>,
}

impl Calls {
    async fn new() -> Self {
        Self::keeping(Retention::default()).await
    }

    async fn keeping(retention: Retention) -> Self {
        let api = Api::new().await;
        let app = api.app("a").await;
        let function = api.function(&app, "f").await;
        let (sink, records) = RecordSink::bounded(10_000);
        let stop = CancellationToken::new();
        let (writer, _) = RecordWriter::new(api.catalog.clone(), retention);
        let writer = tokio::spawn(writer.run(records, stop.clone()));
        let (app_id, function_id) = (app.parse().expect("an id"), function.parse().expect("an id"));
        Self { api, app_id, function_id, sink, stop, writer }
    }

    /// A call that succeeded, made `second` seconds after 1970.
    fn record(&self, second: i64) -> CallRecord {
        let at = |millis: i64| Timestamp::from_millisecond(second * 1000 + millis).expect("a time");
        CallRecord {
            id: CallId::generate(),
            app_id: self.app_id,
            function_id: self.function_id,
            trigger_id: None,
            status: CallStatus::Success,
            error: None,
            created_at: at(0),
            started_at: Some(at(1)),
            completed_at: at(25),
            cold: false,
            story: Story::default(),
        }
    }

    /// Sends a record of a call; its id.
    fn call(&self, second: i64) -> CallId {
        let record = self.record(second);
        let id = record.id;
        self.sink.send(Record::Call(record));
        id
    }

    fn log(&self, call_id: CallId, text: &str) {
        static PARTS: AtomicI64 = AtomicI64::new(0);
        let (app_id, function_id) = (self.app_id, self.function_id);
        let part = PARTS.fetch_add(1, Ordering::Relaxed);
        self.sink.send(Record::Log(LogChunk { call_id, app_id, function_id, part, text: text.to_owned() }));
    }

    /// Lets the writer finish what was sent.
    async fn drained(self) -> Api {
        self.stop.cancel();
        self.writer.await.expect("no panic");
        self.api
    }

    fn path(&self) -> String {
        format!("/v2/fns/{}/calls", self.function_id)
    }
}

async fn ids(api: &Api, path: &str) -> Vec<String> {
    let json = api.get(path).await.ok().json();
    let items = json["items"].as_array().expect("items").clone();
    items.iter().map(|call| call["id"].as_str().expect("an id").to_owned()).collect()
}

async fn log(api: &Api, path: &str, call: CallId, accept: &str) -> Answer {
    let request = Request::get(format!("{path}/{call}/log")).header("accept", accept);
    api.send(request.body(Body::empty()).expect("a request")).await
}

#[tokio::test]
async fn a_call_is_shown_in_fns_form() {
    let calls = Calls::new().await;
    let trigger = TriggerId::generate();
    let failed = CallRecord {
        trigger_id: Some(trigger),
        status: CallStatus::Error,
        error: Some("function failed".to_owned()),
        started_at: None,
        cold: true,
        ..calls.record(1_538_306_553)
    };
    let (path, app, function) = (calls.path(), calls.app_id, calls.function_id);
    let succeeded = calls.call(0);
    let failed_id = failed.id;
    calls.sink.send(Record::Call(failed));
    let timed_out = CallRecord { status: CallStatus::Timeout, ..calls.record(2) };
    let timed_out_id = timed_out.id;
    calls.sink.send(Record::Call(timed_out));
    let api = calls.drained().await;
    assert_eq!(
        api.get(&format!("{path}/{succeeded}")).await.ok().body,
        format!(r#"{{"id":"{succeeded}","status":"success","app_id":"{app}","fn_id":"{function}","#)
            + r#""created_at":"1970-01-01T00:00:00.000Z","started_at":"1970-01-01T00:00:00.001Z","#
            + r#""completed_at":"1970-01-01T00:00:00.025Z"}"#
    );
    assert_eq!(
        api.get(&format!("{path}/{failed_id}")).await.ok().body,
        format!(r#"{{"id":"{failed_id}","status":"error","error":"function failed","app_id":"{app}","#)
            + &format!(
                r#""fn_id":"{function}","trigger_id":"{trigger}","created_at":"2018-09-30T11:22:33.000Z","#
            )
            + r#""completed_at":"2018-09-30T11:22:33.025Z","cold":true}"#
    );
    assert_eq!(api.get(&format!("{path}/{timed_out_id}")).await.ok().text("/status"), "timeout");
}

#[tokio::test]
async fn calls_are_listed_newest_first_in_pages() {
    let calls = Calls::new().await;
    let mut sent: Vec<String> = (0..7).map(|second| calls.call(second).to_string()).collect();
    sent.reverse();
    let path = calls.path();
    let api = calls.drained().await;
    assert_eq!(ids(&api, &path).await, sent);
    let mut paged = Vec::new();
    let mut next = format!("{path}?per_page=3");
    loop {
        let page = api.get(&next).await.ok();
        paged.extend(ids(&api, &next).await);
        let Some(cursor) = page.json().get("next_cursor").cloned() else { break };
        next = format!("{path}?per_page=3&cursor={}", cursor.as_str().expect("a text"));
    }
    assert_eq!(paged, sent);
}

#[tokio::test]
async fn times_select_calls_strictly_between() {
    let calls = Calls::new().await;
    for second in [10, 20, 30] {
        calls.call(second);
    }
    let path = calls.path();
    let api = calls.drained().await;
    for (query, count) in [
        ("from_time=10", 2),
        ("from_time=9", 3),
        ("to_time=30", 2),
        ("to_time=31", 3),
        ("from_time=10&to_time=30", 1),
        ("from_time=30", 0),
        ("from_time=-5", 3),
        ("from_time=&to_time=", 3),
    ] {
        assert_eq!(ids(&api, &format!("{path}?{query}")).await.len(), count, "{query}");
    }
    for text in ["x", "1.5", "2018-09-30T11:22:33Z", "999999999999999"] {
        api.get(&format!("{path}?from_time={text}")).await.refused(400, "from_time is not an epoch time");
        api.get(&format!("{path}?to_time={text}")).await.refused(400, "to_time is not an epoch time");
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let calls = Calls::new().await;
    let call = calls.call(1);
    let path = calls.path();
    let api = calls.drained().await;
    let other = CallId::generate();
    api.get("/v2/fns/unknown/calls").await.refused(404, "Fn not found");
    api.get(&format!("{path}/{other}")).await.refused(404, "Call not found");
    api.get(&format!("{path}/{other}/log")).await.refused(404, "Call log not found");
    let foreign = format!("/v2/fns/{}/calls/{call}", FunctionId::generate());
    api.get(&foreign).await.refused(404, "Call not found");
    api.get(&format!("{foreign}/log")).await.refused(404, "Call log not found");
}

#[tokio::test]
async fn pieces_of_a_log_are_joined_in_order_before_and_after_the_call() {
    let calls = Calls::new().await;
    let record = calls.record(1);
    let (id, path) = (record.id, calls.path());
    calls.log(id, "one\n");
    calls.log(id, "two <é>\n");
    until("the pieces are stored on their own", async || {
        let answer = calls.api.get(&format!("{path}/{id}/log")).await;
        answer.refused(404, "Call log not found");
        let stored = calls.sink.clone();
        stored.send(Record::Call(calls.record(0)));
        (!ids(&calls.api, &path).await.is_empty()).then_some(())
    })
    .await;
    calls.sink.send(Record::Call(record));
    calls.log(id, "three");
    let quiet = calls.call(2);
    let api = calls.drained().await;
    assert_eq!(
        api.get(&format!("{path}/{id}/log")).await.ok().body,
        format!(r#"{{"message":"Successfully loaded log","log":{{"call_id":"{id}","log":"#)
            + r#""one\ntwo \u003cé\u003e\nthree"}}"#
    );
    assert_eq!(api.get(&format!("{path}/{quiet}/log")).await.ok().json()["log"]["log"], "");
}

#[tokio::test]
async fn accept_chooses_the_form_of_a_log() {
    let calls = Calls::new().await;
    let (call, path) = (calls.call(1), calls.path());
    calls.log(call, "a\nb");
    let api = calls.drained().await;
    for accept in
        ["", "application/json", "*/*", "text/html, */*;q=0.1", "text/plain, application/json;q=0.5"]
    {
        assert_eq!(log(&api, &path, call, accept).await.ok().json()["log"]["log"], "a\nb", "{accept}");
    }
    for accept in ["text/plain", "text/plain;charset=utf-8", "image/png, TEXT/PLAIN"] {
        let expected = Answer { status: 200, content_type: TEXT.to_owned(), body: "a\nb".to_owned() };
        assert_eq!(log(&api, &path, call, accept).await, expected, "{accept}");
    }
    for accept in ["image/png", "text/*", "application/xml"] {
        let answer = log(&api, &path, call, accept).await;
        answer.refused(406, "unable to respond within acceptable response content types");
    }
}

#[tokio::test]
async fn a_call_is_visible_soon_without_any_end() {
    let calls = Calls::new().await;
    let (call, path) = (calls.call(1), calls.path());
    let found = async || (calls.api.get(&format!("{path}/{call}")).await.status == 200).then_some(());
    until("the call is stored", found).await;
    calls.drained().await;
}

#[tokio::test]
async fn a_call_recorded_twice_is_kept_once() {
    let calls = Calls::new().await;
    let record = calls.record(1);
    let path = calls.path();
    let again = CallRecord { status: CallStatus::Timeout, ..record.clone() };
    calls.sink.send(Record::Call(record.clone()));
    calls.sink.send(Record::Call(again));
    let api = calls.drained().await;
    assert_eq!(ids(&api, &path).await, [record.id.to_string()]);
    assert_eq!(api.get(&format!("{path}/{}", record.id)).await.ok().text("/status"), "success");
}

#[tokio::test]
async fn a_call_that_was_tried_again_ends_as_its_last_attempt_did() {
    let calls = Calls::new().await;
    let path = calls.path();
    let first = CallRecord { status: CallStatus::Error, error: Some("no".to_owned()), ..calls.record(1) };
    let second = CallRecord { status: CallStatus::Timeout, id: first.id, ..calls.record(5) };
    let last = CallRecord { id: first.id, cold: true, ..calls.record(9) };
    let other = CallRecord { id: CallId::generate(), ..first.clone() };
    // Together in a batch, one after the other, and an old one again at the end.
    for record in [&other, &first, &second] {
        calls.sink.send(Record::Call(record.clone()));
    }
    let status = async |id: CallId| calls.api.get(&format!("{path}/{id}")).await;
    until("the first batch is stored", async || (status(first.id).await.status == 200).then_some(())).await;
    assert_eq!(status(first.id).await.ok().text("/status"), "timeout");
    for record in [&last, &first] {
        calls.sink.send(Record::Call(record.clone()));
    }
    let api = calls.drained().await;
    let shown = api.get(&format!("{path}/{}", first.id)).await.ok().json();
    assert_eq!((&shown["status"], shown.get("error")), (&json!("success"), None));
    assert_eq!((&shown["created_at"], &shown["cold"]), (&json!("1970-01-01T00:00:09.000Z"), &json!(true)));
    assert_eq!(api.get(&format!("{path}/{}", other.id)).await.ok().text("/status"), "error");
    assert_eq!(ids(&api, &path).await.len(), 2);
}

/// A queue in a file, and an API that looks into it.
async fn with_queue(calls: &Calls, folder: &TempDir) -> (Arc<dyn Queue>, Api) {
    let url = format!("sqlite://{}", folder.path().join("queue.db").display());
    let queue = kiln_queue::open(&url, kiln_queue::Options::default()).await.expect("a file can be made");
    let state = kiln_api::ApiState {
        queue: Some(Arc::clone(&queue)),
        ..kiln_api::ApiState::new(calls.api.catalog.clone())
    };
    (queue, Api::with(state))
}

#[tokio::test]
async fn a_detached_call_is_shown_from_its_acceptance_to_its_end() {
    let (calls, folder) = (Calls::new().await, tempfile::tempdir().expect("a folder"));
    let (queue, api) = with_queue(&calls, &folder).await;
    let call = calls.record(1);
    let path = format!("{}/{}", calls.path(), call.id);
    let retry = RetryPolicy { attempts_max: 2, ..RetryPolicy::default() };
    let message = NewMessage { retry, ..NewMessage::new(call.id, calls.function_id, calls.app_id, "x") };
    queue.enqueue(vec![message]).await.expect("stored");
    let shown = api.get(&path).await.ok().json();
    assert_eq!((&shown["status"], shown.get("completed_at")), (&json!("queued"), None));
    let settle = async |error: &str| {
        let reserve = Reserve::new("w", 1, Duration::from_secs(30));
        let receipt = queue.reserve(reserve).await.expect("asked")[0].receipt;
        assert_eq!(api.get(&path).await.ok().text("/status"), "running");
        let retry = Retry::After(Duration::ZERO);
        let outcome = Outcome::Failed { error: error.to_owned(), retry };
        queue.settle(vec![Settlement { receipt, outcome }]).await.expect("settled");
    };
    settle("broken").await;
    let failed = CallRecord { status: CallStatus::Error, error: Some("broken".to_owned()), ..call.clone() };
    calls.sink.send(Record::Call(failed));
    until("its record is stored", async || (!ids(&api, &calls.path()).await.is_empty()).then_some(())).await;
    let again = api.get(&path).await.ok();
    assert_eq!((again.text("/status"), again.text("/error")), ("queued".to_owned(), "broken".to_owned()));
    settle("broken again").await;
    let dead = api.get(&path).await.ok();
    assert_eq!((dead.text("/status"), dead.text("/error")), ("dead".to_owned(), "broken again".to_owned()));

    let late = NewMessage {
        delay: Duration::from_hours(1),
        ..NewMessage::new(CallId::generate(), calls.function_id, calls.app_id, "x")
    };
    let late_path = format!("{}/{}", calls.path(), late.id);
    let id = late.id;
    queue.enqueue(vec![late]).await.expect("stored");
    assert_eq!(api.get(&late_path).await.ok().text("/status"), "delayed");
    queue.cancel(id).await.expect("cancelled");
    assert_eq!(api.get(&late_path).await.ok().text("/status"), "cancelled");
    let foreign = format!("/v2/fns/{}/calls/{id}", FunctionId::generate());
    api.get(&foreign).await.refused(404, "Call not found");
    api.get(&format!("{}/no-id", calls.path())).await.refused(404, "Call not found");
}

#[tokio::test]
async fn without_the_queue_what_ended_is_told_and_the_rest_is_not_denied() {
    let (calls, folder) = (Calls::new().await, tempfile::tempdir().expect("a folder"));
    let (queue, api) = with_queue(&calls, &folder).await;
    let (ended, path) = (calls.call(1), calls.path());
    calls.drained().await;
    queue.close().await;
    assert_eq!(api.get(&format!("{path}/{ended}")).await.ok().text("/status"), "success");
    let unknown = api.get(&format!("{path}/{}", CallId::generate())).await;
    assert_eq!(unknown.status, 503);
    assert!(unknown.text("/message").starts_with("the queue cannot be reached: "), "{unknown:?}");
}

#[tokio::test]
async fn everything_sent_before_the_end_is_stored() {
    let calls = Calls::new().await;
    for second in 0..2_345 {
        let id = calls.call(second);
        calls.log(id, "x");
    }
    let (path, writer_ended) = (calls.path(), calls.stop.clone());
    let api = calls.drained().await;
    assert!(writer_ended.is_cancelled());
    let mut count = 0;
    let mut next = format!("{path}?per_page=100");
    loop {
        let page = api.get(&next).await.ok().json();
        count += page["items"].as_array().expect("items").len();
        let Some(cursor) = page.get("next_cursor").and_then(Value::as_str) else { break };
        next = format!("{path}?per_page=100&cursor={cursor}");
    }
    assert_eq!(count, 2_345);
}

#[tokio::test]
async fn the_writer_ends_when_all_sinks_are_gone() {
    let Calls { api, sink, writer, function_id, app_id, stop } = Calls::new().await;
    let chunk = LogChunk { call_id: CallId::generate(), app_id, function_id, part: 0, text: "x".to_owned() };
    sink.send(Record::Log(chunk));
    drop(sink);
    tokio::time::timeout(Duration::from_secs(20), writer).await.expect("it ends").expect("no panic");
    assert!(!stop.is_cancelled());
    api.get("/v2/apps").await.ok();
}

#[tokio::test]
async fn only_the_newest_calls_and_their_logs_are_kept() {
    let calls = Calls::keeping(Retention { calls_max: 1_000, ..Retention::default() }).await;
    let mut sent = Vec::new();
    for second in 0..3_000 {
        let id = calls.call(second);
        calls.log(id, "log");
        sent.push(id);
    }
    let path = calls.path();
    let api = calls.drained().await;
    let kept = async |id: CallId| api.get(&format!("{path}/{id}")).await.status == 200;
    for id in &sent[2_000..] {
        assert!(kept(*id).await, "the newest are kept");
    }
    let mut older = 0;
    for id in &sent[..2_000] {
        older += u32::from(kept(*id).await);
    }
    assert!(older <= 600, "{older} calls too many: at most a tenth and one batch more");
    api.get(&format!("{path}/{}", sent[0])).await.refused(404, "Call not found");
    assert_eq!(log(&api, &path, sent[2_999], "text/plain").await.body, "log");
}

#[tokio::test]
async fn the_oldest_logs_go_first_when_they_are_too_many_bytes() {
    let retention = Retention { log_bytes_max: 100_000, call_log_bytes_max: 1_000, ..Retention::default() };
    let calls = Calls::keeping(retention).await;
    let text = "x".repeat(700);
    let mut sent = Vec::new();
    for second in 0..1_500 {
        let id = calls.call(second);
        calls.log(id, &text);
        calls.log(id, &text);
        sent.push(id);
    }
    let path = calls.path();
    let api = calls.drained().await;
    assert_eq!(
        log(&api, &path, sent[1_499], "text/plain").await.body.len(),
        1_000,
        "cut at the call's bound"
    );
    let mut bytes = 0;
    for id in &sent {
        let answer = log(&api, &path, *id, "text/plain").await;
        assert_eq!(answer.status, 200, "calls stay");
        bytes += answer.body.len();
    }
    assert!(bytes <= 500_000, "{bytes} bytes: at most a tenth and one batch of 1000 bytes each more");
    assert_eq!(log(&api, &path, sent[0], "text/plain").await.body, "", "the oldest log is gone");
}

#[tokio::test]
async fn calls_and_logs_go_with_their_function() {
    let calls = Calls::new().await;
    let (call, path) = (calls.call(1), calls.path());
    calls.log(call, "secret");
    let (app, function) = (calls.app_id, calls.function_id);
    let api = calls.drained().await;
    assert_eq!(api.delete(&format!("/v2/fns/{function}")).await.status, 204);
    api.get(&path).await.refused(404, "Fn not found");
    api.get(&format!("{path}/{call}")).await.refused(404, "Call not found");
    api.get(&format!("{path}/{call}/log")).await.refused(404, "Call log not found");
    assert_eq!(api.delete(&format!("/v2/apps/{app}")).await.status, 204);
}

#[tokio::test]
async fn an_empty_list_of_calls_has_items() {
    let calls = Calls::new().await;
    let path = calls.path();
    let answer = calls.api.get(&path).await.ok();
    assert_eq!(answer.json(), json!({"items": []}));
}

#[tokio::test]
async fn the_writer_ends_though_the_store_takes_nothing() {
    let calls = Calls::new().await;
    calls.api.catalog.close().await;
    for second in 0..2_000 {
        calls.call(second);
    }
    let path = calls.path();
    let drained = tokio::time::timeout(Duration::from_secs(20), calls.drained());
    let api = drained.await.expect("it ends");
    api.get(&path).await.refused(503, DATABASE_AWAY);
}

/// Each part of a story, with its bounds and odd characters.
fn whole_story() -> Story {
    let placement = Placement {
        balancer: "lb-\u{e9}".into(),
        reason: Some(Reason::WarmSpill),
        asked: 3,
        calls: u32::MAX,
        tries: 2,
        refused: vec![RefusedTry {
            node: NodeId::new("node \0 \"1\""),
            reason: Reason::WarmHome,
            calls: 0,
            refusal: Refusal::UnknownFunction,
        }],
        waits: 1,
        waited: Duration::from_micros(1_234_567),
        before: Duration::from_micros(u64::MAX),
    };
    let candidate = Candidate {
        node: NodeId::new("node-1"),
        rank: 0,
        state: "up".into(),
        calls: 4,
        calls_max: 4,
        idle: 0,
        starting: 1,
        queued: 2,
        memory_free_mib: -64,
        has_image: true,
        is_near: true,
        offer: None,
        against: vec!["no room".into()],
        is_chosen: false,
    };
    let [queue, start, run, whole] = [1, 2, 3, 6].map(Duration::from_micros);
    Story {
        node: Some(NodeId::new("node-2")),
        placement: Some(placement),
        times: Some(NodeTimes { queue, start, run, whole }),
        candidates: vec![candidate],
    }
}

#[tokio::test]
async fn what_became_of_a_call_is_kept_and_told_by_its_id_alone() {
    let calls = Calls::new().await;
    let told = CallRecord { story: whole_story(), cold: true, ..calls.record(1) };
    let (id, path) = (told.id, calls.path());
    calls.sink.send(Record::Call(told));
    let silent = calls.call(2);
    let api = calls.drained().await;
    let why = api.get(&format!("/kiln/v1/calls/{id}/why")).await.ok().json();
    assert_eq!((&why["function"], &why["call"]["id"]), (&json!("a/f"), &json!(id.to_string())));
    assert_eq!(why["call"]["cold"], json!(true));
    assert_eq!(serde_json::from_value::<Story>(why["story"].clone()).expect("a story"), whole_story());
    let why = api.get(&format!("/kiln/v1/calls/{silent}/why")).await.ok().json();
    assert_eq!(why["story"], json!({}));
    // Fn's own paths show calls as Fn does.
    let call = api.get(&format!("{path}/{id}")).await.ok().json();
    assert!(call.get("story").is_none(), "{call}");
    for unknown in [CallId::generate().to_string(), "x".to_owned(), "%27".to_owned()] {
        api.get(&format!("/kiln/v1/calls/{unknown}/why")).await.refused(404, "Call not found");
    }
}
