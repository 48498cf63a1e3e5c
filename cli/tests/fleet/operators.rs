//! What operators see of a fleet that works, and how they take a node out of it.

use std::time::Instant;

use serde_json::Value;

use crate::fleet::{Fleet, NODE_MIB};
use crate::images::example;
use crate::load::{Outcome, SETTLE, tell, under_load};

/// The line of a table that begins with `name`, in words.
fn line<'a>(table: &'a str, name: &str) -> Vec<&'a str> {
    let line = table.lines().find(|line| line.split_whitespace().next() == Some(name));
    line.unwrap_or_else(|| panic!("no line of {name} in:\n{table}")).split_whitespace().collect()
}

fn json(fleet: &Fleet, arguments: &[&str]) -> Value {
    let said = fleet.ok(&[arguments, &["--output", "json"]].concat());
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {said}"))
}

/// `kiln nodes`, `kiln node inspect` and `kiln top`, for people and for programs.
fn the_fleet_is_shown(fleet: &Fleet, warm: usize, function: &str) {
    let name = fleet.node(warm);
    let nodes = fleet.ok(&["nodes"]);
    let headings = ["NODE", "STATE", "FOR", "CALLS", "CONTAINERS", "IDLE", "STARTING"];
    assert!(line(&nodes, "NODE").starts_with(&headings), "{nodes}");
    for agent in 0..fleet.agents.len() {
        assert_eq!(line(&nodes, fleet.node(agent))[1], "up", "{nodes}");
    }
    let containers: u32 = line(&nodes, name)[4].parse().expect("a number");
    assert!(containers >= 1, "{nodes}");
    let listed = json(fleet, &["nodes"]);
    assert_eq!(listed.as_array().expect("a list").len(), fleet.agents.len());
    assert!(
        listed.as_array().expect("a list").iter().all(|node| node["memory_total_mib"] == NODE_MIB),
        "{listed}"
    );

    let shown = fleet.ok(&["node", "inspect", name]);
    for words in [name, "up for", "its agent is heard", "of 512 MiB free", "fleet/f", "REVISION"] {
        assert!(shown.contains(words), "no {words:?} in:\n{shown}");
    }
    let node = json(fleet, &["node", "inspect", name]);
    assert_eq!((&node["id"], &node["state"]), (&Value::from(name), &Value::from("up")));
    let functions = node["functions"].as_array().expect("a list");
    let warm = functions.iter().find(|entry| entry["fn_id"] == function).expect("the function's containers");
    assert!(warm["name"] == "fleet/f" && warm["containers"].as_u64() >= Some(1), "{warm}");
    let unknown = fleet.kiln(0, &["node", "inspect", "nobody"]);
    let said = String::from_utf8_lossy(&unknown.stderr);
    assert!(unknown.status.code() == Some(1) && said.contains("nobody"), "{said}");

    let agents = fleet.agents.len();
    let top = fleet.ok(&["top"]);
    assert!(top.starts_with(&format!("lb1: {agents} of {agents} nodes up, ")), "{top}");
    assert!(top.contains("nodes wanted: ") && top.contains("in use: "), "{top}");
    assert_eq!(line(&top, name)[1], "up", "{top}");
    let top = json(fleet, &["top"]);
    assert_eq!(
        (&top["balancer"], top["nodes"].as_array().map(Vec::len)),
        (&Value::from("lb1"), Some(agents))
    );
    assert!(top["scale"]["desired_nodes"].as_u64() >= Some(1), "{top}");
}

#[tokio::test]
#[ignore = "takes the machine for itself, and root: make test-fleet"]
async fn a_fleet_is_shown_as_it_works_and_a_drained_node_costs_no_call() {
    let folder = tempfile::tempdir().expect("a folder");
    let database = format!("sqlite://{}", folder.path().join("kiln.db").display());
    let mut fleet = Fleet::start(2, 3, &database).await;
    let function = fleet.deploy("fleet", &example("hello")).await;

    // Drained by a command.
    let begun = Instant::now();
    let mut victim = 0;
    let outcomes = under_load(&mut fleet, &function, async |fleet| {
        victim = fleet.warm_agent().await;
        the_fleet_is_shown(fleet, victim, &function);
        let name = fleet.node(victim).to_owned();
        let said = fleet.ok(&["node", "drain", &name, "--wait"]);
        assert_eq!(said, format!("{name} is drained: no calls, no containers.\n"));
        assert_eq!(fleet.containers(victim), [""; 0], "the engine has none of its containers");
        for balancer in 0..2 {
            let drained =
                async |fleet: &Fleet| fleet.state(balancer, victim).await.as_deref() == Some("drained");
            fleet.until("the node is drained for every balancer", drained).await;
        }
        let node = json(fleet, &["node", "inspect", &name]);
        assert_eq!((&node["calls"], &node["containers"]), (&Value::from(0), &Value::from(0)), "{node}");
        let nodes = fleet.ok(&["nodes"]);
        assert_eq!(line(&nodes, &name)[1], "drained", "{nodes}");
        tokio::time::sleep(SETTLE).await;
        assert_eq!(fleet.containers(victim), [""; 0], "a drained node gets no calls");
    })
    .await;
    tell("drain of a node", begun.elapsed(), &outcomes);
    assert!(outcomes.iter().all(Outcome::is_clean), "{outcomes:?}");

    // It stays so over a restart, and is taken back by a command.
    let begun = Instant::now();
    let outcomes = under_load(&mut fleet, &function, async |fleet| {
        fleet.agents[victim].stop();
        fleet.agents[victim].start();
        for balancer in 0..2 {
            let drained =
                async |fleet: &Fleet| fleet.state(balancer, victim).await.as_deref() == Some("drained");
            fleet.until("it is drained still", drained).await;
        }
        let name = fleet.node(victim).to_owned();
        assert_eq!(fleet.ok(&["node", "undrain", &name]), format!("{name} takes calls again.\n"));
        fleet.until_all_up("it is back").await;
    })
    .await;
    tell("restart of a drained node, and its undrain", begun.elapsed(), &outcomes);
    assert!(outcomes.iter().all(Outcome::is_clean), "{outcomes:?}");

    // It is the others that get none now.
    let outcomes = under_load(&mut fleet, &function, async |fleet| {
        for agent in (0..fleet.agents.len()).filter(|&agent| agent != victim) {
            let name = fleet.node(agent).to_owned();
            fleet.ok(&["node", "drain", &name, "--wait"]);
        }
    })
    .await;
    assert!(outcomes.iter().all(Outcome::is_clean), "{outcomes:?}");
    assert!(!fleet.containers(victim).is_empty(), "the node that was taken back has the calls");

    // SIGTERM drains: nothing is left of it, and no call is lost.
    for agent in 0..fleet.agents.len() {
        let name = fleet.node(agent).to_owned();
        fleet.ok(&["node", "undrain", &name]);
    }
    fleet.until_all_up("all are back").await;
    let begun = Instant::now();
    let outcomes = under_load(&mut fleet, &function, async |fleet| {
        let victim = fleet.warm_agent().await;
        fleet.agents[victim].stop();
        assert_eq!(fleet.containers(victim), [""; 0]);
        for balancer in 0..2 {
            let gone = async |fleet: &Fleet| fleet.state(balancer, victim).await.is_none();
            fleet.until("an agent that has stopped is no node", gone).await;
        }
    })
    .await;
    tell("SIGTERM of an agent", begun.elapsed(), &outcomes);
    assert!(outcomes.iter().all(Outcome::is_clean), "{outcomes:?}");
}
