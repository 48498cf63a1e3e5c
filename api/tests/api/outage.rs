//! A server goes, hangs, comes back, or is another one: what is said meanwhile, and that all of it ends well. Each
//! fact is one of every server.

use std::time::{Duration, Instant};

use kiln_api::{Catalog, RecordWriter, Retention, StoreOutcome};
use kiln_shared::ids::CallId;
use kiln_shared::model::AppInput;
use kiln_shared::record::{CallRecord, CallStatus, LogChunk, Record, RecordSink};
use kiln_testkit::until;
use serde_json::json;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::support::{Api, DATABASE_AWAY};

/// A server that tests may break.
pub(crate) trait Breakable {
    async fn database(&self) -> String;
    async fn begin(&mut self);
    fn stop(&mut self);
    fn freeze(&self);
    fn thaw(&self);
    /// Runs statements on a connection of their own and stays in the middle of a transaction.
    async fn lock_feed(&self, url: &str) -> Box<dyn std::any::Any>;
    /// Runs statements.
    async fn run(&self, url: &str, statements: &[&str]);
}

/// No request waits longer for a database that does not answer, with room for a busy machine.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

async fn refused_in_time(api: &Api) {
    let begin = Instant::now();
    api.post("/v2/apps", &json!({"name": "lost"})).await.refused(503, DATABASE_AWAY);
    api.get("/v2/apps").await.refused(503, DATABASE_AWAY);
    assert!(begin.elapsed() < 2 * ANSWERED_WITHIN, "{:?}", begin.elapsed());
}

async fn writes_again(api: &Api, name: &str) {
    until("the database is found again", async || {
        let answer = api.post("/v2/apps", &json!({ "name": name })).await;
        (answer.status == 200).then_some(())
    })
    .await;
}

pub(crate) async fn a_server_that_ends_is_a_503_and_is_found_again(mut server: impl Breakable) {
    let url = server.database().await;
    let (api, other) = (Api::open(&url).await, Catalog::open(&url).await.expect("opens"));
    api.app("before").await;
    let sight = other.subscribe().borrow().sight;
    for round in 0..2 {
        server.stop();
        refused_in_time(&api).await;
        server.begin().await;
        writes_again(&api, &format!("after{round}")).await;
    }
    let mut notices = other.subscribe();
    let seen = notices.wait_for(|latest| latest.revision == 3 && latest.sight > sight);
    timeout(Duration::from_secs(20), seen).await.expect("the feed goes on").expect("lives");
    assert_eq!(other.changes_since(1).await.expect("known changes").changes.len(), 2);
    assert_eq!(api.get("/v2/apps").await.ok().names(), ["after0", "after1", "before"]);
}

pub(crate) async fn a_server_that_hangs_is_a_503_in_time(server: impl Breakable) {
    let api = Api::open(&server.database().await).await;
    api.app("before").await;
    server.freeze();
    let begin = Instant::now();
    let requests = (0..20).map(|number| {
        let api = api.clone();
        async move {
            if number % 2 == 0 {
                api.get("/v2/apps").await.refused(503, DATABASE_AWAY);
            } else {
                api.post("/v2/apps", &json!({"name": format!("n{number}")}))
                    .await
                    .refused(503, DATABASE_AWAY);
            }
        }
    });
    futures_util::future::join_all(requests).await;
    assert!(begin.elapsed() < ANSWERED_WITHIN, "{:?}", begin.elapsed());
    // By now it is known to be away, and nobody waits.
    let begin = Instant::now();
    refused_in_time(&api).await;
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    server.thaw();
    writes_again(&api, "after").await;
    // The end does not hang either.
    server.freeze();
    timeout(Duration::from_secs(20), api.catalog.close()).await.expect("it ends");
}

pub(crate) async fn a_catalog_opens_before_its_server_and_finds_it(mut server: impl Breakable) {
    let url = server.database().await;
    server.stop();
    let api = Api::open(&url).await;
    refused_in_time(&api).await;
    let mut notices = api.catalog.subscribe();
    assert_eq!(notices.borrow_and_update().sight, 0);
    server.begin().await;
    timeout(Duration::from_secs(20), notices.wait_for(|latest| latest.sight == 1))
        .await
        .expect("it is found")
        .expect("lives");
    api.app("a").await;
}

/// A batch comes again after an outage, and what it tried then does not count against the log's bound.
pub(crate) async fn logs_are_whole_though_the_server_was_away_when_they_came_first(
    mut server: impl Breakable,
) {
    let api = Api::open(&server.database().await).await;
    let app_id = api.app("a").await;
    let function_id = api.function(&app_id, "f").await;
    let (app_id, function_id) = (app_id.parse().expect("an id"), function_id.parse().expect("an id"));
    let retention = Retention { call_log_bytes_max: 10, ..Retention::default() };
    let (writer, batches) = RecordWriter::new(api.catalog.clone(), retention);
    let (_sink, records) = RecordSink::bounded(1);
    let stop = CancellationToken::new();
    let writer = tokio::spawn(writer.run(records, stop.clone()));
    let now = jiff::Timestamp::now();
    let call_id = CallId::generate();
    let call = CallRecord {
        id: call_id,
        app_id,
        function_id,
        trigger_id: None,
        status: CallStatus::Success,
        error: None,
        created_at: now,
        started_at: None,
        completed_at: now,
        cold: false,
        story: kiln_shared::story::Story::default(),
    };
    let log = LogChunk { call_id, app_id, function_id, part: 1, text: "123456".to_owned() };
    let batch = vec![Record::Call(call), Record::Log(log)];
    server.stop();
    for _ in 0..2 {
        assert_eq!(batches.store(batch.clone()).await, StoreOutcome::NotNow);
    }
    server.begin().await;
    until("the batch is stored", async || {
        (batches.store(batch.clone()).await == StoreOutcome::Stored).then_some(())
    })
    .await;
    let answer = api.get(&format!("/v2/fns/{function_id}/calls/{call_id}/log")).await.ok();
    assert_eq!(answer.json()["log"]["log"], "123456");
    stop.cancel();
    writer.await.expect("no panic");
}

/// A balancer that is cut off in the middle of a change holds the lock that every change needs.
pub(crate) async fn who_holds_the_lock_for_long_delays_changes_alone_and_loses_it(server: impl Breakable) {
    let url = server.database().await;
    let api = Api::open(&url).await;
    let _stuck = server.lock_feed(&url).await;
    let begin = Instant::now();
    api.post("/v2/apps", &json!({"name": "a"})).await.refused(503, DATABASE_AWAY);
    assert!(begin.elapsed() < ANSWERED_WITHIN, "{:?}", begin.elapsed());
    assert_eq!(api.get("/v2/apps").await.ok().names(), [""; 0], "reads go on");
    writes_again(&api, "b").await;
}

/// As after a restore from a backup: the same database, but an earlier state of it.
pub(crate) async fn a_database_that_went_back_is_told_to_followers(server: impl Breakable) {
    let url = server.database().await;
    let catalog = Catalog::open(&url).await.expect("opens");
    for name in ["a", "b", "c"] {
        let input = AppInput { name: name.to_owned(), ..AppInput::default() };
        catalog.create_app(&input).await.expect("created");
    }
    let sight = catalog.subscribe().borrow().sight;
    let past = [
        "DELETE FROM apps WHERE name <> 'a'",
        "DELETE FROM changes WHERE revision > 1",
        "UPDATE feed SET revision = 1",
    ];
    server.run(&url, &past).await;
    let mut notices = catalog.subscribe();
    let told = notices.wait_for(|latest| latest.revision == 1 && latest.sight > sight);
    timeout(Duration::from_secs(20), told).await.expect("told").expect("lives");
    catalog.changes_since(3).await.expect_err("never happened");
    assert_eq!(catalog.snapshot().await.expect("a snapshot").apps.len(), 1);
}
