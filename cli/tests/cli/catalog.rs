//! `kiln catalog`: the catalog out of a database and into another.

use std::os::unix::fs::PermissionsExt as _;

use kiln_testkit::mariadb;
use serde_json::json;

use crate::support::Home;

const CATALOG: &str = r#"{"kiln_catalog":{"form":1,"kiln":"0.1.0","database":"d","revision":7}}
{"app":{"id":"01J00000000000000000000001","name":"demo","created_at":"2026-01-02T03:04:05.000Z","updated_at":"2026-01-02T03:04:05.000Z"}}
{"removed_node":{"name":"node7","removed_at":1}}
{"end":{"lines":2}}
"#;

#[test]
fn a_catalog_is_imported_and_exported_again() {
    let home = Home::new();
    home.write("catalog.jsonl", CATALOG);
    let imported = home.json("catalog import --db-url sqlite://one.db --file catalog.jsonl");
    assert_eq!(imported, json!({ "apps": 1, "functions": 0, "triggers": 0 }));
    home.ok("catalog export --db-url sqlite://one.db --file again.jsonl");
    let again = home.read("again.jsonl");
    let (given, exported): (Vec<_>, Vec<_>) = (CATALOG.lines().collect(), again.lines().collect());
    assert_eq!(given[1..], exported[1..]);
    let mode = std::fs::metadata(home.path().join("again.jsonl")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "configuration may hold secrets");
    // On standard output there is nothing else.
    assert_eq!(home.ok("catalog export --db-url sqlite://one.db"), again);
    let taken = home.fails(1, "catalog export --db-url sqlite://one.db --file again.jsonl");
    assert!(taken.contains("cannot make again.jsonl"), "{taken}");
}

#[test]
fn what_cannot_be_imported_says_why_and_changes_nothing() {
    let home = Home::new();
    home.write("catalog.jsonl", CATALOG);
    home.ok("catalog import --db-url sqlite://one.db --file catalog.jsonl");
    let again = home.fails(1, "catalog import --db-url sqlite://one.db --file catalog.jsonl");
    assert!(again.contains("has apps already") && again.contains("--replace"), "{again}");
    home.ok("catalog import --db-url sqlite://one.db --file catalog.jsonl --replace");
    home.write("cut.jsonl", &CATALOG[..CATALOG.len() - 20]);
    let cut = home.fails(1, "catalog import --db-url sqlite://two.db --file cut.jsonl");
    assert!(cut.contains("cut off after line 3"), "{cut}");
    assert!(!home.path().join("two.db").exists(), "nothing is made before the catalog was read");
    let missing = home.fails(1, "catalog export --db-url sqlite://three.db");
    assert!(missing.contains("there is no database three.db"), "{missing}");
    assert!(!home.path().join("three.db").exists());
    let away = home.fails(1, "catalog export --db-url mysql://me:secret@127.0.0.1:1/kiln");
    assert!(away.contains("cannot be reached") && !away.contains("secret"), "{away}");
}

#[tokio::test]
async fn a_catalog_moves_from_a_file_to_a_server() {
    let server = mariadb::Server::start().await;
    let url = server.database().await;
    let home = Home::new();
    home.write("catalog.jsonl", CATALOG);
    home.ok("catalog import --db-url sqlite://one.db --file catalog.jsonl");
    let exported = home.ok("catalog export --db-url sqlite://one.db");
    home.kiln("catalog import").env("FN_DB_URL", &url).write_stdin(exported.clone()).assert().success();
    let moved = home.ok(&format!("catalog export --db-url {url}"));
    assert_eq!(moved.lines().skip(1).collect::<Vec<_>>(), exported.lines().skip(1).collect::<Vec<_>>());
}
