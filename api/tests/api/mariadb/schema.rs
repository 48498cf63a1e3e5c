//! The facts of [`crate::schema`] on MariaDB, whose changes of schema are no transactions.

use kiln_api::{Catalog, OpenError};
use kiln_testkit::mariadb::Server;
use sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection};

use crate::schema;
use crate::support::Api;

async fn run(url: &str, statement: &str) {
    let mut admin = MySqlConnection::connect(url).await.expect("the server answers");
    admin.execute(AssertSqlSafe(statement.to_owned())).await.expect("it runs");
}

#[tokio::test]
async fn another_versions_database_is_left_alone() {
    let server = Server::start().await;
    let (newer, other) = (server.database().await, server.database().await);
    schema::a_newer_database_is_left_alone(&newer, async |statement: &str| {
        run(&newer, statement).await;
    })
    .await;
    schema::a_database_with_another_history_is_left_alone(&other, async |statement: &str| {
        run(&other, statement).await;
    })
    .await;
}

/// As after a power cut in the middle of it.
#[tokio::test]
async fn an_upgrade_that_was_cut_off_is_done_again() {
    let server = Server::start().await;
    let url = server.database().await;
    Catalog::open(&url).await.expect("opens").close().await;
    run(&url, "UPDATE _sqlx_migrations SET success = false; DROP TABLE schedules; DROP TABLE logs").await;
    let api = Api::open(&url).await;
    let app = api.app("a").await;
    api.function(&app, "f").await;
    api.delete(&format!("/v2/apps/{app}")).await;
    let names = api.get("/v2/apps").await.ok().names();
    assert!(names.is_empty(), "{names:?}");
}

#[tokio::test]
async fn a_user_who_may_not_change_an_older_schema_is_told_so() {
    let server = Server::start().await;
    let url = server.database().await;
    Catalog::open(&url).await.expect("opens").close().await;
    // What was not done shows in the list of steps alone.
    run(&url, "DELETE FROM _sqlx_migrations; DROP TABLE schedules").await;
    let database = url.split(['/', '?']).nth(3).expect("a name");
    for sql in [
        "CREATE USER writer@localhost IDENTIFIED BY 'secret'".to_owned(),
        format!("GRANT SELECT, INSERT, UPDATE, DELETE, LOCK TABLES ON {database}.* TO writer@localhost"),
    ] {
        run(&url, &sql).await;
    }
    let theirs = url.replace("root@", "writer:secret@");
    let error = Catalog::open(&theirs).await.expect_err("it may not");
    let text = error.to_string();
    assert!(
        matches!(error, OpenError::NotUpgraded { .. } | OpenError::Refused { .. })
            && text.contains("command denied")
            && !text.contains("secret"),
        "{error:?}"
    );
}
