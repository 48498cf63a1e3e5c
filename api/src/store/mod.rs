//! Where the catalog, call records and logs are kept: the contract of a store, and the SQL one.
//!
//! Owns durability, uniqueness and the order of changes. What a valid resource is belongs to
//! [`kiln_shared::model`], HTTP to [`crate::http`]. Nothing of this runs on the path of a call.

mod db;
mod feed;
mod fleet;
mod mysql;
mod notices;
mod open;
mod portable;
mod postgres;
mod records;
mod refusal;
mod resource;
mod schedules;
mod server;
mod sql;
mod sqlite;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use kiln_shared::ids::{AppId, FunctionId, TriggerId};
use kiln_shared::model::{
    ApiError, App, AppInput, FunctionInput, FunctionResource, Trigger, TriggerInput, TriggerType,
};
use kiln_shared::record::{CallRecord, Record};
use serde::{Deserialize, Serialize};

pub use notices::Latest;
pub(crate) use notices::Notices;
pub use open::OpenError;
pub(crate) use open::open;

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The request is at fault; the client gets the text.
    #[error(transparent)]
    Refused(#[from] ApiError),
    /// Changes after this revision are no longer known, or the revision was never given: take a snapshot.
    #[error("changes since revision {0} are not known; take a snapshot")]
    RevisionUnknown(u64),
    /// A stored document cannot be read, which only another program or a newer Kiln can have caused.
    #[error("{kind} {id} in the catalog's database cannot be read")]
    Corrupt {
        /// `app`, `fn` or `trigger`.
        kind: &'static str,
        /// Its id.
        id: String,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
    /// The database is away, or too busy to answer in time. Whether a change was made is not known.
    #[error("the catalog's database cannot be reached; calls of known functions go on")]
    Unreachable(#[source] Arc<sqlx::Error>),
    /// The database failed.
    #[error("the catalog's database failed")]
    Database(#[source] sqlx::Error),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        if refusal::is_away(&error) { Self::Unreachable(Arc::new(error)) } else { Self::Database(error) }
    }
}

impl StoreError {
    /// True if nothing was changed since others were in the way: the same may succeed at once.
    fn is_conflict(&self) -> bool {
        matches!(self, Self::Unreachable(cause) if refusal::is_conflict(cause))
    }
}

/// What a store's methods return.
pub(crate) type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Hears how many rows more were written.
pub(crate) type Progress<'a> = &'a (dyn Fn(usize) + Sync);

/// A value and the catalog's revision that it brought about.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Committed<T> {
    /// What is stored now.
    pub value: T,
    /// The newest revision; `None` if nothing changed.
    pub revision: Option<u64>,
}

/// One page of a list, in the order of names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Only this name.
    pub name: Option<String>,
    /// Only what comes after.
    pub after: Option<After>,
    /// At most this many.
    pub items_max: u32,
}

/// The last item of the page before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct After {
    /// Its name.
    pub name: String,
    /// Its id, where names are not unique in the list.
    pub id: Option<String>,
}

/// One page of a function's calls, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CallsPage {
    /// Only calls with a smaller id.
    pub before: Option<String>,
    /// Only calls made after this moment.
    pub from: Option<Timestamp>,
    /// Only calls made before this moment.
    pub to: Option<Timestamp>,
    /// At most this many.
    pub items_max: u32,
}

/// What tells one database from all others: made at random with its tables.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DatabaseId(pub(crate) String);

/// The whole catalog at one revision.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// The database that it is of.
    pub database: DatabaseId,
    /// The revision; 0 if nothing was ever stored.
    pub revision: u64,
    /// All apps, sorted by id.
    pub apps: Vec<App>,
    /// All functions, sorted by id.
    pub functions: Vec<FunctionResource>,
    /// All triggers, sorted by id.
    pub triggers: Vec<Trigger>,
}

/// All that a fleet needs of a database to go on with another one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Contents {
    /// Apps, functions and triggers.
    pub catalog: Snapshot,
    /// How far schedules were fired.
    pub fired_ticks: Vec<FiredTick>,
    /// Nodes that may not come back.
    pub removed_nodes: Vec<RemovedNode>,
    /// Tokens that let nobody in any more.
    pub used_tokens: Vec<UsedToken>,
}

/// A schedule was fired up to a tick.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FiredTick {
    /// The trigger.
    pub trigger_id: String,
    /// The tick, in seconds since 1970.
    pub tick_second: i64,
}

/// A node was removed from the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedNode {
    /// Its name.
    pub name: String,
    /// When, in milliseconds since 1970.
    pub removed_at: i64,
}

/// A join token was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedToken {
    /// Names the token.
    pub id: String,
    /// Who used it.
    pub used_by: Option<String>,
    /// When it ends, in milliseconds since 1970.
    pub expires_at: i64,
}

/// What becomes of the apps of a database that a catalog is taken into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// They are kept: if there are any, nothing is changed.
    Refused,
    /// They are removed, with their functions and triggers.
    Replaced,
}

/// What differs from an earlier revision. Each resource occurs at most once.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    /// The database whose changes they are: of use only for a copy of the same one.
    pub database: DatabaseId,
    /// The revision that applying all of `changes` leads to.
    pub revision: u64,
    /// Apps first, then functions, then triggers, so that what a resource belongs to is known before it.
    pub changes: Vec<Change>,
}

/// A resource as it is now, or that it is gone.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// An app is new or was changed.
    App(App),
    /// A function is new or was changed.
    Function(FunctionResource),
    /// A trigger is new or was changed.
    Trigger(Trigger),
    /// An app is gone, and so is all that belonged to it (which has its own changes).
    AppGone(AppId),
    /// A function is gone.
    FunctionGone(FunctionId),
    /// A trigger is gone.
    TriggerGone(TriggerId),
}

/// Bounds of what is kept of ended calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Calls to keep; the oldest go first, with their logs. Up to a tenth more are kept for a while.
    pub calls_max: u64,
    /// Bytes of logs to keep; the oldest go first. Up to a tenth more are kept for a while.
    pub log_bytes_max: u64,
    /// Bytes kept of one call's log; the rest is dropped.
    pub call_log_bytes_max: usize,
}

impl Default for Retention {
    fn default() -> Self {
        Self { calls_max: 100_000, log_bytes_max: 256 << 20, call_log_bytes_max: 1 << 20 }
    }
}

/// A balancer that shares the catalog's database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalancerEntry {
    /// Its name.
    pub name: String,
    /// Where agents reach its link, as it was announced.
    pub link_address: String,
    /// When it last said that it is there, to the millisecond.
    pub seen_at: Timestamp,
}

/// What comes of asking for the ticks of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claimed {
    /// They are the asker's to fire, for some seconds: those after the one that was fired last, if ever one was.
    Given(Option<Timestamp>),
    /// They were fired before, up to this one.
    Fired(Timestamp),
    /// Another balancer fires them now.
    Held,
    /// There is no such trigger any more.
    Gone,
}

/// How much is kept of ended calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Calls.
    pub calls: u64,
    /// Bytes of logs.
    pub log_bytes: u64,
}

/// A call with its story and the names of what was called.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ToldCall {
    /// The call.
    pub record: CallRecord,
    /// The name of its app.
    pub app_name: String,
    /// The name of its function.
    pub function_name: String,
}

/// Apps, functions and triggers. Every method is one transaction; what it changes is in the feed with it.
///
/// Ids come as the client gave them: a text that is no id names nothing.
pub(crate) trait CatalogStore:
    RecordStore + FleetStore + ScheduleStore + PortableStore + fmt::Debug + Send + Sync
{
    /// Stores a new app.
    fn create_app<'a>(&'a self, input: &'a AppInput, now: Timestamp) -> StoreFuture<'a, Committed<App>>;
    /// Merges a change into an app.
    fn update_app<'a>(
        &'a self,
        id: &'a str,
        input: &'a AppInput,
        now: Timestamp,
    ) -> StoreFuture<'a, Committed<App>>;
    /// Removes an app with its functions and triggers, and their calls and logs.
    fn delete_app<'a>(&'a self, id: &'a str) -> StoreFuture<'a, Committed<()>>;
    /// The app.
    fn app<'a>(&'a self, id: &'a str) -> StoreFuture<'a, App>;
    /// A page of all apps.
    fn apps<'a>(&'a self, page: &'a Page) -> StoreFuture<'a, Vec<App>>;

    /// Stores a new function.
    fn create_function<'a>(
        &'a self,
        input: &'a FunctionInput,
        now: Timestamp,
    ) -> StoreFuture<'a, Committed<FunctionResource>>;
    /// Merges a change into a function.
    fn update_function<'a>(
        &'a self,
        id: &'a str,
        input: &'a FunctionInput,
        now: Timestamp,
    ) -> StoreFuture<'a, Committed<FunctionResource>>;
    /// Removes a function with its triggers, calls and logs.
    fn delete_function<'a>(&'a self, id: &'a str) -> StoreFuture<'a, Committed<()>>;
    /// The function.
    fn function<'a>(&'a self, id: &'a str) -> StoreFuture<'a, FunctionResource>;
    /// A page of an app's functions.
    fn functions<'a>(&'a self, app_id: &'a str, page: &'a Page) -> StoreFuture<'a, Vec<FunctionResource>>;

    /// Stores a new trigger.
    fn create_trigger<'a>(
        &'a self,
        input: &'a TriggerInput,
        now: Timestamp,
    ) -> StoreFuture<'a, Committed<Trigger>>;
    /// Merges a change into a trigger.
    fn update_trigger<'a>(
        &'a self,
        id: &'a str,
        input: &'a TriggerInput,
        now: Timestamp,
    ) -> StoreFuture<'a, Committed<Trigger>>;
    /// Removes a trigger.
    fn delete_trigger<'a>(&'a self, id: &'a str) -> StoreFuture<'a, Committed<()>>;
    /// The trigger.
    fn trigger<'a>(&'a self, id: &'a str) -> StoreFuture<'a, Trigger>;
    /// A page of an app's triggers, of one function only where that is given.
    fn triggers<'a>(
        &'a self,
        app_id: &'a str,
        fn_id: Option<&'a str>,
        page: &'a Page,
    ) -> StoreFuture<'a, Vec<Trigger>>;
    /// The trigger of an app with exactly this source.
    fn trigger_by_source<'a>(
        &'a self,
        app_id: &'a str,
        kind: TriggerType,
        source: &'a str,
    ) -> StoreFuture<'a, Trigger>;

    /// True if the database is a server.
    fn is_remote(&self) -> bool;
    /// The whole catalog at its newest revision.
    fn snapshot(&self) -> StoreFuture<'_, Snapshot>;
    /// What changed after `revision`.
    ///
    /// # Errors
    /// [`StoreError::RevisionUnknown`] if that cannot be told any more.
    fn changes_since(&self, revision: u64) -> StoreFuture<'_, Changes>;
    /// Finishes what is under way and closes the database.
    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// Ended calls and their logs.
pub(crate) trait RecordStore: Send + Sync {
    /// Stores a batch in one transaction; how much is kept then, where calls that were tried again may count twice
    /// until the next [`Self::trim`]. Of a call's attempts the last one's record stays; a piece of a log that is there
    /// already is left as it is.
    fn append<'a>(&'a self, batch: &'a [Record]) -> StoreFuture<'a, Kept>;
    /// Removes the oldest calls and logs over the bounds; how much is left.
    fn trim(&self, retention: Retention) -> StoreFuture<'_, Kept>;
    /// A page of a function's calls, newest first.
    fn calls<'a>(&'a self, fn_id: &'a str, page: &'a CallsPage) -> StoreFuture<'a, Vec<CallRecord>>;
    /// A function's call.
    fn call<'a>(&'a self, fn_id: &'a str, call_id: &'a str) -> StoreFuture<'a, CallRecord>;
    /// A call, whichever function's it is, with its story.
    fn told<'a>(&'a self, call_id: &'a str) -> StoreFuture<'a, ToldCall>;
    /// The log of a function's call; empty if it wrote nothing.
    fn log<'a>(&'a self, fn_id: &'a str, call_id: &'a str) -> StoreFuture<'a, String>;
}

/// What the balancers of a fleet keep in common beside the catalog.
pub(crate) trait FleetStore: Send + Sync {
    /// Remembers the token; true if it was not known, or used by the same.
    fn claim_join_token<'a>(
        &'a self,
        id: &'a str,
        used_by: &'a str,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> StoreFuture<'a, bool>;
    /// Adds a balancer, or says that it is still there.
    fn announce_balancer<'a>(&'a self, name: &'a str, link_address: &'a str) -> StoreFuture<'a, ()>;
    /// Balancers by name that were seen in this time until now.
    fn balancers(&self, within: SignedDuration) -> StoreFuture<'_, Vec<BalancerEntry>>;
    /// Removes a balancer.
    fn forget_balancer<'a>(&'a self, name: &'a str) -> StoreFuture<'a, ()>;
    /// Adds a name that no node may have any more; true if it was not there.
    fn remove_node<'a>(&'a self, name: &'a str) -> StoreFuture<'a, bool>;
    /// These names, in their order.
    fn removed_nodes(&self) -> StoreFuture<'_, Vec<String>>;
}

/// How far schedules have been fired.
pub(crate) trait ScheduleStore: Send + Sync {
    /// Asks for the ticks of schedules, each up to the given one, until a moment; an answer for each.
    fn claim_ticks<'a>(
        &'a self,
        ticks: &'a [(TriggerId, Timestamp)],
        holder: &'a str,
        now: Timestamp,
        until: Timestamp,
    ) -> StoreFuture<'a, Vec<Claimed>>;
    /// Remembers that schedules were fired up to these ticks, where they are the holder's still.
    fn ticks_fired<'a>(&'a self, ticks: &'a [(TriggerId, Timestamp)], holder: &'a str)
    -> StoreFuture<'a, ()>;
}

/// The way out of one database and into another.
pub(crate) trait PortableStore: Send + Sync {
    /// All that is to move.
    fn contents(&self) -> StoreFuture<'_, Contents>;
    /// Takes it in, in one transaction; the new revision, or `None` if there are apps and they are kept. `progress` hears
    /// how many rows more were written.
    fn restore<'a>(
        &'a self,
        contents: &'a Contents,
        existing: Existing,
        progress: Progress<'a>,
    ) -> StoreFuture<'a, Option<u64>>;
}
