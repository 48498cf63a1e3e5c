//! Where the fleet's balancers are, as they know from the catalog and tell their agents; and which nodes they have removed.

use std::time::Duration;

use jiff::SignedDuration;
use kiln_api::Catalog;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::RemovedNodes;

/// How often a balancer says that it is there, and looks for the others and for what they have removed.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(5);
/// A balancer that has not said so for this long is not told of any more.
const SEEN_WITHIN: SignedDuration = SignedDuration::from_mins(1);
/// Longest time to say goodbye in.
const FORGET_TIMEOUT: Duration = Duration::from_secs(1);

/// This balancer among the others.
#[derive(Debug)]
pub(super) struct Peers {
    pub(super) catalog: Catalog,
    pub(super) name: String,
    /// Where agents reach this one; `None` if it does not know that.
    pub(super) address: Option<String>,
    pub(super) removed: RemovedNodes,
    pub(super) known: watch::Sender<Vec<String>>,
    /// Whether this one is the first of all by name: it alone says what need be said once for the fleet. True until the
    /// catalog tells of others.
    pub(super) is_first: watch::Sender<bool>,
}

impl Peers {
    /// Keeps the list of balancers current until `stop`. While the catalog is away the list stays as it is.
    pub(super) async fn keep(self, stop: CancellationToken) {
        loop {
            match self.look().await {
                Ok((addresses, is_first)) => {
                    self.is_first.send_replace(is_first);
                    self.known.send_if_modified(|known| {
                        let is_news = *known != addresses;
                        *known = addresses;
                        is_news
                    });
                }
                Err(error) => tracing::debug!(%error, "the catalog does not tell where the balancers are"),
            }
            if stop.run_until_cancelled(tokio::time::sleep(ANNOUNCE_EVERY)).await.is_none() {
                break;
            }
        }
        // If it cannot be said, time does.
        drop(tokio::time::timeout(FORGET_TIMEOUT, self.catalog.forget_balancer(&self.name)).await);
    }

    async fn look(&self) -> Result<(Vec<String>, bool), kiln_api::StoreError> {
        if let Some(address) = &self.address {
            self.catalog.announce_balancer(&self.name, address).await?;
        }
        let balancers = self.catalog.balancers(SEEN_WITHIN).await?;
        self.removed.look(&self.catalog).await?;
        let is_first = balancers.iter().all(|balancer| balancer.name >= self.name);
        Ok((balancers.into_iter().map(|balancer| balancer.link_address).collect(), is_first))
    }
}
