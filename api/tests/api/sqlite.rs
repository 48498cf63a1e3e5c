//! Opening SQLite's files, and what a crash leaves of them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use kiln_api::{Catalog, OpenError};
use sqlx::sqlite::SqliteConnectOptions;
use tempfile::TempDir;

use crate::schema;
use crate::support::Api;

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

fn url(path: &Path) -> String {
    format!("sqlite://{}", path.display())
}

async fn open_error(url: &str) -> String {
    let error = Catalog::open(url).await.expect_err("it cannot be opened");
    let text = error.to_string();
    assert!(!text.contains('\n'), "one line: {text}");
    text
}

#[tokio::test]
async fn what_was_answered_is_stored_without_an_orderly_end() {
    let home = directory();
    let path = home.path().join("kiln.db");
    let api = Api::on(Catalog::open(&url(&path)).await.expect("a catalog"));
    api.app("a").await;
    // What a killed process leaves: the files as they are now.
    let copy = home.path().join("copy.db");
    for side in ["", "-wal"] {
        fs::copy(format!("{}{side}", path.display()), format!("{}{side}", copy.display())).expect("a copy");
    }
    let again = Api::on(Catalog::open(&url(&copy)).await.expect("the copy"));
    assert_eq!(again.get("/v2/apps").await.ok().names(), ["a"]);
}

#[tokio::test]
async fn the_database_is_for_its_owner_only() {
    let home = directory();
    let path = home.path().join("kiln.db");
    fs::write(&path, "").expect("a file");
    fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("permissions");
    let api = Api::on(Catalog::open(&url(&path)).await.expect("a catalog"));
    api.app("a").await;
    let mut files = 0;
    for entry in fs::read_dir(home.path()).expect("a directory") {
        let entry = entry.expect("an entry");
        let mode = entry.metadata().expect("metadata").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.path());
        files += 1;
    }
    assert_eq!(files, 3, "the database and SQLite's side files");
}

#[tokio::test]
async fn a_database_that_cannot_be_used_says_which_and_what_to_do() {
    let home = directory();
    let file = home.path().join("file");
    fs::write(&file, "this is no database, but long enough to have a header of a hundred bytes; ".repeat(4))
        .expect("a file");
    for (path, remedy) in [
        (home.path().join("file/kiln.db"), "choose another path"),
        (home.path().to_owned(), "choose another path"),
        (file.clone(), "check that it is a SQLite database"),
        (Path::new("/proc/kiln/kiln.db").to_owned(), "choose another path or make it writable"),
    ] {
        let text = open_error(&url(&path)).await;
        let named = path.parent().is_some_and(|parent| text.contains(&parent.display().to_string()));
        assert!(named && text.contains(remedy), "{path:?}: {text}");
    }
}

#[tokio::test]
async fn urls_of_other_databases_are_refused() {
    for url in [
        "",
        "kiln.db",
        "oracle://me:secret@db/kiln",
        "me:secret@db",
        "sqlite://",
        "sqlite:",
        "sqlite:///a.db?mode=ro",
    ] {
        let text = open_error(url).await;
        assert!(text.contains("sqlite:///path/to/kiln.db") && !text.contains("secret"), "{text}");
        assert!(matches!(Catalog::open(url).await, Err(OpenError::Url(_))));
    }
}

async fn run(path: &Path, statement: &str) {
    let pool = sqlx::SqlitePool::connect(&url(path)).await.expect("the database");
    sqlx::query(sqlx::AssertSqlSafe(statement.to_owned())).execute(&pool).await.expect("it runs");
    pool.close().await;
}

#[tokio::test]
async fn a_database_of_another_version_is_left_alone() {
    let home = directory();
    let (newer, other) = (home.path().join("newer.db"), home.path().join("other.db"));
    schema::a_newer_database_is_left_alone(&url(&newer), async |statement: &str| {
        run(&newer, statement).await;
    })
    .await;
    schema::a_database_with_another_history_is_left_alone(&url(&other), async |statement: &str| {
        run(&other, statement).await;
    })
    .await;
}

#[tokio::test]
async fn an_older_database_is_brought_up_to_date() {
    let home = directory();
    let path = home.path().join("kiln.db");
    let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let pool = sqlx::SqlitePool::connect_with(options).await.expect("the database");
    schema::oldest("sqlite").await.run(&pool).await.expect("the schema");
    pool.close().await;
    schema::an_older_database_is_brought_up_to_date(&url(&path), async |statement: &str| {
        run(&path, statement).await;
    })
    .await;
}
