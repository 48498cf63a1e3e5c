//! Two Kilns on one database: each sees what the other changes, and calls go on while the database is restarted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kiln_testkit::{mariadb, postgres};
use reqwest::{Client, Method};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::images::example;
use super::{Kiln, Node, eventually};

/// Callers of each Kiln.
const CALLERS: usize = 2;
/// Calls that each Kiln answers before the next thing is done to them.
const CALLS: usize = 30;

/// A server of a database that may be restarted.
trait Restarted {
    async fn url(&self) -> String;
    fn stop(&mut self);
    async fn begin(&mut self);
}

impl Restarted for postgres::Server {
    async fn url(&self) -> String {
        self.address.url("postgres")
    }

    fn stop(&mut self) {
        Self::stop(self);
    }

    async fn begin(&mut self) {
        Self::begin(self).await;
    }
}

impl Restarted for mariadb::Server {
    async fn url(&self) -> String {
        self.database().await
    }

    fn stop(&mut self) {
        Self::stop(self);
    }

    async fn begin(&mut self) {
        Self::begin(self).await;
    }
}

/// Callers that never stop, and what they were answered.
struct Load {
    answered: [Arc<AtomicUsize>; 2],
    calling: JoinSet<Vec<String>>,
    stop: CancellationToken,
}

impl Load {
    fn start(urls: &[String; 2]) -> Self {
        let (answered, mut calling, stop) =
            (<[Arc<AtomicUsize>; 2]>::default(), JoinSet::new(), CancellationToken::new());
        for (url, answered) in urls.iter().zip(&answered) {
            for _ in 0..CALLERS {
                calling.spawn(call(url.clone(), Arc::clone(answered), stop.clone()));
            }
        }
        Self { answered, calling, stop }
    }

    /// Waits until both have answered so many calls more.
    async fn goes_on(&self) {
        let before = self.answered.each_ref().map(|answered| answered.load(Ordering::Relaxed));
        eventually("calls go on", async || {
            self.answered
                .iter()
                .zip(before)
                .all(|(now, before)| now.load(Ordering::Relaxed) >= before + CALLS)
        })
        .await;
    }

    /// Ends the load; what was not answered well.
    async fn failures(self) -> Vec<String> {
        self.stop.cancel();
        self.calling.join_all().await.concat()
    }
}

async fn call(url: String, answered: Arc<AtomicUsize>, stop: CancellationToken) -> Vec<String> {
    let client = Client::builder().no_proxy().build().unwrap();
    let mut failures = Vec::new();
    while !stop.is_cancelled() {
        match client.post(&url).body("Ada").send().await {
            Ok(answer) if answer.status() == 200 => {}
            other => failures.push(format!("{other:?}")),
        }
        answered.fetch_add(1, Ordering::Relaxed);
    }
    failures
}

async fn is_served(kiln: &Kiln<'_>, function: &str) -> bool {
    kiln.invoke(function, "Ada").await.status() == 200
}

async fn an_app_is_made(kiln: &Kiln<'_>, name: &str) {
    let mut tries = 0;
    eventually("the database is found again", async || {
        // One that was answered with 503 may have been made all the same: a name of its own for each.
        tries += 1;
        let app = json!({ "name": format!("{name}-{tries}") });
        let request = kiln.client.request(Method::POST, format!("{}/v2/apps", kiln.url)).json(&app);
        request.send().await.unwrap().status() == 200
    })
    .await;
}

async fn two_kilns_share(mut server: impl Restarted) {
    let url = server.url().await;
    let nodes = [Node::with_memory_mib(256), Node::with_memory_mib(256)];
    let [one, other] = nodes.each_ref().map(|node| {
        let mut command = node.command();
        // As a variable, so that the options of the command line are as people write them.
        command.env("FN_DB_URL", &url);
        node.start_as(command)
    });
    let app = one.create_app("shared").await;
    let hello = one.create_function(&app, "hello", &example("hello"), json!({})).await;
    eventually("the other one sees it", async || is_served(&other, &hello).await).await;
    assert!(is_served(&one, &hello).await);

    let load = Load::start(&[&one, &other].map(|kiln| format!("{}/invoke/{hello}", kiln.url)));
    load.goes_on().await;
    server.stop();
    load.goes_on().await;
    for kiln in [&one, &other] {
        eventually("changes are refused", async || {
            let request = kiln.client.get(format!("{}/v2/apps", kiln.url));
            request.send().await.unwrap().status() == 503
        })
        .await;
    }
    load.goes_on().await;
    server.begin().await;
    for kiln in [&one, &other] {
        an_app_is_made(kiln, "after").await;
    }
    // Both ways.
    let made = other.create_function(&app, "later", &example("hello"), json!({})).await;
    eventually("what the other one makes is seen", async || is_served(&one, &made).await).await;
    let removed = one.client.delete(format!("{}/v2/fns/{made}", one.url)).send().await.unwrap();
    assert!(removed.status().is_success(), "{removed:?}");
    eventually("what is removed is gone", async || other.invoke(&made, "Ada").await.status() == 404).await;
    load.goes_on().await;
    assert_eq!(load.failures().await, [""; 0]);
    one.stop();
    other.stop();
}

#[tokio::test]
async fn two_kilns_share_a_postgres_that_is_restarted() {
    two_kilns_share(postgres::Server::start().await).await;
}

#[tokio::test]
async fn two_kilns_share_a_mariadb_that_is_restarted() {
    two_kilns_share(mariadb::Server::start().await).await;
}
