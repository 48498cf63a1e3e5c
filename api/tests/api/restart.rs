//! What outlives a restart.

use kiln_api::{RecordWriter, Retention};
use kiln_shared::ids::CallId;
use kiln_shared::record::{CallRecord, CallStatus, LogChunk, Record, RecordSink};
use kiln_shared::story::Story;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::{Api, Shared};

#[tokio::test]
async fn the_catalog_outlives_a_restart() {
    let database = Shared::new().await;
    let api = Api::open(&database.url).await;
    let app = api.post("/v2/apps", &json!({"name": "a", "config": {"K": "V"}})).await.ok().text("/id");
    let function = api.function(&app, "f").await;
    api.trigger(&app, &function, "t", "/t").await;
    let before = api.catalog.snapshot().await.expect("a snapshot");
    api.catalog.close().await;

    let again = Api::open(&database.url).await;
    assert_eq!(again.catalog.snapshot().await.expect("a snapshot"), before);
    assert_eq!(again.catalog.subscribe().borrow().revision, 3);
    again.post("/v2/apps", &json!({"name": "a"})).await.refused(409, "App already exists");
    again.app("b").await;
    assert_eq!(again.catalog.subscribe().borrow().revision, 4);
}

#[tokio::test]
async fn pieces_of_a_log_are_in_order_and_once_whoever_stores_them_and_when() {
    let database = Shared::new().await;
    let call_id = CallId::generate();
    let mut function = String::new();
    for (part, text) in [(3, "third"), (1, "first "), (2, "second "), (1, "first ")] {
        let api = Api::open(&database.url).await;
        if function.is_empty() {
            let app = api.app("a").await;
            function = api.function(&app, "f").await;
        }
        let (sink, records) = RecordSink::bounded(1_000);
        let chunk = |call_id, text: &str| {
            let (app_id, function_id) =
                (kiln_shared::ids::AppId::generate(), function.parse().expect("an id"));
            LogChunk { call_id, app_id, function_id, part, text: text.to_owned() }
        };
        sink.send(Record::Log(chunk(call_id, text)));
        let now = jiff::Timestamp::now();
        sink.send(Record::Call(CallRecord {
            id: call_id,
            app_id: kiln_shared::ids::AppId::generate(),
            function_id: function.parse().expect("an id"),
            trigger_id: None,
            status: CallStatus::Success,
            error: None,
            created_at: now,
            started_at: None,
            completed_at: now,
            cold: false,
            story: Story::default(),
        }));
        let stop = CancellationToken::new();
        stop.cancel();
        RecordWriter::new(api.catalog.clone(), Retention::default()).0.run(records, stop).await;
        api.catalog.close().await;
    }
    let api = Api::open(&database.url).await;
    let answer = api.get(&format!("/v2/fns/{function}/calls/{call_id}/log")).await.ok();
    assert_eq!(answer.json()["log"]["log"], "first second third");
}
