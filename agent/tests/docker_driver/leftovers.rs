//! What one life of a node leaves behind, the next one removes.

use std::io::Write;
use std::process::{Command, Stdio};

use kiln_agent::container::docker::{ConnectError, DockerDriver};
use kiln_agent::container::{Driver, Transport};
use kiln_shared::ids::NodeId;

use crate::support::{eventually, image, plan, read_until, spec};
use crate::{Sweep, config, containers_of, networks_of, node, node_id};

/// Names the node and the directory of the life that crashes; set in the child process alone.
const NODE: &str = "KILN_TEST_CRASHING_NODE";
const DIRECTORY: &str = "KILN_TEST_CRASHING_DIRECTORY";

/// Starts a container, freezes it behind the engine's back, and ends without a word.
async fn live_and_crash(node: String) -> ! {
    let path = std::env::var(DIRECTORY).unwrap();
    let config = kiln_agent::container::docker::DockerConfig::new(NodeId::new(node), path);
    let driver = DockerDriver::connect(config).await.unwrap();
    let container = driver.start(plan(spec(&image("function"), "phony"), Transport::Socket)).await.unwrap();
    eventually("it can be frozen", async || container.control.freeze().is_ok()).await;
    println!("\nserving");
    std::io::stdout().flush().unwrap();
    std::process::abort();
}

#[tokio::test]
async fn a_crash_leaves_containers_that_the_next_life_removes() {
    if let Ok(node) = std::env::var(NODE) {
        live_and_crash(node).await;
    }
    let (id, directory) = (node_id(), tempfile::tempdir().unwrap());
    let _sweep = Sweep(id.clone());
    let mut life = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "leftovers::a_crash_leaves_containers_that_the_next_life_removes", "--nocapture"])
        .env(NODE, id.as_str())
        .env(DIRECTORY, directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = read_until(life.stdout.as_mut().unwrap(), "serving");
    assert!(said.contains("serving"), "{said}");
    assert!(!life.wait().unwrap().success());
    let left = containers_of(&id);
    assert!(left.iter().any(|name| name.starts_with("kiln-fn-")), "{left:?}");
    let entries = || std::fs::read_dir(directory.path()).unwrap().flatten();
    let directories = || entries().filter(|entry| entry.file_type().unwrap().is_dir()).count();
    assert_eq!(directories(), 1);

    let bystander = node().await;
    let other = bystander.start("phony").await;
    let driver = DockerDriver::connect(config(&id, &directory)).await.unwrap();
    assert_eq!(containers_of(&id), Vec::<String>::new());
    assert_eq!(directories(), 0);
    assert_eq!(bystander.containers(), [other.name.as_str()]);
    let container = driver.start(plan(spec(&image("function"), "phony"), Transport::Socket)).await.unwrap();
    drop(container);
    driver.close().await;
    assert_eq!(networks_of(&id), Vec::<String>::new());
    bystander.close_with([other]).await;
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
