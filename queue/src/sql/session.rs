//! What a database must be able to do, each within the transaction that the session is.

use std::collections::HashMap;
use std::future::Future;

use kiln_shared::ids::{CallId, FunctionId};
use kiln_shared::queue::{Depth, List, NewMessage, Purge};

use super::row::{Body, KnownRow};
use crate::engine::{Horizon, Row};
use crate::fair::{Allotment, Lane, Place};

type Sql<T> = Result<T, sqlx::Error>;

/// A message that waits again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Again {
    pub(crate) seq: i64,
    pub(crate) due_at: i64,
    pub(crate) attempts: i64,
    /// None: as it was.
    pub(crate) last_error: Option<String>,
}

/// A message that is dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Buried {
    pub(crate) seq: i64,
    pub(crate) last_error: String,
}

/// Functions and keys of those messages that have a key.
pub(crate) fn keyed<'a>(new: &[&'a NewMessage]) -> impl Iterator<Item = (&'a str, &'a str)> {
    new.iter().filter_map(|message| Some((message.function_id.as_str(), message.idempotency_key.as_deref()?)))
}

/// The statements of one database, in a transaction. Rows that a method says it locks stay as they are, for others,
/// until the transaction ends.
pub(crate) trait Session: Send {
    /// Stores messages that are due at `now_millis` plus their delay; for each whether it is new. One whose id or key is
    /// there is left out.
    fn insert(&mut self, new: &[&NewMessage], now_millis: i64)
    -> impl Future<Output = Sql<Vec<bool>>> + Send;

    /// The stored messages with the ids of new ones, and those with the functions and keys of new ones.
    fn known(&mut self, new: &[&NewMessage]) -> impl Future<Output = Sql<Vec<KnownRow>>> + Send;

    /// How many messages wait or run.
    fn unfinished(&mut self) -> impl Future<Output = Sql<u64>> + Send;

    /// The first message of each function, where it is due: of each place's priority the first [`LANES_MAX`] functions
    /// behind the place.
    ///
    /// [`LANES_MAX`]: crate::fair::LANES_MAX
    fn lanes(&mut self, from: &[Place], now_millis: i64) -> impl Future<Output = Sql<Vec<Lane>>> + Send;

    /// The first due messages of each lane that are nobody else's, and locks them. By lane, in their order.
    fn pick(
        &mut self,
        allotments: &[Allotment],
        now_millis: i64,
    ) -> impl Future<Output = Sql<Vec<Vec<Row>>>> + Send;

    /// Has messages run: a new lease, one attempt more.
    fn lease(
        &mut self,
        seqs: &[i64],
        worker: &str,
        now_millis: i64,
        until_millis: i64,
    ) -> impl Future<Output = Sql<HashMap<i64, Body>>> + Send;

    /// The messages of these ids that are there, locked.
    fn locked(&mut self, ids: &[CallId]) -> impl Future<Output = Sql<Vec<Row>>> + Send;

    /// Running messages whose lease has ended, locked, but none that is locked already. The first to end first.
    fn abandoned(&mut self, now_millis: i64, rows_max: i64) -> impl Future<Output = Sql<Vec<Row>>> + Send;

    /// Waiting messages whose deadline has passed, locked, but none that is locked already.
    fn late(&mut self, now_millis: i64, rows_max: i64) -> impl Future<Output = Sql<Vec<Row>>> + Send;

    /// Dead messages of a function, locked, oldest first.
    fn dead(&mut self, function: FunctionId, rows_max: i64) -> impl Future<Output = Sql<Vec<Row>>> + Send;

    /// Has the leases of running messages end then.
    fn hold(&mut self, seqs: &[i64], until_millis: i64) -> impl Future<Output = Sql<()>> + Send;

    /// Ends messages in a stored state and forgets what they carry.
    fn end(&mut self, seqs: &[i64], state: i64, now_millis: i64) -> impl Future<Output = Sql<()>> + Send;

    /// Has messages wait again.
    fn put_back(&mut self, again: &[Again]) -> impl Future<Output = Sql<()>> + Send;

    /// Has messages be dead.
    fn bury(&mut self, buried: &[Buried], now_millis: i64) -> impl Future<Output = Sql<()>> + Send;

    /// Has dead messages wait again, due now, with no attempt counted and no deadline.
    fn revive(&mut self, seqs: &[i64], now_millis: i64) -> impl Future<Output = Sql<()>> + Send;

    /// Forgets ended messages, `rows_max` at most; how many.
    fn purge(
        &mut self,
        purge: Purge,
        now_millis: i64,
        rows_max: i64,
    ) -> impl Future<Output = Sql<u64>> + Send;

    /// One message.
    fn row(&mut self, id: CallId) -> impl Future<Output = Sql<Option<Row>>> + Send;

    /// Messages after a sequence number, in their order.
    fn rows(
        &mut self,
        list: &List,
        after_seq: i64,
        now_millis: i64,
    ) -> impl Future<Output = Sql<Vec<Row>>> + Send;

    /// What each function has.
    fn depth(&mut self, now_millis: i64) -> impl Future<Output = Sql<Vec<Depth>>> + Send;

    /// What happens next by itself.
    fn horizon(&mut self, now_millis: i64) -> impl Future<Output = Sql<Horizon>> + Send;
}
