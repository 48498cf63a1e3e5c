//! Many callers at once, of a function that nobody has called before.

use std::time::Instant;

use futures_util::future::join_all;
use reqwest::{Client, StatusCode};

use crate::fleet::{FUNCTION_MIB, Fleet, NODE_MIB, PATIENCE};
use crate::images::example;

/// Callers, each with a connection of its own.
const CALLERS: usize = 1000;
/// Containers of the function that a node has room for.
const CONTAINERS_MAX: u64 = NODE_MIB / FUNCTION_MIB;

/// Calls once; the status, whether the answer is the caller's own, and what it says if not.
async fn call(client: Client, url: String, caller: usize) -> Result<(), String> {
    let answer = client.post(url).body(format!("caller {caller}")).send().await;
    let answer = answer.map_err(|error| format!("caller {caller}: {error:?}"))?;
    let status = answer.status();
    let text = answer.text().await.map_err(|error| format!("caller {caller}: {error:?}"))?;
    if status == StatusCode::OK && text == format!("Hello caller {caller}!\n") {
        Ok(())
    } else {
        Err(format!("caller {caller}: {status}: {text}"))
    }
}

#[tokio::test]
#[ignore = "takes the machine for itself, and root: make test-fleet"]
async fn a_thousand_first_calls_at_once_start_few_containers_and_all_are_answered() {
    let folder = tempfile::tempdir().expect("a folder");
    let fleet = Fleet::start(2, 4, &format!("sqlite://{}", folder.path().join("kiln.db").display())).await;
    let function = fleet.create(0, "crowd", &example("hello")).await;
    // Changes are seen in their order: who knows the later function knows this one.
    fleet.deploy("later", &example("hello")).await;
    let starts = async |fleet: &Fleet| {
        fleet.agents_metric("kiln_container_start_duration_seconds_count", "stage=\"start\"").await
    };
    let before = starts(&fleet).await;

    let client = Client::builder().no_proxy().timeout(PATIENCE).build().expect("a client");
    let begun = Instant::now();
    let calls = (0..CALLERS)
        .map(|caller| call(client.clone(), fleet.url(caller % 2, &format!("/invoke/{function}")), caller));
    let failed: Vec<String> = join_all(calls).await.into_iter().filter_map(Result::err).collect();
    let took = begun.elapsed();
    assert!(failed.is_empty(), "{} failed: {:#?}", failed.len(), &failed[..failed.len().min(5)]);

    // Those that were begun while callers waited have started.
    let nothing_starts =
        async |fleet: &Fleet| fleet.agents_metric("kiln_slots", "state=\"starting\"").await == 0;
    fleet.until("no more are being started", nothing_starts).await;
    let started = starts(&fleet).await - before;
    println!("{CALLERS} first calls at once: {took:.1?}, {started} containers started, none failed");
    for agent in 0..fleet.agents.len() {
        let containers = fleet.containers(agent).len() as u64;
        println!("  {}: {containers} containers", fleet.node(agent));
        assert!(containers <= CONTAINERS_MAX, "{} has {containers}", fleet.node(agent));
    }
    let room = CONTAINERS_MAX * fleet.agents.len() as u64;
    assert!((1..=room).contains(&started), "{started} were started");
    let failures = fleet.agents_metric("kiln_container_start_failures_total", "").await;
    assert_eq!(failures, 0);
}
