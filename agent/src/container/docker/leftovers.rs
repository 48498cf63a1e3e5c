//! Removes what an earlier life of this node left behind.

use bollard::errors::Error;
use futures_util::StreamExt;

use super::engine::{Engine, status};
use super::labels::{INSTANCE, Identity};
use crate::container::freezer::Freezer;

/// Removals under way at once.
const REMOVALS_MAX: usize = 4;

/// Removes the containers of this node that another instance made. Returns how many there were.
pub(super) async fn remove_containers(engine: &Engine, identity: &Identity) -> Result<usize, Error> {
    let listed = engine.list_containers(&identity.node_filter()).await?;
    let ids: Vec<String> = listed
        .into_iter()
        .filter(|container| {
            let instance = container.labels.as_ref().and_then(|labels| labels.get(INSTANCE));
            instance.is_none_or(|instance| *instance != identity.instance)
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
