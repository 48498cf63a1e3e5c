//! The catalog on a real MariaDB server: the same suite as on SQLite, and what only a server does.

mod conflicts;
mod outage;
mod schema;
mod tls;
mod urls;

use kiln_testkit::mariadb::Server;

use crate::databases::{Given, the_suite_passes};

#[tokio::test]
async fn the_suite_passes_on_mariadb() {
    let server = Server::start().await;
    the_suite_passes(&Given::Mariadb(server.address()));
}
