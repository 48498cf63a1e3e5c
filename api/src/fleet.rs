//! What balancers that share the catalog's database know of each other, and which nodes were let in.
//!
//! Not part of the feed of changes: it changes all the time, and no call depends on it.

use jiff::{SignedDuration, Timestamp};

use crate::catalog::now;
use crate::{BalancerEntry, Catalog, StoreError};

impl Catalog {
    /// Uses up a join token for the request that `used_by` names: true the first time, and for the same request again,
    /// whose answer may have been lost; false ever after, whichever balancer asks. That it has not expired is for the
    /// caller to see; tokens are remembered for a day after `expires_at`.
    ///
    /// # Errors
    /// The database failed; whether the token is used up is then not known.
    pub async fn claim_join_token(
        &self,
        id: &str,
        used_by: &str,
        expires_at: Timestamp,
    ) -> Result<bool, StoreError> {
        self.store().claim_join_token(id, used_by, expires_at, now()).await
    }

    /// Says that the balancer `name` is there and that agents reach its link at `link_address`. The database's clock says
    /// when: those of balancers may differ.
    ///
    /// # Errors
    /// The database failed.
    pub async fn announce_balancer(&self, name: &str, link_address: &str) -> Result<(), StoreError> {
        self.store().announce_balancer(name, link_address).await
    }

    /// The balancers that said so in this time until now, by name.
    ///
    /// # Errors
    /// The database failed.
    pub async fn balancers(&self, within: SignedDuration) -> Result<Vec<BalancerEntry>, StoreError> {
        self.store().balancers(within).await
    }

    /// Removes a balancer that ends. One that is not there is no error.
    ///
    /// # Errors
    /// The database failed.
    pub async fn forget_balancer(&self, name: &str) -> Result<(), StoreError> {
        self.store().forget_balancer(name).await
    }

    /// Removes a node for good: no balancer takes it under this name again. False if it was removed before.
    ///
    /// # Errors
    /// The database failed.
    pub async fn remove_node(&self, name: &str) -> Result<bool, StoreError> {
        self.store().remove_node(name).await
    }

    /// The names of the nodes that were removed, in their order.
    ///
    /// # Errors
    /// The database failed.
    pub async fn removed_nodes(&self) -> Result<Vec<String>, StoreError> {
        self.store().removed_nodes().await
    }
}
