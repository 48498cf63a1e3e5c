//! The queue in a file.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use kiln_queue::{Options, open};
use kiln_shared::ids::{AppId, CallId, FunctionId};
use kiln_shared::queue::{NewMessage, Reserve};
use kiln_testkit::until;
use tempfile::TempDir;

use crate::conformance::for_each_fact;

/// The URL of a file in `home` that is not there yet.
fn url(home: &TempDir) -> String {
    format!("sqlite://{}", home.path().join("new/folder/queue.db").display())
}

macro_rules! tests {
    ($($theme:ident { $($fact:ident)* })*) => {
        $(mod $theme {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $fact() {
                let home = tempfile::tempdir().expect("a folder");
                let name = concat!(stringify!($theme), "::", stringify!($fact));
                crate::conformance::run_one(name, crate::conformance::Bench::new(super::url(&home))).await;
            })*
        })*
    };
}
for_each_fact!(tests);

/// Where the process that is to be killed shall enqueue; absent, the test is the one that kills it.
const GIVEN: &str = "KILN_TEST_QUEUE_URL";

fn message(function: FunctionId) -> NewMessage {
    let app: AppId = "01M2APP0000000000000000000".parse().expect("an id");
    NewMessage::new(CallId::generate(), function, app, "hello")
}

/// Enqueues for ever from many callers, and writes each id that was acknowledged.
async fn enqueue_until_killed(url: &str) {
    let queue = open(url, Options::default()).await.expect("the queue opens");
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let queue = std::sync::Arc::clone(&queue);
        callers.spawn(async move {
            let function = FunctionId::generate();
            loop {
                let enqueued = queue.enqueue(vec![message(function)]).await.expect("stored");
                println!("acknowledged {}", enqueued[0].id());
            }
        });
    }
    callers.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    if let Ok(url) = std::env::var(GIVEN) {
        return enqueue_until_killed(&url).await;
    }
    let home = tempfile::tempdir().expect("a folder");
    let url = url(&home);
    for round in 1..4 {
        let mut process = Command::new(std::env::current_exe().expect("a test has a program"))
            .args([
                "--exact",
                "sqlite::nothing_acknowledged_is_lost_when_the_process_is_killed",
                "--nocapture",
            ])
            .env(GIVEN, &url)
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs");
        let mut acknowledged = Vec::new();
        for line in BufReader::new(process.stdout.take().expect("it is piped")).lines() {
            // The last line may be cut.
            let line = line.expect("text");
            let id = line.split_once("acknowledged ").and_then(|(_, id)| id.parse::<CallId>().ok());
            acknowledged.extend(id);
            if acknowledged.len() == 200 * round {
                process.kill().expect("it is ours");
            }
        }
        process.wait().expect("it is ours");
        assert!(acknowledged.len() >= 200 * round);
        let queue = open(&url, Options::default()).await.expect("the queue opens");
        let mut found = std::collections::HashSet::new();
        until("all are found", async || {
            let taken =
                queue.reserve(Reserve::new("worker", 1000, Duration::from_mins(1))).await.expect("an answer");
            found.extend(taken.iter().map(|reserved| reserved.receipt.id));
            taken.is_empty().then_some(())
        })
        .await;
        assert!(acknowledged.iter().all(|id| found.contains(id)), "round {round}");
        queue.close().await;
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_file_is_said_in_one_line() {
    let home = tempfile::tempdir().expect("a folder");
    let refused = async |path: &Path| {
        let url = format!("sqlite://{}", path.display());
        open(&url, Options::default()).await.expect_err("it does not open").to_string()
    };
    let text = home.path().join("text");
    std::fs::write(&text, "no database at all, but long enough to be looked at as one").expect("written");
    let said = refused(&text).await;
    assert!(said.starts_with(&format!("queue file {} cannot be opened: ", text.display())), "{said}");
    let said = refused(home.path()).await;
    assert!(said.contains("cannot be written") && said.contains("choose another path"), "{said}");
    for url in ["sqlite:", "sqlite://", "sqlite://:memory:", "sqlite://x.db?mode=ro"] {
        let said = open(url, Options::default()).await.expect_err(url).to_string();
        assert!(said.starts_with("the queue's URL cannot be used: "), "{said}");
    }
}
