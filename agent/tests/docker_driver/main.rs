//! The Docker driver against a real engine: how containers start, what they may do, how they end, and how an agent
//! speaks with them.

#![allow(clippy::unwrap_used, reason = "in a test, a helper's failure is the test's")]

#[path = "../support/mod.rs"]
mod support;

mod agent;
mod calls;
mod formats;
mod freezing;
mod hardening;
mod images;
mod leftovers;
mod life;
mod network;
mod outage;

use std::sync::Arc;

use kiln_agent::container::docker::{DockerConfig, DockerDriver};
use kiln_agent::container::{Container, Driver, Transport};
use kiln_shared::ids::{Id, NodeId};
use support::{call, docker, image, plan, spec};

/// A driver on a node of its own. Its directory goes with it.
struct Node {
    driver: Arc<DockerDriver>,
    id: NodeId,
    directory: tempfile::TempDir,
    _sweep: Sweep,
}

/// Removes what a failed test leaves of its node.
struct Sweep(NodeId);

impl Drop for Sweep {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in containers_of(&self.0) {
                docker(&["rm", "-f", &name]);
            }
            for name in networks_of(&self.0) {
                docker(&["network", "rm", &name]);
            }
        }
    }
}

fn node_id() -> NodeId {
    NodeId::new(format!("test-{}", Id::generate().as_str()))
}

/// The defaults without sandboxes, so that every test but theirs knows what runs.
fn config(id: &NodeId, directory: &tempfile::TempDir) -> DockerConfig {
    DockerConfig { sandboxes: 0, ..DockerConfig::new(id.clone(), directory.path()) }
}

async fn node_with(change: impl FnOnce(&mut DockerConfig)) -> Node {
    let (id, directory) = (node_id(), tempfile::tempdir().unwrap());
    let sweep = Sweep(id.clone());
    let mut config = config(&id, &directory);
    change(&mut config);
    let driver = Arc::new(DockerDriver::connect(config).await.unwrap());
    Node { driver, id, directory, _sweep: sweep }
}

async fn node() -> Node {
    node_with(|_| {}).await
}

impl Node {
    async fn start(&self, behaviour: &str) -> Container {
        self.driver.start(plan(spec(&image("function"), behaviour), Transport::Socket)).await.unwrap()
    }

    async fn start_pipes(&self, image: &str, behaviour: &str) -> Container {
        self.driver.start(plan(spec(image, behaviour), Transport::Pipes)).await.unwrap()
    }

    /// Names of its containers in the engine, running or not.
    fn containers(&self) -> Vec<String> {
        containers_of(&self.id)
    }

    fn socket_directories(&self) -> usize {
        socket_directories(self.directory.path())
    }

    async fn close_with(self, containers: impl IntoIterator<Item = Container>) {
        containers.into_iter().for_each(drop);
        self.close().await;
    }

    async fn close(self) {
        self.driver.close().await;
        self.assert_gone();
    }

    /// Nothing of a closed node is left.
    fn assert_gone(&self) {
        assert_eq!(self.containers(), Vec::<String>::new());
        assert_eq!(networks_of(&self.id), Vec::<String>::new());
        assert_eq!(self.socket_directories(), 0);
    }
}

fn socket_directories(root: &std::path::Path) -> usize {
    std::fs::read_dir(root).unwrap().flatten().filter(|entry| entry.file_type().unwrap().is_dir()).count()
}

fn containers_of(id: &NodeId) -> Vec<String> {
    let filter = format!("label=kiln.node={id}");
    lines(&docker(&["ps", "-a", "--filter", &filter, "--format", "{{.Names}}"]))
}

fn networks_of(id: &NodeId) -> Vec<String> {
    let filter = format!("label=kiln.node={id}");
    lines(&docker(&["network", "ls", "--filter", &filter, "--format", "{{.Name}}"]))
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

async fn ask(container: &Container, command: &str) -> String {
    call(container.socket.as_ref().unwrap(), command).await.unwrap()
}
