//! What balancers that share the catalog's database know of each other, and which nodes were let in.
//!
//! Not part of the feed of changes: it changes all the time, and no call depends on it.

use jiff::Timestamp;

use crate::catalog::now;
use crate::{BalancerEntry, Catalog, StoreError};

impl Catalog {
    /// Uses up a join token: true the first time, false ever after, whichever balancer asks. That it has not
    /// expired is for the caller to see; tokens are remembered for a day after `expires_at`.
    ///
    /// # Errors
    /// The database failed; whether the token is used up is then not known.
    pub async fn claim_join_token(&self, id: &str, expires_at: Timestamp) -> Result<bool, StoreError> {
        self.store().claim_join_token(id, expires_at, now()).await
    }

    /// Says that the balancer `name` is there and that agents reach its link at `link_address`.
    ///
    /// # Errors
    /// The database failed.
    pub async fn announce_balancer(
        &self,
        name: &str,
        link_address: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.store().announce_balancer(name, link_address, now).await
    }

    /// The balancers that said so at `seen_since` or later, by name.
    ///
    /// # Errors
    /// The database failed.
    pub async fn balancers(&self, seen_since: Timestamp) -> Result<Vec<BalancerEntry>, StoreError> {
        self.store().balancers(seen_since).await
    }

    /// Removes a balancer that ends. One that is not there is no error.
    ///
    /// # Errors
    /// The database failed.
    pub async fn forget_balancer(&self, name: &str) -> Result<(), StoreError> {
        self.store().forget_balancer(name).await
    }
}
