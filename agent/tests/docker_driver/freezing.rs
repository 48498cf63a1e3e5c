//! Freezing: the function stops where it is, and runs on.

use std::path::PathBuf;

use kiln_agent::container::{Container, Exit};

use crate::support::{docker, eventually};
use crate::{ask, node};

/// The freezer file of a container, found by the test in its own way.
pub(crate) fn freezer_file(name: &str) -> PathBuf {
    let id = docker(&["inspect", "--format", "{{.Id}}", name]);
    let found = std::process::Command::new("find")
        .args(["/sys/fs/cgroup", "-path", &format!("*{id}*"), "(", "-name", "freezer.state", "-o"])
        .args(["-name", "cgroup.events", ")"])
        .output()
        .unwrap();
    let found = String::from_utf8(found.stdout).unwrap();
    let one = found.lines().find(|path| path.ends_with("freezer.state"));
    one.or_else(|| found.lines().next()).expect("a cgroup").into()
}

pub(crate) fn is_frozen(file: &PathBuf) -> bool {
    let state = std::fs::read_to_string(file).unwrap();
    state.trim() == "FROZEN" || state.contains("frozen 1")
}

/// Freezes once the driver has found the freezer: it looks beside the start.
async fn freeze(container: &Container) {
    eventually("it can be frozen", async || container.control.freeze().is_ok()).await;
}

#[tokio::test]
async fn a_frozen_function_stands_still_until_it_is_thawed() {
    let node = node().await;
    let container = node.start("phony").await;
    let file = freezer_file(&container.name);
    assert!(!is_frozen(&file));
    freeze(&container).await;
    eventually("it is frozen", async || is_frozen(&file)).await;
    {
        // The kernel takes the connection; nobody answers.
        let mut answer = std::pin::pin!(ask(&container, "hello"));
        let early = tokio::time::timeout(std::time::Duration::from_millis(100), &mut answer).await;
        assert!(early.is_err(), "{early:?}");
        container.control.thaw().unwrap();
        assert_eq!(answer.await, "hello");
    }
    assert!(!is_frozen(&file));
    node.close_with([container]).await;
}

#[tokio::test]
async fn a_frozen_container_is_removed_like_any_other() {
    let node = node().await;
    let container = node.start("phony").await;
    let file = freezer_file(&container.name);
    freeze(&container).await;
    eventually("it is frozen", async || is_frozen(&file)).await;
    node.close_with([container]).await;
}

#[tokio::test]
async fn an_ended_container_cannot_be_frozen_or_thawed() {
    let node = node().await;
    let mut container = node.start("phony").await;
    freeze(&container).await;
    container.control.thaw().unwrap();
    docker(&["kill", &container.name]);
    assert_eq!(*container.exit.wait_for(Option::is_some).await.unwrap(), Some(Exit::Code(137)));
    eventually("its cgroup is gone", async || container.control.freeze().is_err()).await;
    assert!(container.control.thaw().is_err());
    node.close_with([container]).await;
}
