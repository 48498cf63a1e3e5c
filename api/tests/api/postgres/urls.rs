//! URLs and servers that cannot be used are errors at the start, without secrets.

use std::time::{Duration, Instant};

use kiln_api::{Catalog, OpenError, StoreError};
use kiln_testkit::postgres::Server;
use sqlx::Executor;

async fn open_error(url: &str) -> String {
    let error = Catalog::open(url).await.expect_err(url);
    let text = error.to_string();
    assert!(!text.contains('\n') && !text.contains("secret"), "{text}");
    text
}

#[tokio::test]
async fn a_url_that_makes_no_sense_is_an_error_at_the_start() {
    for url in [
        "postgres://",
        "postgres://me:secret@db:port/kiln",
        "postgres://me:secret@db",
        "postgres://me:secret@db/kiln?sslmode=maybe",
        "postgres://me@db/kiln?passwd=secret",
    ] {
        let text = open_error(url).await;
        assert!(text.contains("postgres://user:password@host:port/database"), "{text}");
        assert!(matches!(Catalog::open(url).await, Err(OpenError::ServerUrl { .. })));
    }
}

#[tokio::test]
async fn a_server_that_refuses_is_an_error_at_the_start() {
    let server = Server::start().await;
    let folder = server.address.0.display();
    let text = open_error(&server.address.url("missing")).await;
    assert!(text.contains("missing at /") && text.contains("does not exist"), "{text}");
    let text = open_error(&format!("postgres://nobody:secret@localhost/postgres?host={folder}")).await;
    assert!(text.contains("role \"nobody\" does not exist") && text.contains("check user"), "{text}");

    let mut admin = server.address.connect("postgres").await.expect("the server answers");
    for sql in ["CREATE ROLE reader LOGIN", "CREATE DATABASE closed"] {
        admin.execute(sql).await.expect("it is made");
    }
    let text = open_error(&format!("postgres://reader@localhost/closed?host={folder}")).await;
    assert!(text.contains("permission denied"), "{text}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_no_error_at_the_start() {
    let begin = Instant::now();
    // Nobody listens on port 1, the folder is not there, the name has no address.
    for url in [
        "postgres://me:secret@127.0.0.1:1/kiln",
        "postgres://me:secret@localhost/kiln?host=/nonexistent",
        "postgres://me:secret@nowhere.invalid/kiln",
    ] {
        let catalog = Catalog::open(url).await.expect(url);
        let error = catalog.snapshot().await.expect_err("nothing is known");
        assert!(matches!(error, StoreError::Unreachable(_)), "{error:?}");
        catalog.close().await;
    }
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
}
