//! The facts of [`crate::schema`] on Postgres.

use kiln_api::{Catalog, OpenError};
use kiln_testkit::postgres::Server;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};

use crate::schema;

async fn run(url: &str, statement: &str) {
    let mut admin = PgConnection::connect(url).await.expect("the server answers");
    admin.execute(AssertSqlSafe(statement.to_owned())).await.expect("it runs");
}

async fn make_oldest(url: &str) {
    let pool = PgPool::connect(url).await.expect("the server answers");
    schema::oldest("postgres").await.run(&pool).await.expect("the schema");
    pool.close().await;
}

#[tokio::test]
async fn another_versions_database_is_left_alone() {
    let server = Server::start().await;
    let (newer, other) = (server.address.database().await, server.address.database().await);
    schema::a_newer_database_is_left_alone(&newer, async |statement: &str| {
        run(&newer, statement).await;
    })
    .await;
    schema::a_database_with_another_history_is_left_alone(&other, async |statement: &str| {
        run(&other, statement).await;
    })
    .await;
}

#[tokio::test]
async fn an_older_database_is_brought_up_to_date() {
    let server = Server::start().await;
    let url = server.address.database().await;
    make_oldest(&url).await;
    schema::an_older_database_is_brought_up_to_date(&url, async |statement: &str| {
        run(&url, statement).await;
    })
    .await;
}

#[tokio::test]
async fn a_user_who_may_not_change_an_older_schema_is_told_so() {
    let server = Server::start().await;
    let url = server.address.url("postgres");
    make_oldest(&url).await;
    for statement in [
        "CREATE ROLE writer LOGIN",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO writer",
    ] {
        run(&url, statement).await;
    }
    let error = Catalog::open(&url.replace("postgres@", "writer@")).await.expect_err("it may not");
    let text = error.to_string();
    assert!(
        matches!(error, OpenError::NotUpgraded { .. } | OpenError::Refused { .. })
            && text.contains("permission denied"),
        "{error:?}"
    );
}
