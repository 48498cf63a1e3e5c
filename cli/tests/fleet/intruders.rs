//! Agents that are not let in, under load: each is told why, is counted, and disturbs nobody.

use std::fs;

use crate::fleet::Fleet;
use crate::images::example;
use crate::load::{Outcome, under_load};
use crate::part::Part;

/// Waits until the first balancer has counted a refusal for `reason`, and said `words`.
async fn refused(fleet: &Fleet, reason: &str, words: &str) {
    let label = format!("reason=\"{reason}\"");
    fleet
        .until(&format!("a refusal is counted as {reason}"), async |fleet| {
            fleet.metric(0, "kiln_link_refusals_total", &label).await >= 1
        })
        .await;
    let log = fleet.balancers[0].log();
    assert!(log.contains(words), "the balancer did not say {words:?}:\n{log}");
    println!("refused as {reason}");
}

/// Gives `to` the identity of `from`.
fn copy_identity(from: &std::path::Path, to: &Part) {
    let folder = to.data().join("identity");
    fs::create_dir_all(&folder).expect("a folder");
    for file in fs::read_dir(from).expect("an identity").flatten() {
        fs::copy(file.path(), folder.join(file.file_name())).expect("a copy");
    }
}

#[tokio::test]
#[ignore = "takes the machine for itself, and root: make test-fleet"]
async fn agents_that_are_not_let_in_are_told_why_and_disturb_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let database = format!("sqlite://{}", folder.path().join("kiln.db").display());
    let mut fleet = Fleet::start(2, 2, &database).await;
    let function = fleet.deploy("fleet", &example("hello")).await;
    let outcomes = under_load(&mut fleet, &function, async |fleet| {
        // A certificate of another fleet.
        let other = folder.path().join("other").display().to_string();
        let identity = folder.path().join("identity");
        fleet.ok(&["ca", "init", "--ca-dir", &other]);
        let out = identity.display().to_string();
        fleet.ok(&["ca", "issue", "--ca-dir", &other, "--role", "agent", "--name", "foreign", "--out", &out]);
        let mut foreign = fleet.stranger("foreign", &[]);
        copy_identity(&identity, &foreign);
        foreign.begin();
        foreign.until_logged("no link to a balancer; trying again");
        refused(fleet, "handshake", "has the agent joined this fleet?").await;

        // A certificate of this fleet that is no agent's.
        let identity = folder.path().join("balancer");
        let (ca, out) =
            (fleet.folder.path().join("ca").display().to_string(), identity.display().to_string());
        fleet.ok(&["ca", "issue", "--ca-dir", &ca, "--role", "balancer", "--name", "lb9", "--out", &out]);
        let mut role = fleet.stranger("role", &[]);
        copy_identity(&identity, &role);
        role.begin();
        role.until_failed("balancer");

        // A token that was used before, as by a copied disk.
        let mut twice = fleet.joined("twice", &[]);
        fs::remove_dir_all(twice.data().join("identity")).expect("an identity");
        let replayed = fleet.join(&twice, "twice");
        let said = String::from_utf8_lossy(&replayed.stderr).into_owned();
        assert!(!replayed.status.success() && said.contains("was used before"), "{said}");
        refused(fleet, "replayed_token", "may not join").await;

        // The name of a node that lives, as by a copied disk. Here both have one engine: it must not take the other's
        // containers for what an earlier life of its own left.
        copy_identity(&fleet.agents[0].data().join("identity"), &twice);
        twice.begin();
        twice.until_failed("another agent of this machine is called");

        // More than any machine has.
        let mut heavy = fleet.joined("heavy", &["--weight=1073741824"]);
        heavy.begin();
        heavy.until_logged("a weight of 1073741824");
        refused(fleet, "absurd", "a weight of 1073741824").await;
        // Each try is said to be refused, though the agent ends the connection first.
        let log = fleet.balancers[0].log();
        let broken = |line: &&str| line.contains("the link to an agent broke") && line.contains("heavy");
        assert_eq!(log.lines().find(broken), None);
    })
    .await;
    assert!(outcomes.iter().all(Outcome::is_clean), "{outcomes:?}");
    for balancer in 0..2 {
        let mut nodes: Vec<_> =
            fleet.nodes(balancer).await.iter().map(|node| node["id"].to_string()).collect();
        nodes.sort();
        let good = [format!("\"{}\"", fleet.node(0)), format!("\"{}\"", fleet.node(1))];
        assert_eq!(nodes, good, "nobody else is a node");
        assert_eq!(fleet.up(balancer).await, 2);
    }
}
