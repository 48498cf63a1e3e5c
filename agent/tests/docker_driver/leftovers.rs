//! What one life of a node leaves behind, the next one removes.

use std::io::Write;
use std::process::{Child, Command, Stdio};

use kiln_agent::container::docker::{ConnectError, DockerDriver};
use kiln_agent::container::{Driver, Transport};
use kiln_shared::ids::NodeId;

use crate::support::{docker, eventually, image, plan, read_until, spec};
use crate::{Sweep, config, containers_of, networks_of, node, node_id, socket_directories};

/// Names the node and the directory of the life that crashes; set in the child process alone.
const NODE: &str = "KILN_TEST_CRASHING_NODE";
const DIRECTORY: &str = "KILN_TEST_CRASHING_DIRECTORY";

/// Starts a container, freezes it behind the engine's back, and waits to be killed.
async fn live_until_killed(node: String) -> ! {
    let path = std::env::var(DIRECTORY).unwrap();
    let config = kiln_agent::container::docker::DockerConfig::new(NodeId::new(node), path);
    let driver = DockerDriver::connect(config).await.unwrap();
    let container = driver.start(plan(spec(&image("function"), "phony"), Transport::Socket)).await.unwrap();
    eventually("it can be frozen", async || container.control.freeze().is_ok()).await;
    println!("\nserving");
    std::io::stdout().flush().unwrap();
    std::future::pending().await
}

/// A life of a node in a process of its own.
struct Life {
    process: Child,
    id: NodeId,
    directory: tempfile::TempDir,
    _sweep: Sweep,
}

impl Life {
    /// Runs `test` again, in a process that lives instead.
    fn begin(test: &str) -> Self {
        let (id, directory) = (node_id(), tempfile::tempdir().unwrap());
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(NODE, id.as_str())
            .env(DIRECTORY, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = read_until(process.stdout.as_mut().unwrap(), "serving");
        assert!(said.contains("serving"), "{said}");
        let running = containers_of(&id);
        assert!(running.iter().any(|name| name.starts_with("kiln-fn-")), "{running:?}");
        assert_eq!(socket_directories(directory.path()), 1);
        Self { process, _sweep: Sweep(id.clone()), id, directory }
    }

    fn crash(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[tokio::test]
async fn a_crash_leaves_containers_that_the_next_life_removes() {
    if let Ok(node) = std::env::var(NODE) {
        live_until_killed(node).await;
    }
    let bystander = node().await;
    let other = bystander.start("phony").await;
    let mut life = Life::begin("leftovers::a_crash_leaves_containers_that_the_next_life_removes");
    // Without its lock, no other node of this machine takes it for dead and clears up first.
    std::fs::remove_file(life.directory.path().join("lock")).unwrap();
    life.crash();
    assert!(containers_of(&life.id).iter().any(|name| name.starts_with("kiln-fn-")));
    let driver = DockerDriver::connect(config(&life.id, &life.directory)).await.unwrap();
    // The engine may have been making one more for the life that crashed.
    eventually("the containers are gone", async || containers_of(&life.id).is_empty()).await;
    assert_eq!(socket_directories(life.directory.path()), 0);
    assert_eq!(bystander.containers(), [other.name.as_str()]);
    let container = driver.start(plan(spec(&image("function"), "phony"), Transport::Socket)).await.unwrap();
    drop(container);
    driver.close().await;
    assert_eq!(networks_of(&life.id), Vec::<String>::new());
    bystander.close_with([other]).await;
}

#[tokio::test]
async fn what_the_engine_was_still_making_for_an_earlier_life_is_removed_too() {
    let node = node().await;
    let container = node.start("phony").await;
    let label = format!("kiln.node={}", node.id);
    let come_late =
        || docker(&["create", "--label", &label, "--label", "kiln.instance=earlier", &image("function")]);
    come_late();
    eventually("only its own is left", async || node.containers() == [container.name.as_str()]).await;
    come_late();
    node.close_with([container]).await;
}

#[tokio::test]
async fn what_a_dead_node_left_is_removed_by_another() {
    if let Ok(node) = std::env::var(NODE) {
        live_until_killed(node).await;
    }
    let mut life = Life::begin("leftovers::what_a_dead_node_left_is_removed_by_another");
    let chain = networks_of(&life.id).remove(0).replace("kiln-", "KILN-");
    let rules =
        || Command::new("iptables").args(["-w", "5", "-L", &chain, "-n"]).output().unwrap().status.success();
    assert!(rules());
    node().await.close().await;
    assert!(!networks_of(&life.id).is_empty(), "it lives");
    life.crash();
    node().await.close().await;
    // Another test's node may have come first, and may not be through yet.
    eventually("its network is gone", async || networks_of(&life.id).is_empty()).await;
    eventually("its rules are gone", async || !rules()).await;
    assert_eq!(containers_of(&life.id), Vec::<String>::new());
    assert_eq!(socket_directories(life.directory.path()), 0);
}

#[tokio::test]
async fn a_second_driver_on_the_same_directory_is_refused() {
    let node = node().await;
    let container = node.start("phony").await;
    let error = DockerDriver::connect(config(&node.id, &node.directory)).await.unwrap_err();
    assert!(matches!(error, ConnectError::InUse { .. }), "{error}");
    assert_eq!(node.containers(), [container.name.as_str()]);
    node.close_with([container]).await;
}

/// As by a copy of a data folder: it would take the other one's containers for leftovers.
#[tokio::test]
async fn a_second_driver_of_the_same_name_is_refused_while_the_first_one_lives() {
    let node = node().await;
    let container = node.start("phony").await;
    let elsewhere = tempfile::tempdir().unwrap();
    let error = DockerDriver::connect(config(&node.id, &elsewhere)).await.unwrap_err();
    assert!(matches!(&error, ConnectError::SameNode { node: same, .. } if *same == node.id), "{error}");
    assert_eq!(node.containers(), [container.name.as_str()]);
    node.close_with([container]).await;
}

#[tokio::test]
async fn without_docker_the_error_names_the_socket_and_the_remedy() {
    let (id, directory) = (node_id(), tempfile::tempdir().unwrap());
    let missing = format!("unix://{}/docker.sock", directory.path().display());
    let mut config = config(&id, &directory);
    config.host.clone_from(&missing);
    let error = DockerDriver::connect(config).await.unwrap_err().to_string();
    assert!(error.contains(&missing) && error.contains("start it"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[tokio::test]
async fn a_directory_whose_sockets_would_not_fit_is_refused() {
    let (id, directory) = (node_id(), tempfile::tempdir().unwrap());
    let mut config = config(&id, &directory);
    config.iofs_path = directory.path().join("x".repeat(90));
    let error = DockerDriver::connect(config).await.unwrap_err();
    assert!(matches!(error, ConnectError::PathTooLong { .. }), "{error}");
}
