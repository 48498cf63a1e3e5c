//! The queue on a real Postgres server.

use std::sync::Arc;

use kiln_queue::{OpenError, Options, open};
use kiln_shared::queue::{QueueError, Settled};
use kiln_testkit::postgres::Server;
use kiln_testkit::until;
use sqlx::Executor;

use crate::conformance;
use crate::outage::{self, Killable, Line};

/// Facts at the same time.
const AT_ONCE: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_passes() {
    let server = Server::start().await;
    conformance::run_all(AT_ONCE, || server.address.database()).await;
}

impl Killable for Server {
    async fn begin(&mut self) {
        Server::begin(self).await;
    }

    fn kill(&mut self) {
        Server::kill(self);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_server_is_killed() {
    let mut server = Server::start().await;
    let url = server.address.url("postgres");
    outage::nothing_acknowledged_is_lost(&mut server, &url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_cut_off_holds_up_nobody() {
    let server = Server::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let line = Line::new(folder.path().join(".s.PGSQL.5432"), server.address.0.join(".s.PGSQL.5432"));
    let url = format!("postgres://postgres@localhost/postgres?host={}", folder.path().display());
    outage::a_process_that_is_cut_off_holds_up_nobody(line, &url, &server.address.url("postgres")).await;
}

#[tokio::test]
async fn what_was_cut_short_by_the_server_may_be_said_again() {
    let server = Server::start().await;
    let queue = open(&server.address.url("postgres"), Options::default()).await.expect("it opens");
    let (mut locked, id) = outage::locked(&queue, server.address.connect("postgres")).await;
    let settled = tokio::spawn(outage::done(Arc::clone(&queue), id));
    let canceled =
        "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    until("it waits for the lock", async || (server.query(canceled) != "0").then_some(())).await;
    let told = settled.await.expect("it ends");
    assert!(matches!(&told, Err(QueueError::Unavailable(why)) if why.contains("canceling")), "{told:?}");
    locked.execute("ROLLBACK").await.expect("it is let go");
    assert_eq!(outage::done(queue, id).await, Ok(vec![Settled::Done]));
}

#[tokio::test]
async fn a_server_that_cannot_serve_now_is_waited_for() {
    let server = Server::start().await;
    server.query("CREATE ROLE me LOGIN CONNECTION LIMIT 0");
    let url = server.address.url("postgres").replacen("postgres@", "me@", 1);
    let told = open(&url, Options::default()).await.expect_err("no connection is allowed");
    assert!(matches!(told, OpenError::Unreachable { .. }), "{told}");

    server.query("ALTER ROLE me CONNECTION LIMIT -1");
    let told = open(&url, Options::default()).await.expect_err("it may make no tables").to_string();
    let grant = r#"GRANT CREATE ON SCHEMA public TO "me""#;
    let expected = format!("permission denied for schema public; have an administrator run: {grant}");
    assert!(told.ends_with(&expected), "{told}");
    server.query(grant);
    open(&url, Options::default()).await.expect("that is enough");
}

#[tokio::test]
async fn what_is_wrong_is_said_in_one_line_without_secrets() {
    let server = Server::start().await;
    let mut admin = server.address.connect("postgres").await.expect("the server answers");
    admin.execute("CREATE ROLE me PASSWORD 'other'").await.expect("a role that may not log in");
    let refused = async |url: &str| open(url, Options::default()).await.expect_err(url).to_string();
    let folder = server.address.0.display();

    let said = refused(&server.address.url("nowhere")).await;
    assert_eq!(
        said,
        format!("queue postgres nowhere at {folder} has no database 'nowhere'; create it, or check the URL")
    );
    let said = refused(&format!("postgres://me:s3cret@localhost/postgres?host={folder}")).await;
    assert!(said.starts_with(&format!("queue postgres postgres at {folder} refuses: role \"me\"")), "{said}");
    let said = refused("postgres://me:s3cret@127.0.0.1:1/kiln").await;
    assert!(said.starts_with("queue postgres kiln at 127.0.0.1:1 cannot be reached: "), "{said}");
    for url in [
        "postgres://me:s3cret@host",
        "postgres://me:s3cret@host/db?pass=s3cret",
        "postgres://me:s3cret@host:x/db",
    ] {
        let said = refused(url).await;
        assert!(said.starts_with("the queue's URL cannot be used: ") && !said.contains("s3cret"), "{said}");
    }

    let mut admin = server.address.connect("postgres").await.expect("the server answers");
    drop(open(&server.address.url("postgres"), Options::default()).await.expect("it opens"));
    admin
        .execute("INSERT INTO queue_migrations VALUES (99, 'later', now(), true, 'x', 1)")
        .await
        .expect("a row");
    let said = refused(&server.address.url("postgres")).await;
    assert!(said.contains("cannot be brought to this version's schema"), "{said}");
}
