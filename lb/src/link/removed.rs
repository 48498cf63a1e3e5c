//! Nodes that do not belong to the fleet any more, whatever certificate they show.
//!
//! The catalog remembers them; this is what a balancer knows of that, a few seconds late at most while the catalog is there.

use std::collections::BTreeSet;
use std::future::pending;

use kiln_api::{Catalog, StoreError};
use kiln_shared::link::message::Refused;
use tokio::sync::watch;

/// The names of removed nodes. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct RemovedNodes {
    names: watch::Sender<BTreeSet<String>>,
}

impl RemovedNodes {
    /// Removes a node for good: links to it end, here now, elsewhere when the other balancers look next.
    ///
    /// # Errors
    /// The catalog cannot remember it.
    pub async fn remove(&self, node: &str, catalog: &Catalog) -> Result<(), StoreError> {
        catalog.remove_node(node).await?;
        self.names.send_modify(|names| {
            names.insert(node.to_owned());
        });
        Ok(())
    }

    /// Says whether a node of this name may be of the fleet.
    pub(super) fn check(&self, node: &str) -> Result<(), Refused> {
        if self.names.borrow().contains(node) { Err(Refused::Removed) } else { Ok(()) }
    }

    /// Waits until the node is removed. Cancel-safe.
    pub(super) async fn wait_for(&self, node: &str) {
        if self.names.subscribe().wait_for(|names| names.contains(node)).await.is_err() {
            pending::<()>().await;
        }
    }

    /// Looks at the catalog.
    pub(super) async fn look(&self, catalog: &Catalog) -> Result<(), StoreError> {
        let removed = catalog.removed_nodes().await?;
        self.names.send_if_modified(|names| {
            // A name never comes back, and one that was added meanwhile is not in what was read.
            let known = names.len();
            names.extend(removed);
            names.len() > known
        });
        Ok(())
    }
}
