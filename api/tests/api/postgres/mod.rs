//! The catalog on a real Postgres server: the same suite as on SQLite, and what only a server does.

mod outage;
mod schema;
mod tls;
mod urls;

use kiln_testkit::postgres::Server;

use crate::databases::{Given, the_suite_passes};

#[tokio::test]
async fn the_suite_passes_on_postgres() {
    let server = Server::start().await;
    the_suite_passes(&Given::Postgres(server.address.clone()));
}
