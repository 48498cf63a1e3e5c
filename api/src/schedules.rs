//! How far schedules have been fired, for balancers that share the catalog's database.
//!
//! Not part of the feed of changes: it changes with every tick.

use jiff::{SignedDuration, Timestamp};
use kiln_shared::ids::TriggerId;

use crate::{Catalog, Claimed, StoreError};

/// How long ticks are the one balancer's that got them. One that dies meanwhile delays them by this much.
const CLAIM: SignedDuration = SignedDuration::from_secs(15);
/// Most schedules in one question.
pub const CLAIMS_MAX: usize = 100;

impl Catalog {
    /// Asks for the ticks of up to [`CLAIMS_MAX`] schedules, each up to the given one: of all who ask only one gets
    /// them, for 15 seconds. An answer for each, in their order.
    ///
    /// # Errors
    /// The database failed.
    pub async fn claim_ticks(
        &self,
        ticks: &[(TriggerId, Timestamp)],
        holder: &str,
        now: Timestamp,
    ) -> Result<Vec<Claimed>, StoreError> {
        let until = now.saturating_add(CLAIM).unwrap_or(Timestamp::MAX);
        self.store().claim_ticks(ticks, holder, now, until).await
    }

    /// Says that schedules were fired up to these ticks, and gives back the claims. Only forward, and only where the
    /// ticks are the holder's still.
    ///
    /// # Errors
    /// The database failed; the ticks may be given to another when the claim ends.
    pub async fn ticks_fired(
        &self,
        ticks: &[(TriggerId, Timestamp)],
        holder: &str,
    ) -> Result<(), StoreError> {
        self.store().ticks_fired(ticks, holder).await
    }
}
