//! URLs and servers that cannot be used are errors at the start, without secrets.

use std::time::{Duration, Instant};

use kiln_api::{Catalog, OpenError, StoreError};
use kiln_testkit::mariadb::Server;
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
        "mysql://",
        "mysql://me:secret@db:port/kiln",
        "mysql://me:secret@db",
        "mysql://me:secret@tcp(db:3306)/",
        "mariadb://me:secret@db/kiln?ssl-mode=maybe",
        "mysql://me@db/kiln?passwd=secret",
    ] {
        let text = open_error(url).await;
        assert!(text.contains("mysql://user:password@host:port/database"), "{text}");
        assert!(matches!(Catalog::open(url).await, Err(OpenError::ServerUrl { .. })));
    }
}

#[tokio::test]
async fn a_server_that_refuses_is_an_error_at_the_start() {
    let server = Server::start().await;
    let socket = server.socket().display().to_string();
    let text = open_error(&server.url("missing")).await;
    assert!(text.contains("missing at /") && text.contains("Unknown database"), "{text}");
    let text = open_error(&format!("mysql://nobody:secret@localhost/mysql?socket={socket}")).await;
    assert!(text.contains("Access denied for user 'nobody'") && text.contains("check user"), "{text}");

    let mut admin = server.connect("mysql").await.expect("the server answers");
    for sql in [
        "CREATE DATABASE closed",
        "CREATE USER reader@localhost IDENTIFIED BY 'secret'",
        "GRANT SELECT ON closed.* TO reader@localhost",
    ] {
        admin.execute(sql).await.expect("it is made");
    }
    let text = open_error(&format!("mysql://reader:secret@localhost/closed?socket={socket}")).await;
    assert!(text.contains("command denied"), "{text}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_no_error_at_the_start() {
    let begin = Instant::now();
    // Nobody listens on port 1, the folder is not there, the name has no address.
    for url in [
        "mysql://me:secret@127.0.0.1:1/kiln",
        "mysql://me:secret@tcp(127.0.0.1:1)/kiln",
        "mysql://me:secret@localhost/kiln?socket=/nonexistent",
        "mysql://me:secret@nowhere.invalid/kiln",
    ] {
        let catalog = Catalog::open(url).await.expect(url);
        let error = catalog.snapshot().await.expect_err("nothing is known");
        assert!(matches!(error, StoreError::Unreachable(_)), "{error:?}");
        catalog.close().await;
    }
    assert!(begin.elapsed() < Duration::from_mins(1), "{:?}", begin.elapsed());
}
