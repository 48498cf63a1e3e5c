//! The queue on a real MariaDB server.

use kiln_testkit::mariadb::Server;

use crate::conformance;

/// Facts at the same time.
const AT_ONCE: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_passes() {
    let server = Server::start().await;
    conformance::run_all(AT_ONCE, || server.database()).await;
}
