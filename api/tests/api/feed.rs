//! The feed of changes that the balancer follows.

use std::collections::BTreeMap;

use kiln_api::{Change, Latest, Snapshot, StoreError};
use kiln_shared::model::{AppInput, from_json};
use serde_json::{Value, json};

use crate::support::Api;

/// A copy of the catalog that is kept current by changes alone.
#[derive(Debug, Default, PartialEq)]
struct Copy {
    revision: u64,
    resources: BTreeMap<String, Value>,
}

impl Copy {
    fn of(snapshot: Snapshot) -> Self {
        let mut copy = Self { revision: snapshot.revision, ..Self::default() };
        snapshot.apps.into_iter().for_each(|app| copy.apply(Change::App(app)));
        snapshot.functions.into_iter().for_each(|function| copy.apply(Change::Function(function)));
        snapshot.triggers.into_iter().for_each(|trigger| copy.apply(Change::Trigger(trigger)));
        copy
    }

    fn apply(&mut self, change: Change) {
        let value = |resource| serde_json::to_value(resource).expect("JSON");
        match change {
            Change::App(app) => self.resources.insert(app.id.to_string(), value(json!(app))),
            Change::Function(function) => {
                self.resources.insert(function.id.to_string(), value(json!(function)))
            }
            Change::Trigger(trigger) => self.resources.insert(trigger.id.to_string(), value(json!(trigger))),
            Change::AppGone(id) => self.resources.remove(id.as_str()),
            Change::FunctionGone(id) => self.resources.remove(id.as_str()),
            Change::TriggerGone(id) => self.resources.remove(id.as_str()),
        };
    }

    async fn follow(&mut self, api: &Api) -> usize {
        let news = api.catalog.changes_since(self.revision).await.expect("known changes");
        let count = news.changes.len();
        news.changes.into_iter().for_each(|change| self.apply(change));
        self.revision = news.revision;
        count
    }
}

async fn snapshot(api: &Api) -> Copy {
    Copy::of(api.catalog.snapshot().await.expect("a snapshot"))
}

#[tokio::test]
async fn an_empty_catalog_is_at_revision_zero() {
    let api = Api::new().await;
    let snapshot = api.catalog.snapshot().await.expect("a snapshot");
    assert_eq!(snapshot, Snapshot { database: snapshot.database.clone(), ..Snapshot::default() });
    assert_eq!(*api.catalog.subscribe().borrow(), Latest { revision: 0, sight: 1 });
    assert_eq!(Copy::default().follow(&api).await, 0);
}

#[tokio::test]
async fn following_the_feed_gives_the_snapshot_after_every_step() {
    let api = Api::new().await;
    let mut copy = Copy::default();
    let app = api.app("a").await;
    assert_eq!(copy.follow(&api).await, 1);
    let (f, g) = (api.function(&app, "f").await, api.function(&app, "g").await);
    let trigger = api.trigger(&app, &f, "t", "/t").await;
    api.trigger(&app, &g, "u", "/u").await;
    assert_eq!(copy.follow(&api).await, 4);
    assert_eq!(copy, snapshot(&api).await);

    api.put(&format!("/v2/apps/{app}"), &json!({"config": {"K": "V"}})).await.ok();
    api.put(&format!("/v2/fns/{f}"), &json!({"image": "new"})).await.ok();
    api.put(&format!("/v2/fns/{f}"), &json!({"image": "newer"})).await.ok();
    api.put(&format!("/v2/triggers/{trigger}"), &json!({"source": "/v"})).await.ok();
    assert_eq!(copy.follow(&api).await, 3, "two changes of one function are one");
    assert_eq!(copy, snapshot(&api).await);

    assert_eq!(api.delete(&format!("/v2/fns/{f}")).await.status, 204);
    assert_eq!(copy.follow(&api).await, 2);
    assert_eq!(copy, snapshot(&api).await);
    assert_eq!(api.delete(&format!("/v2/apps/{app}")).await.status, 204);
    assert_eq!(copy.follow(&api).await, 3, "the app, its function and its trigger");
    assert!(copy.resources.is_empty());
    assert_eq!(copy, snapshot(&api).await);
}

#[tokio::test]
async fn changes_come_owners_first() {
    let api = Api::new().await;
    let app = api.app("a").await;
    let function = api.function(&app, "f").await;
    api.trigger(&app, &function, "t", "/t").await;
    api.put(&format!("/v2/apps/{app}"), &json!({"config": {"K": "V"}})).await.ok();
    let changes = api.catalog.changes_since(0).await.expect("known changes").changes;
    assert!(matches!(changes[..], [Change::App(_), Change::Function(_), Change::Trigger(_)]), "{changes:?}");
}

#[tokio::test]
async fn what_changes_nothing_is_no_change() {
    let api = Api::new().await;
    let app = api.app("a").await;
    let path = format!("/v2/fns/{}", api.function(&app, "f").await);
    let before = snapshot(&api).await.revision;
    api.put(&path, &json!({"memory": 128, "image": ""})).await.ok();
    api.put(&path, &json!({"memory": 9999}))
        .await
        .refused(400, "memory value is out of range. It should be between 0 and 8192");
    api.post("/v2/apps", &json!({"name": "a"})).await.refused(409, "App already exists");
    assert_eq!(snapshot(&api).await.revision, before);
}

#[tokio::test]
async fn subscribers_hear_of_the_newest_revision() {
    let api = Api::new().await;
    let mut notices = api.catalog.subscribe();
    let app = api.app("a").await;
    notices.changed().await.expect("the catalog lives");
    assert_eq!(notices.borrow_and_update().revision, 1);
    api.function(&app, "f").await;
    api.function(&app, "g").await;
    notices.wait_for(|latest| latest.revision == 3).await.expect("the catalog lives");
    assert_eq!(*api.catalog.subscribe().borrow(), Latest { revision: 3, sight: 1 });
}

#[tokio::test]
async fn revisions_only_grow_under_parallel_writes() {
    let api = Api::new().await;
    let mut notices = api.catalog.subscribe();
    let writes: Vec<_> = (0..24)
        .map(|number| {
            let api = api.clone();
            tokio::spawn(async move { api.app(&format!("a{number}")).await })
        })
        .collect();
    let mut seen = 0;
    while seen < 24 {
        notices.changed().await.expect("the catalog lives");
        let revision = notices.borrow_and_update().revision;
        assert!(revision > seen);
        seen = revision;
    }
    for write in writes {
        write.await.expect("no panic");
    }
    let mut copy = Copy::default();
    assert_eq!(copy.follow(&api).await, 24);
}

#[tokio::test]
async fn who_is_too_far_behind_is_told_to_take_a_snapshot() {
    let api = Api::new().await;
    let app = api.app("a").await;
    for number in 0..5_119 {
        let change = json!({"config": {"N": number.to_string()}});
        let input: AppInput = from_json(change.to_string().as_bytes()).expect("an update");
        api.catalog.update_app(&app, &input).await.expect("an update");
    }
    let newest = snapshot(&api).await.revision;
    assert_eq!(newest, 5_120);
    for behind in [0, 1, 1_023] {
        let error = api.catalog.changes_since(behind).await.expect_err("forgotten");
        assert!(matches!(error, StoreError::RevisionUnknown(since) if since == behind), "{error:?}");
    }
    assert_eq!(api.catalog.changes_since(1_024).await.expect("kept").changes.len(), 1);
    assert_eq!(api.catalog.changes_since(newest).await.expect("kept").changes.len(), 0);
    // A copy that is ahead is of another database.
    let error = api.catalog.changes_since(newest + 1).await.expect_err("never given");
    assert!(matches!(error, StoreError::RevisionUnknown(_)), "{error:?}");
}
