//! The queue on a real Postgres server.

use kiln_testkit::postgres::Server;

use crate::conformance;

/// Facts at the same time.
const AT_ONCE: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_passes() {
    let server = Server::start().await;
    conformance::run_all(AT_ONCE, || server.address.database()).await;
}
