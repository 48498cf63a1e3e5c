//! The facts of [`crate::outage`] on Postgres.

use std::any::Any;

use kiln_testkit::postgres::Server;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::outage::{self, Breakable};

impl Breakable for Server {
    async fn database(&self) -> String {
        self.address.database().await
    }

    async fn begin(&mut self) {
        Server::begin(self).await;
    }

    fn stop(&mut self) {
        Server::stop(self);
    }

    fn freeze(&self) {
        Server::freeze(self);
    }

    fn thaw(&self) {
        Server::thaw(self);
    }

    async fn lock_feed(&self, url: &str) -> Box<dyn Any> {
        let mut stuck = PgConnection::connect(url).await.expect("the server answers");
        stuck.execute("SET idle_in_transaction_session_timeout = '5s'").await.expect("as Kiln sets it");
        stuck.execute("BEGIN; SELECT 1 FROM feed FOR UPDATE").await.expect("the lock");
        Box::new(stuck)
    }

    async fn run(&self, url: &str, statements: &[&str]) {
        let mut admin = PgConnection::connect(url).await.expect("the server answers");
        for statement in statements {
            admin.execute(AssertSqlSafe((*statement).to_owned())).await.expect("it runs");
        }
    }
}

#[tokio::test]
async fn a_server_that_ends_is_a_503_and_is_found_again() {
    outage::a_server_that_ends_is_a_503_and_is_found_again(Server::start().await).await;
}

#[tokio::test]
async fn a_server_that_hangs_is_a_503_in_time() {
    outage::a_server_that_hangs_is_a_503_in_time(Server::start().await).await;
}

#[tokio::test]
async fn a_catalog_opens_before_its_server_and_finds_it() {
    outage::a_catalog_opens_before_its_server_and_finds_it(Server::start().await).await;
}

#[tokio::test]
async fn logs_are_whole_though_the_server_was_away_when_they_came_first() {
    outage::logs_are_whole_though_the_server_was_away_when_they_came_first(Server::start().await).await;
}

#[tokio::test]
async fn who_holds_the_lock_for_long_delays_changes_alone_and_loses_it() {
    outage::who_holds_the_lock_for_long_delays_changes_alone_and_loses_it(Server::start().await).await;
}

#[tokio::test]
async fn a_database_that_went_back_is_told_to_followers() {
    outage::a_database_that_went_back_is_told_to_followers(Server::start().await).await;
}
