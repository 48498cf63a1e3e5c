//! The fleet without its database, and with it again.

use std::time::{Duration, Instant};

use kiln_testkit::{mariadb, postgres};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::fleet::Fleet;
use crate::images::example;
use crate::load::{CONNECTIONS, Outcome, SETTLE, tell, under_load};

/// What the API says while the database is away.
const AWAY: &str = "the catalog's database cannot be reached";
/// Longest time for a refusal, with room for a busy machine.
const REFUSED_WITHIN: Duration = Duration::from_secs(10);

/// No balancer takes changes, by API or command line, and each says why.
async fn changes_are_refused(fleet: &Fleet, function: &str) {
    for balancer in 0..fleet.balancers.len() {
        let begun = Instant::now();
        for (method, path, body) in [
            (Method::POST, "/v2/apps".to_owned(), json!({ "name": "lost" })),
            (Method::PUT, format!("/v2/fns/{function}"), json!({ "memory": 96 })),
        ] {
            let request = fleet.client.request(method, fleet.url(balancer, &path)).json(&body);
            let answer = request.send().await.expect("the balancer answers");
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert!(answer.headers().contains_key("retry-after"), "{:?}", answer.headers());
            let text = answer.text().await.expect("text");
            assert!(text.contains(AWAY), "{text}");
        }
        for line in [["create", "app", "lost"], ["list", "functions", "fleet"]] {
            let output = fleet.kiln(balancer, &line);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.code() == Some(1) && said.contains(AWAY), "{line:?}: {said}");
        }
        assert!(begun.elapsed() < 4 * REFUSED_WITHIN, "refused after {:?}", begun.elapsed());
        assert_eq!(fleet.metric(balancer, "kiln_catalog_database_up", "").await, 0);
    }
}

/// Makes an app by a balancer as soon as that takes changes again; how long it took.
async fn changes_are_taken(fleet: &Fleet, balancer: usize) -> Duration {
    let begun = Instant::now();
    fleet
        .until("the database is found again", async |fleet| {
            // One that was answered with 503 may have been made all the same: a name of its own for each.
            let name = format!("after-{balancer}-{}", begun.elapsed().as_nanos());
            fleet.api(balancer, Method::POST, "/v2/apps", &json!({ "name": name })).await.0 == StatusCode::OK
        })
        .await
}

/// A server that is killed, as a power cut would, and started again.
trait Killed {
    /// The database of the fleet.
    fn url(&self) -> String;
    fn kill(&mut self);
    async fn begin(&mut self);
    /// What a query gives.
    fn query(&self, sql: &str) -> String;
}

impl Killed for postgres::Server {
    fn url(&self) -> String {
        self.address.url("postgres")
    }

    fn kill(&mut self) {
        Self::kill(self);
    }

    async fn begin(&mut self) {
        Self::begin(self).await;
    }

    fn query(&self, sql: &str) -> String {
        Self::query(self, sql)
    }
}

impl Killed for mariadb::Server {
    fn url(&self) -> String {
        Self::url(self, "kiln")
    }

    fn kill(&mut self) {
        self.stop();
    }

    async fn begin(&mut self) {
        Self::begin(self).await;
    }

    fn query(&self, sql: &str) -> String {
        Self::query(self, "kiln", sql)
    }
}

#[tokio::test]
#[ignore = "takes the machine for itself, and root: make test-fleet"]
async fn without_its_postgres_a_fleet_serves_what_it_knows_and_converges_afterwards() {
    a_fleet_loses_its_database(postgres::Server::start().await).await;
}

#[tokio::test]
#[ignore = "takes the machine for itself, and root: make test-fleet"]
async fn without_its_mariadb_a_fleet_serves_what_it_knows_and_converges_afterwards() {
    let server = mariadb::Server::start().await;
    server.query("mysql", "CREATE DATABASE kiln");
    a_fleet_loses_its_database(server).await;
}

async fn a_fleet_loses_its_database(mut server: impl Killed) {
    let mut fleet = Fleet::start(2, 4, &server.url()).await;
    let function = fleet.deploy("fleet", &example("hello")).await;
    for balancer in 0..2 {
        let copy = fleet.balancers[balancer].data().join("catalog.copy");
        let holds = |id: &str| std::fs::read(&copy).is_ok_and(|copy| contains(&copy, id.as_bytes()));
        fleet.until("the catalog is on disk", async |_| holds(&function)).await;
    }

    let (mut restart, mut writes, mut converged) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let begun = Instant::now();
    let outcomes = under_load(&mut fleet, &function, async |fleet| {
        server.kill();
        changes_are_refused(fleet, &function).await;
        tokio::time::sleep(SETTLE).await;

        // A balancer that starts meanwhile serves by its copy of the catalog.
        let killed = Instant::now();
        fleet.balancers[0].kill();
        fleet.balancers[0].start();
        fleet.until_callable(0, &function).await;
        restart = killed.elapsed();
        fleet.until_all_up("the balancer knows its nodes again").await;
        changes_are_refused(fleet, &function).await;
        tokio::time::sleep(SETTLE).await;

        server.begin().await;
        for balancer in 0..2 {
            writes += changes_are_taken(fleet, balancer).await;
        }
        // What is made by one balancer can be called by the other.
        for (one, other) in [(0, 1), (1, 0)] {
            let made = fleet.create(one, &format!("by-{one}"), &example("hello")).await;
            converged += fleet.until_callable(other, &made).await;
        }
    })
    .await;
    tell("kill -9 of the database, and its next start", begun.elapsed(), &outcomes);
    println!("  a balancer that was killed meanwhile answers after {restart:.0?} (its start included)");
    println!(
        "  changes are taken {writes:.0?} after the database's start, and seen by the other balancer {converged:.0?} later"
    );
    assert!(outcomes[0].answers_are_clean(), "{:?}", outcomes[0]);
    assert!(outcomes[1].is_clean(), "{:?}", outcomes[1]);

    records_arrive(&fleet, &server, &function, &outcomes).await;
}

/// Every call that was answered has its record, or is counted as one that has none.
async fn records_arrive(fleet: &Fleet, server: &impl Killed, function: &str, outcomes: &[Outcome]) {
    let answered: u64 = outcomes.iter().map(|outcome| outcome.requests).sum();
    let stored = || -> u64 {
        let sql = format!("SELECT count(*) FROM calls WHERE fn_id = '{function}'");
        server.query(&sql).parse().expect("a number")
    };
    let lost = async |fleet: &Fleet| {
        let mut lost = fleet.agents_metric("kiln_records_dropped_total", "").await;
        for balancer in 0..fleet.balancers.len() {
            lost += fleet.metric(balancer, "kiln_records_dropped_total", "").await;
        }
        lost
    };
    fleet
        .until("all records are stored or counted", async |fleet| stored() + lost(fleet).await >= answered)
        .await;
    let (stored, lost) = (stored(), lost(fleet).await);
    println!("  {answered} answers; {stored} records are stored, {lost} were dropped and counted");
    // The first calls, and those whose answers wrk did not wait for at its end or that a killed balancer had.
    assert!(stored <= answered + 16 * CONNECTIONS as u64, "a call is stored twice");
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
