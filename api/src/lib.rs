//! Kiln's catalog and HTTP API: what is deployed, and what became of calls.
//!
//! Owns the store of apps, functions, triggers, call records and logs ([`Catalog`], [`RecordWriter`]) and the
//! `/v2` API over it ([`router`]). Knows no nodes and no containers. Nothing here runs on the path of a call:
//! the balancer keeps its own copy from the feed of changes.

mod catalog;
mod fleet;
pub mod portable;
mod records;
mod rest;
mod schedules;
mod store;

pub use catalog::Catalog;
pub use records::{RecordWriter, StoreOutcome, StoredBatches, WaitingBatch};
pub use rest::{ApiState, FN_API_VERSION, router};
pub use schedules::CLAIMS_MAX;
pub use store::{
    After, BalancerEntry, Change, Changes, Claimed, Contents, DatabaseId, Existing, FiredTick, Latest,
    OpenError, Page, RemovedNode, Retention, Snapshot, StoreError, UsedToken,
};
