//! An engine that goes away for a while: what happened meanwhile is found, what was asked for is done.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_agent::container::Exit;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::{docker, eventually};
use crate::{Node, ask, node_with};

/// A socket in front of the engine's that can be taken out.
struct Engine {
    down: Arc<AtomicBool>,
    cut: Arc<std::sync::Mutex<CancellationToken>>,
    _proxy: JoinSet<()>,
}

impl Engine {
    fn at(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let down = Arc::new(AtomicBool::new(false));
        let cut = Arc::new(std::sync::Mutex::new(CancellationToken::new()));
        let mut proxy = JoinSet::new();
        let (is_down, cutter) = (Arc::clone(&down), Arc::clone(&cut));
        proxy.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                if is_down.load(Ordering::SeqCst) {
                    continue;
                }
                let cut = cutter.lock().unwrap().clone();
                connections.spawn(async move {
                    let mut far = UnixStream::connect("/var/run/docker.sock").await.unwrap();
                    let copy = tokio::io::copy_bidirectional(&mut near, &mut far);
                    drop(cut.run_until_cancelled(copy).await);
                });
            }
        });
        Self { down, cut, _proxy: proxy }
    }

    /// Breaks every connection and takes no more.
    fn fail(&self) {
        self.down.store(true, Ordering::SeqCst);
        std::mem::take(&mut *self.cut.lock().unwrap()).cancel();
    }

    fn recover(&self) {
        self.down.store(false, Ordering::SeqCst);
    }
}

async fn node_behind_proxy() -> (Node, Engine, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("docker.sock");
    let engine = Engine::at(&path);
    let node = node_with(|config| config.host = format!("unix://{}", path.display())).await;
    (node, engine, directory)
}

#[tokio::test]
async fn an_end_during_an_outage_is_found_afterwards() {
    let (node, engine, _directory) = node_behind_proxy().await;
    let (mut killed, mut removed) = (node.start("phony").await, node.start("phony").await);
    let survivor = node.start("phony").await;
    engine.fail();
    docker(&["kill", &killed.name]);
    docker(&["rm", "-f", &removed.name]);
    assert_eq!(*killed.exit.borrow(), None);
    engine.recover();
    assert_eq!(*killed.exit.wait_for(Option::is_some).await.unwrap(), Some(Exit::Code(137)));
    assert_eq!(*removed.exit.wait_for(Option::is_some).await.unwrap(), Some(Exit::Unknown));
    assert_eq!(*survivor.exit.borrow(), None);
    assert_eq!(ask(&survivor, "hello").await, "hello");
    // The stream is back: the next end is told as ever.
    let mut last = node.start("phony").await;
    docker(&["kill", &last.name]);
    assert_eq!(*last.exit.wait_for(Option::is_some).await.unwrap(), Some(Exit::Code(137)));
    node.close_with([killed, removed, survivor, last]).await;
}

#[tokio::test]
async fn a_container_dropped_during_an_outage_is_removed_afterwards() {
    let (node, engine, _directory) = node_behind_proxy().await;
    let container = node.start("phony").await;
    engine.fail();
    drop(container);
    tokio::task::yield_now().await;
    assert_eq!(node.containers().len(), 1);
    engine.recover();
    eventually("the container is gone", async || node.containers().is_empty()).await;
    node.close().await;
}

#[tokio::test]
async fn a_start_during_an_outage_fails_as_the_nodes_fault() {
    let (node, engine, _directory) = node_behind_proxy().await;
    engine.fail();
    let plan = crate::plan(
        crate::spec(&crate::image("function"), "phony"),
        kiln_agent::container::Transport::Socket,
    );
    let failure = kiln_agent::container::Driver::start(&*node.driver, plan).await.unwrap_err();
    assert_eq!(failure.status, 500, "{failure:?}");
    assert!(failure.detail.is_some());
    engine.recover();
    node.close().await;
}
