//! The queue on a real MariaDB server.

use kiln_queue::{Options, open};
use kiln_testkit::mariadb::Server;
use sqlx::Executor;

use crate::conformance;
use crate::outage::{self, Killable};

/// Facts at the same time.
const AT_ONCE: usize = 4;

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
