//! The queue as a state machine: what it holds in memory, and what each operation makes of it.
//!
//! For backends that keep a log of operations instead of tables. Pure: the time, the chance and the limit come with
//! each operation, so that whoever applies the same operations in the same order has the same queue, and gives the
//! same answers. Does no I/O, reads no clock.

mod enqueue;
mod image;
mod reserve;
mod settle;
mod store;
mod view;

pub(crate) use image::{Head, Image, Piece};
use kiln_shared::queue::{QueueError, Reserve};

use crate::engine::{Broken, Effect, Operation, Reply};
use crate::fair::Turns;
use store::Store;

/// What an operation needs beside its arguments.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// The asker's time, milliseconds since 1970. Time does not go back: the latest ever given counts.
    pub(crate) now_millis: i64,
    /// Where the jitter of pauses comes from.
    pub(crate) seed: u64,
    /// Most messages that may wait or run.
    pub(crate) messages_max: Option<u64>,
}

/// A queue in memory.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    store: Store,
    turns: Turns,
    latest_millis: i64,
    /// Leases that ended unsettled, since this machine was made.
    abandoned: u64,
}

impl Machine {
    /// Applies an operation. All of it happens, or nothing.
    ///
    /// # Errors
    /// Why it was refused; nothing changed.
    pub(crate) fn apply(
        &mut self,
        operation: Operation,
        terms: Terms,
    ) -> Result<(Reply, Effect), QueueError> {
        self.latest_millis = self.latest_millis.max(terms.now_millis);
        let now = self.latest_millis;
        Ok(match operation {
            Operation::Enqueue(messages) => {
                let (enqueued, effect) = self.enqueue(messages, terms.messages_max)?;
                (Reply::Enqueued(enqueued), effect)
            }
            Operation::Reserve(reserve) => {
                let effect = self.sweep();
                (Reply::Reserved(self.reserve(&reserve)?), effect)
            }
            Operation::Renew(receipts, lease) => (Reply::Held(self.renew(&receipts, lease)), Effect::Nothing),
            Operation::Settle(settlements) => {
                let (settled, effect) = self.settle(&settlements, terms.seed);
                (Reply::Settled(settled), effect)
            }
            Operation::Redrive(redrive) => {
                let count = self.redrive(redrive);
                (Reply::Count(count), if count > 0 { Effect::Due } else { Effect::Nothing })
            }
            Operation::Cancel(id) => (Reply::Cancelled(self.cancel(id)), Effect::Nothing),
            Operation::Purge(purge) => (Reply::Count(self.purge(purge)), Effect::Nothing),
            Operation::Sweep => {
                let effect = self.sweep();
                (Reply::Horizon(self.horizon(now)), effect)
            }
            reading @ (Operation::Inspect(_) | Operation::List(_) | Operation::Depth) => {
                (self.read(&reading, now)?, Effect::Nothing)
            }
        })
    }

    /// Answers an operation that changes nothing.
    ///
    /// # Errors
    /// [`QueueError::Invalid`] for a page that there cannot be.
    pub(crate) fn read(&self, operation: &Operation, now_millis: i64) -> Result<Reply, QueueError> {
        let now = self.latest_millis.max(now_millis);
        Ok(match operation {
            Operation::Inspect(id) => Reply::Message(self.inspect(*id, now)?.map(Box::new)),
            Operation::List(list) => Reply::Page(self.list(list, now)?),
            Operation::Depth => Reply::Depth(self.depth(now)?),
            changing => {
                return Err(QueueError::Failed(format!("{changing:?} changes something and is not read")));
            }
        })
    }

    /// True if the reserve would give something, or end leases or deadlines.
    pub(crate) fn has_work(&self, reserve: &Reserve, now_millis: i64) -> bool {
        let now = self.latest_millis.max(now_millis);
        self.has_ended(now) || self.store.lanes(now).any(|lane| reserve.wants(lane.function_id))
    }

    /// True if leases or deadlines have ended.
    pub(crate) fn has_ended(&self, now_millis: i64) -> bool {
        let now = self.latest_millis.max(now_millis);
        [self.store.first_lease_end(), self.store.first_deadline()].iter().flatten().any(|&end| end <= now)
    }

    /// The latest time that an operation gave.
    pub(crate) fn latest_millis(&self) -> i64 {
        self.latest_millis
    }

    /// How many leases ended before their messages were settled, of the operations applied here.
    pub(crate) fn abandoned(&self) -> u64 {
        self.abandoned
    }

    /// What envelopes and payloads take, in bytes.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.store.held_bytes()
    }

    /// True if there are no messages, in any state.
    pub(crate) fn is_empty(&self) -> bool {
        self.store.is_empty()
    }

    fn broken(broken: Broken) -> QueueError {
        broken.into()
    }
}
