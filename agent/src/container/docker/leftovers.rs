//! Removes what an earlier life of this node left behind, and what nodes left that live no more.
//!
//! A node is dead when its socket root is on this machine and nobody holds the root's lock. Whoever clears up
//! after it holds that lock meanwhile.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::errors::Error;
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use super::engine::{Engine, explain, status};
use super::labels::{INSTANCE, Identity, NETWORK_ROLE, NODE, ROLE, ROOT, node_filter};
use super::network::Network;
use crate::container::freezer::Freezer;
use crate::container::iofs;

/// Removals under way at once.
const REMOVALS_MAX: usize = 4;
/// Waits between the looks for stragglers. The engine takes tenths of a second to make a container, and many times
/// that when it is busy.
const STRAGGLER_WAITS: [Duration; 3] =
    [Duration::from_secs(2), Duration::from_secs(8), Duration::from_secs(50)];

/// The socket root of another agent that lives on this machine under the name of this node, as a copied data folder
/// makes one: its containers are no leftovers.
pub(super) async fn living_twin(
    engine: &Engine,
    identity: &Identity,
    own_root: &Path,
) -> Result<Option<PathBuf>, Error> {
    let own_root = own_root.canonicalize().ok();
    let networks = engine.list_networks(&identity.node_filter()).await?;
    let mut roots =
        networks.into_iter().filter_map(|network| network.labels?.remove(ROOT)).map(PathBuf::from);
    Ok(roots.find(|root| root.canonicalize().ok() != own_root && iofs::is_in_use(root)))
}

/// Removes the containers of this node that another instance made. Returns how many there were.
pub(super) async fn remove_containers(engine: &Engine, identity: &Identity) -> Result<usize, Error> {
    remove_containers_of(engine, &identity.node_filter(), &identity.instance).await
}

/// Removes what the engine was still making for an earlier life of this node when this one looked for leftovers: it
/// finishes what a dead client asked for. Looks a few times and, if that is sooner, once at `stop`.
pub(super) async fn remove_stragglers(engine: Engine, identity: Identity, stop: CancellationToken) {
    for wait in STRAGGLER_WAITS {
        let stopped = stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none();
        match remove_containers(&engine, &identity).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "containers that were made for an earlier life came late"),
            Err(error) => tracing::warn!(error = explain(&error), "cannot look for late leftovers"),
        }
        if stopped {
            return;
        }
    }
}

/// Removes containers and networks of dead nodes: a network that nobody uses takes one of the engine's few
/// address ranges. What cannot be removed stays for the next who comes by.
pub(super) async fn remove_dead_nodes(engine: &Engine, identity: &Identity) {
    let networks = engine.list_networks(&format!("{ROLE}={NETWORK_ROLE}")).await.unwrap_or_default();
    for network in networks {
        let labels = network.labels.unwrap_or_default();
        let (Some(node), Some(root)) = (labels.get(NODE), labels.get(ROOT).map(Path::new)) else { continue };
        if node == identity.node.as_str() {
            continue;
        }
        let Some(_lock) = iofs::lock_dead_root(root) else { continue };
        tracing::info!(node, "clearing up after a node that lives no more");
        match remove_containers_of(engine, &node_filter(node), "").await {
            Ok(_) => {
                iofs::remove_leftovers(root);
                Network::of_node(node).remove(engine).await;
            }
            Err(error) => tracing::warn!(node, error = explain(&error), "its containers stay"),
        }
    }
}

/// Removes the containers that `filter` shows, except those of `instance`.
async fn remove_containers_of(engine: &Engine, filter: &str, instance_kept: &str) -> Result<usize, Error> {
    let listed = engine.list_containers(filter).await?;
    let ids: Vec<String> = listed
        .into_iter()
        .filter(|container| {
            let instance = container.labels.as_ref().and_then(|labels| labels.get(INSTANCE));
            instance.is_none_or(|instance| instance != instance_kept)
        })
        .filter_map(|container| container.id)
        .collect();
    let count = ids.len();
    let mut removals = std::pin::pin!(
        futures_util::stream::iter(ids).map(|id| remove(engine, id)).buffer_unordered(REMOVALS_MAX)
    );
    while let Some(removed) = removals.next().await {
        removed?;
    }
    Ok(count)
}

async fn remove(engine: &Engine, id: String) -> Result<(), Error> {
    thaw(engine, &id).await;
    match engine.remove_container(&id).await {
        // 409: already being removed.
        Err(error) if !matches!(status(&error), Some(404 | 409)) => Err(error),
        _ => Ok(()),
    }
}

/// The earlier life may have frozen it without the engine knowing, and a frozen process does not die.
async fn thaw(engine: &Engine, id: &str) {
    let Ok(inspected) = engine.inspect_container(id).await else { return };
    let pid = inspected.state.and_then(|state| state.pid).and_then(|pid| u32::try_from(pid).ok());
    if let Some(pid) = pid.filter(|pid| *pid > 0)
        && let Ok(freezer) = Freezer::of_process(pid, id)
        && let Err(error) = freezer.thaw()
    {
        tracing::warn!(id, %error, "cannot thaw a container that is left over");
    }
}
