//! Keeps the routes current with the catalog.
//!
//! Owns the [`RouteTable`] once calls are served. Invariant: a revision that it
//! announces is one that readers see.

use std::time::Duration;

use kiln_api::{Catalog, StoreError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{RouteReader, RouteTable};

/// Pause after the catalog could not be read. Calls go on with what is known.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Longest wait for a change of one's own to reach the routes.
const SEEN_WAIT: Duration = Duration::from_secs(2);

/// The routes of a catalog, kept current by [`Follower::run`].
#[derive(Debug, Clone)]
pub struct Followed {
    /// For the data path.
    pub routes: RouteReader,
    latest: watch::Receiver<u64>,
    seen: watch::Receiver<u64>,
}

impl Followed {
    /// Waits until calls see every change that the catalog has at this moment, at most two seconds: whoever was
    /// told that a function exists can call it. Costs nothing when they do already.
    pub async fn caught_up(&self) {
        let latest = *self.latest.borrow();
        let mut seen = self.seen.clone();
        if tokio::time::timeout(SEEN_WAIT, seen.wait_for(|seen| *seen >= latest)).await.is_err() {
            tracing::warn!(latest, "the catalog's changes are slow to reach the routes");
        }
    }
}

/// The task's side of [`Followed`].
#[derive(Debug)]
pub struct Follower {
    table: RouteTable,
    catalog: Catalog,
    latest: watch::Receiver<u64>,
    seen: watch::Sender<u64>,
}

/// Reads the catalog once and gives the two sides.
///
/// # Errors
/// The catalog's database failed.
pub async fn follow(catalog: Catalog) -> Result<(Followed, Follower), StoreError> {
    // In this order no change is missed.
    let latest = catalog.subscribe();
    let mut table = RouteTable::new();
    table.reset(catalog.snapshot().await?);
    let (seen, seen_reader) = watch::channel(table.revision());
    let followed = Followed { routes: table.reader(), latest: latest.clone(), seen: seen_reader };
    Ok((followed, Follower { table, catalog, latest, seen }))
}

impl Follower {
    /// Applies changes as they come, until `stop` or until the catalog is gone.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            // Both arms are cancel-safe: a watch remembers what it saw.
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.latest.wait_for(|latest| *latest > *self.seen.borrow()) => if changed.is_err() { return },
            }
            if let Err(error) = self.catch_up().await {
                tracing::error!(%error, "cannot read the catalog's changes; calls go on with what is known");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }

    async fn catch_up(&mut self) -> Result<(), StoreError> {
        match self.catalog.changes_since(self.table.revision()).await {
            Ok(changes) => self.table.apply(changes),
            Err(StoreError::RevisionUnknown(_)) => self.table.reset(self.catalog.snapshot().await?),
            Err(error) => return Err(error),
        }
        self.seen.send_replace(self.table.revision());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use kiln_shared::model::AppInput;

    use super::*;

    #[tokio::test]
    async fn a_change_is_routed_to_once_it_has_caught_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let catalog = Catalog::open(&format!("sqlite://{}", folder.path().join("kiln.db").display()))
            .await
            .expect("opens");
        let (mut followed, task) = follow(catalog.clone()).await.expect("reads");
        let stop = CancellationToken::new();
        let running = tokio::spawn(task.run(stop.clone()));
        for number in 0..50 {
            let input: AppInput =
                serde_json::from_value(serde_json::json!({ "name": format!("app-{number}") }))
                    .expect("valid");
            catalog.create_app(&input).await.expect("is created");
            followed.caught_up().await;
            let name = format!("app-{number}");
            let missed = followed.routes.routes().trigger(name.as_bytes(), b"/").expect_err("no trigger");
            assert_eq!(missed, crate::route::RouteError::TriggerNotFound, "app {number} is not known");
        }
        stop.cancel();
        running.await.expect("ends");
    }
}
