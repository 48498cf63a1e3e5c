//! A balancer without nodes, and nodes without a balancer.

use std::time::{Duration, Instant};

use reqwest::StatusCode;

use crate::fleet::Fleet;
use crate::images::example;

#[tokio::test]
#[ignore = "takes the machine for itself, and root: make test-fleet"]
async fn a_balancer_without_a_node_says_so_and_when_to_come_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let database = format!("sqlite://{}", folder.path().join("kiln.db").display());
    let fleet = Fleet::start(1, 0, &database).await;
    let function = fleet.create(0, "fleet", &example("hello")).await;
    let begun = Instant::now();
    let answer = fleet.client.post(fleet.url(0, &format!("/invoke/{function}"))).body("Kiln").send();
    let answer = answer.await.expect("the balancer answers");
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let after: u64 = answer.headers()["retry-after"].to_str().expect("text").parse().expect("seconds");
    assert!((1..=60).contains(&after), "{after} s");
    let text = answer.text().await.expect("text");
    println!("a balancer without a node answers after {:.1?}: {text}", begun.elapsed());
    assert!(text.contains("no node is up"), "{text}");
    assert_eq!(fleet.ok(&["nodes", "--output", "json"]).trim(), "[]");
    let said = fleet.kiln(0, &["nodes"]);
    assert!(String::from_utf8_lossy(&said.stderr).contains("no node is linked; start kiln-agent"));
}

#[tokio::test]
#[ignore = "takes the machine for itself, and root: make test-fleet"]
async fn an_agent_without_a_balancer_keeps_its_containers_and_says_that_nobody_calls() {
    let folder = tempfile::tempdir().expect("a folder");
    let database = format!("sqlite://{}", folder.path().join("kiln.db").display());
    let mut fleet = Fleet::start(2, 1, &database).await;
    let function = fleet.deploy("fleet", &example("hello")).await;
    let warm = fleet.containers(0);
    assert!(!warm.is_empty());
    assert_eq!(fleet.status(0, "/ready").await.status(), StatusCode::OK);
    for balancer in &mut fleet.balancers {
        balancer.kill();
    }
    let noticed = fleet
        .until("the agent says that no balancer is linked", async |fleet| {
            fleet.status(0, "/ready").await.status() == StatusCode::SERVICE_UNAVAILABLE
        })
        .await;
    let text = fleet.status(0, "/ready").await.text().await.expect("text");
    assert!(text.contains("no balancer is linked"), "{text}");
    assert_eq!(fleet.status(0, "/health").await.status(), StatusCode::OK, "it lives");
    fleet.agents[0].until_logged("no link to a balancer; trying again, containers are kept");
    let links = fleet.agents_metric("kiln_links", "").await;
    assert_eq!(links, 0);
    // Tries that fail, one after the other.
    let failures = async |fleet: &Fleet| fleet.agents_metric("kiln_link_failures_total", "").await;
    let before = failures(&fleet).await;
    fleet.until("it tries again", async |fleet| failures(fleet).await >= before + 2).await;
    assert_eq!(fleet.containers(0), warm, "its containers are kept");

    for balancer in &mut fleet.balancers {
        balancer.start();
    }
    let begun = Instant::now();
    // A call waits for the node; the connections of the balancer's earlier life are gone.
    fleet.until("the balancer answers", async |fleet| fleet.invoke(0, &function).await.is_some()).await;
    assert_eq!(fleet.invoke(0, &function).await, Some(StatusCode::OK));
    let back = begun.elapsed();
    fleet.until_all_up("the node is back").await;
    assert_eq!(fleet.status(0, "/ready").await.status(), StatusCode::OK);
    assert_eq!(fleet.containers(0), warm, "the container from before serves");
    println!(
        "an agent without balancers: noticed after {noticed:.0?}; a call {back:.0?} after their start is answered"
    );
    assert!(back < Duration::from_secs(20), "answered after {back:?}");
}
