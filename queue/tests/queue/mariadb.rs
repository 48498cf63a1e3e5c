//! The queue on a real MariaDB server.

use std::sync::Arc;

use kiln_queue::{OpenError, Options, open};
use kiln_shared::queue::Settled;
use kiln_testkit::mariadb::Server;
use kiln_testkit::until;
use sqlx::{AssertSqlSafe, Executor};

use crate::conformance;
use crate::outage::{self, Killable, Line};

/// Facts at the same time.
const AT_ONCE: usize = 4;

/// The name in a URL.
fn database(url: &str) -> &str {
    url.split(['/', '?']).nth(3).expect("a name")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_passes() {
    let server = Server::start().await;
    conformance::run_all(AT_ONCE, || server.database()).await;
}

impl Killable for Server {
    async fn begin(&mut self) {
        Server::begin(self).await;
    }

    fn kill(&mut self) {
        self.stop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_server_is_killed() {
    let mut server = Server::start().await;
    let url = server.database().await;
    outage::nothing_acknowledged_is_lost(&mut server, &url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_cut_off_holds_up_nobody() {
    let server = Server::start().await;
    let direct = server.database().await;
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let url = direct.replace(&server.socket().display().to_string(), &socket.display().to_string());
    let line = Line::new(socket, server.socket());
    outage::a_process_that_is_cut_off_holds_up_nobody(line, &url, &direct).await;
}

#[tokio::test]
async fn a_lock_held_too_long_is_waited_for_again() {
    let server = Server::start().await;
    let url = server.database().await;
    let queue = open(&url, Options::default()).await.expect("it opens");
    let mut admin = server.connect("mysql").await.expect("the server answers");
    let (mut locked, id) = outage::locked(&queue, server.connect(database(&url))).await;
    let settled = tokio::spawn(outage::done(Arc::clone(&queue), id));
    until("it waits a second time", async || {
        let waits: i64 = sqlx::query_scalar(
            "SELECT CAST(variable_value AS SIGNED) FROM information_schema.global_status \
             WHERE variable_name = 'innodb_row_lock_waits'",
        )
        .fetch_one(&mut admin)
        .await
        .expect("the server answers");
        (waits > 1).then_some(())
    })
    .await;
    locked.execute("ROLLBACK").await.expect("it is let go");
    assert_eq!(settled.await.expect("it ends"), Ok(vec![Settled::Done]));
}

#[tokio::test]
async fn a_server_that_cannot_serve_now_is_waited_for() {
    let server = Server::start().await;
    let url = server.database().await;
    let database = database(&url);
    let mut admin = server.connect("mysql").await.expect("the server answers");
    let mut run = async |sql: String| {
        admin.execute(AssertSqlSafe(sql)).await.expect("it may");
    };
    run("CREATE USER me@localhost".to_owned()).await;
    let url = url.replacen("root@", "me@", 1);
    let opened = async || open(&url, Options::default()).await;
    let told = opened().await.expect_err("it has no rights");
    let grant = format!("GRANT ALL ON `{database}`.* TO 'me'@");
    assert!(matches!(&told, OpenError::Forbidden { .. }) && told.to_string().contains(&grant), "{told}");
    run(format!("GRANT SELECT ON `{database}`.* TO me@localhost")).await;
    let told = opened().await.expect_err("it may make no tables");
    assert!(matches!(&told, OpenError::Forbidden { reason, .. } if reason.contains("CREATE")), "{told}");

    run("GRANT USAGE ON *.* TO me@localhost WITH MAX_CONNECTIONS_PER_HOUR 1".to_owned()).await;
    run("FLUSH USER_RESOURCES".to_owned()).await;
    drop(opened().await);
    let told = opened().await.expect_err("one connection is allowed");
    assert!(matches!(told, OpenError::Unreachable { .. }), "{told}");
    run("GRANT USAGE ON *.* TO me@localhost WITH MAX_CONNECTIONS_PER_HOUR 0".to_owned()).await;
    run(format!("{grant}localhost")).await;
    opened().await.expect("that is enough");
}

#[tokio::test]
async fn what_is_wrong_is_said_in_one_line_without_secrets() {
    let server = Server::start().await;
    let mut admin = server.connect("mysql").await.expect("the server answers");
    admin.execute("CREATE USER me@localhost IDENTIFIED BY 'other'").await.expect("a user");
    let refused = async |url: &str| open(url, Options::default()).await.expect_err(url).to_string();
    let socket = server.socket();
    let socket = socket.display();

    let said = refused(&server.url("nowhere")).await;
    let expected =
        format!("queue mysql nowhere at {socket} has no database 'nowhere'; create it, or check the URL");
    assert_eq!(said, expected);
    let said = refused(&format!("mysql://me:s3cret@localhost/mysql?socket={socket}")).await;
    assert!(said.starts_with(&format!("queue mysql mysql at {socket} refuses: Access denied")), "{said}");
    assert!(!said.contains("s3cret"), "{said}");
    let said = refused("mysql://me:s3cret@127.0.0.1:1/kiln").await;
    assert!(said.starts_with("queue mysql kiln at 127.0.0.1:1 cannot be reached: "), "{said}");
    for url in
        ["mysql://me:s3cret@host", "mysql://me:s3cret@host/db?pass=s3cret", "mysql://me:s3cret@host:x/db"]
    {
        let said = refused(url).await;
        assert!(said.starts_with("the queue's URL cannot be used: ") && !said.contains("s3cret"), "{said}");
    }
}
