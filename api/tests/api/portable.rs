//! The whole catalog out of one database and into another.

use jiff::Timestamp;
use kiln_api::portable::{self, ImportError};
use kiln_api::{Catalog, Contents, DatabaseId, Existing, StoreError};
use kiln_testkit::{mariadb, postgres};
use serde_json::json;

use crate::support::{Api, Shared};

/// A catalog with some of everything, and texts that databases could take for others.
async fn filled(url: &str) -> Api {
    let api = Api::open(url).await;
    let config =
        json!({"BLANKS": "  a  ", "QUOTES": "'\"`\\%_", "FACE": "😀é\u{7f}", "LINES": "a\nb\\u0000c"});
    let app = json!({"name": "shop", "config": config, "annotations": {"a/b": [1, {"c": null}]}});
    let app = api.post("/v2/apps", &app).await.ok().text("/id");
    let other = api.app("Shop").await;
    for (app, name) in [(&app, "f"), (&app, "F"), (&other, "f")] {
        let function = api.function(app, name).await;
        api.trigger(app, &function, "t", &format!("/{name}/{}", "long".repeat(2_000))).await;
        api.trigger(app, &function, "blank", &format!("/{name} ")).await;
        api.trigger(app, &function, "none", &format!("/{name}")).await;
    }
    let function = api.function(&other, "timed").await;
    let schedule = json!({
        "app_id": other, "fn_id": function, "name": "s", "type": "schedule", "source": "@hourly",
        "annotations": {"kiln.dev/time-zone": "Europe/Vienna"}
    });
    let schedule = api.post("/v2/triggers", &schedule).await.ok().text("/id").parse().expect("an id");
    let tick = [(schedule, Timestamp::from_second(3_600).expect("a time"))];
    api.catalog.claim_ticks(&tick, "lb1", Timestamp::now()).await.expect("claimed");
    api.catalog.ticks_fired(&tick, "lb1").await.expect("fired");
    assert!(api.catalog.remove_node("node7").await.expect("removed"));
    let later = Timestamp::from_second(9_000_000_000).expect("a time");
    assert!(api.catalog.claim_join_token("token1", "node1", later).await.expect("claimed"));
    api
}

fn text(contents: &Contents) -> Vec<u8> {
    let mut text = Vec::new();
    portable::write(contents, &mut text).expect("memory takes all");
    text
}

/// What two databases have in common after a move.
fn moved(mut contents: Contents) -> Contents {
    contents.catalog.database = DatabaseId::default();
    contents.catalog.revision = 0;
    contents
}

async fn restore(catalog: &Catalog, contents: &Contents, existing: Existing) -> Result<(), ImportError> {
    catalog.restore(contents, existing, &|_| {}).await
}

#[tokio::test]
async fn a_catalog_goes_round_all_databases_unchanged() {
    let (postgres, mariadb) = (postgres::Server::start().await, mariadb::Server::start().await);
    let home = tempfile::tempdir().expect("a folder");
    let sqlite = |name: &str| format!("sqlite://{}", home.path().join(name).display());
    let first = filled(&sqlite("first.db")).await;
    let begin = first.catalog.contents().await.expect("contents");
    let mut carried = text(&begin);
    for url in [postgres.address.database().await, mariadb.database().await, sqlite("last.db")] {
        let catalog = Catalog::open(&url).await.expect("opens");
        let contents = portable::read(&*carried).expect("a catalog");
        restore(&catalog, &contents, Existing::Refused).await.expect("an empty database");
        let now = catalog.contents().await.expect("contents");
        assert_ne!(now.catalog.database, begin.catalog.database);
        assert_eq!(moved(now.clone()), moved(begin.clone()), "{url}");
        carried = text(&now);
        // It is a catalog like others.
        let api = Api::on(catalog);
        api.post("/v2/apps", &json!({"name": "shop"})).await.refused(409, "App already exists");
        let app = begin.catalog.apps.iter().find(|app| app.name == "Shop").expect("it is there").id;
        api.delete(&format!("/v2/apps/{app}")).await;
        assert_eq!(api.get("/v2/apps").await.ok().names(), ["shop"]);
        assert_eq!(api.catalog.removed_nodes().await.expect("nodes"), ["node7"]);
    }
}

#[tokio::test]
async fn who_follows_a_database_sees_what_was_imported() {
    let source = Shared::new().await;
    let contents = filled(&source.url).await.catalog.contents().await.expect("contents");
    let target = Shared::new().await;
    let follower = Catalog::open(&target.url).await.expect("opens");
    let api = Api::open(&target.url).await;
    let revision = follower.snapshot().await.expect("a snapshot").revision;
    let mut notices = follower.subscribe();
    restore(&api.catalog, &contents, Existing::Refused).await.expect("taken in");
    let seen = notices.wait_for(|latest| latest.revision > revision);
    tokio::time::timeout(std::time::Duration::from_secs(20), seen).await.expect("told").expect("lives");
    let behind = follower.changes_since(revision).await.expect_err("too much");
    assert!(matches!(behind, StoreError::RevisionUnknown(_)), "{behind:?}");
    let snapshot = follower.snapshot().await.expect("a snapshot");
    assert_eq!((&snapshot.apps, &snapshot.triggers), (&contents.catalog.apps, &contents.catalog.triggers));
    // From there on by changes again.
    api.app("later").await;
    assert_eq!(follower.changes_since(snapshot.revision).await.expect("known").changes.len(), 1);
}

#[tokio::test]
async fn a_database_with_apps_is_replaced_only_if_told_so() {
    let source = Shared::new().await;
    let contents = filled(&source.url).await.catalog.contents().await.expect("contents");
    let api = Api::new().await;
    let app = api.app("mine").await;
    let function = api.function(&app, "f").await;
    api.trigger(&app, &function, "t", "/t").await;
    assert!(api.catalog.remove_node("bad").await.expect("removed"));
    let before = api.catalog.contents().await.expect("contents");
    let refused = restore(&api.catalog, &contents, Existing::Refused).await.expect_err("it has apps");
    assert!(
        matches!(refused, ImportError::NotEmpty) && refused.to_string().contains("--replace"),
        "{refused}"
    );
    assert_eq!(api.catalog.contents().await.expect("contents"), before);

    restore(&api.catalog, &contents, Existing::Replaced).await.expect("replaced");
    assert_eq!(api.catalog.contents().await.expect("contents").catalog.apps, contents.catalog.apps);
    // Whoever was expelled stays out.
    assert_eq!(api.catalog.removed_nodes().await.expect("nodes"), ["bad", "node7"]);
}

#[tokio::test]
async fn what_the_database_refuses_is_not_taken_in_by_half() {
    let source = Shared::new().await;
    let mut contents = filled(&source.url).await.catalog.contents().await.expect("contents");
    for app in &mut contents.catalog.apps {
        "one".clone_into(&mut app.name);
    }
    let api = Api::new().await;
    let mine = api.app("mine").await;
    restore(&api.catalog, &contents, Existing::Replaced).await.expect_err("names are unique");
    assert_eq!(api.get(&format!("/v2/apps/{mine}")).await.ok().text("/name"), "mine");
    assert_eq!(api.get("/v2/apps").await.ok().names(), ["mine"]);
}

#[tokio::test]
async fn what_is_no_whole_catalog_is_refused_by_its_line() {
    let source = Shared::new().await;
    let contents = filled(&source.url).await.catalog.contents().await.expect("contents");
    let whole = text(&contents);
    assert_eq!(portable::read(&*whole).expect("a catalog"), contents);
    // Cut off wherever.
    let line_ends = whole.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at);
    for length in line_ends.chain((0..whole.len()).step_by(499)) {
        let error = portable::read(&whole[..length]).expect_err("it is cut off");
        assert!(matches!(error, ImportError::CutOff { .. } | ImportError::Foreign), "{length}: {error}");
    }
    let lines: Vec<&str> = std::str::from_utf8(&whole).expect("text").lines().collect();
    let (head, app, function, end) = (lines[0], lines[1], lines[3], *lines.last().expect("an end"));
    for (given, expected) in [
        (vec!["{\"name\": \"a\"}"], "no exported catalog"),
        (vec!["{\"kiln_catalog\": {\"form\": 2}}"], "forms up to 1"),
        (vec![head, function, end], "line 2 cannot be used: app"),
        (vec![head, app, app, end], "comes twice"),
        (vec![head, "{\"secret\": {}}", end], "unknown variant `secret`"),
        (vec![head, head, end], "line 2 cannot be used: it does not belong here"),
        (vec![head, end], "lines before it are missing"),
        (vec![head, &app.replace("\"Shop\"", "\"a b\"").replace("\"shop\"", "\"a b\""), end], "line 2"),
    ] {
        let text = given.join("\n") + "\n";
        let error = portable::read(text.as_bytes()).expect_err(&text).to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{expected}: {error}");
    }
}
