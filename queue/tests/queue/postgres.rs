//! The queue on a real Postgres server.

use kiln_queue::{Options, open};
use kiln_testkit::postgres::Server;
use sqlx::Executor;

use crate::conformance;
use crate::outage::{self, Killable};

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
