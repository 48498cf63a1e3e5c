//! The async queue: calls that wait, safely on disk or in a server, until a node has room for them.
//!
//! The seam between those who accept calls, those who run them, and the backends (crate `kiln-queue`). Knows no
//! database. What every backend must do is in the suite `queue/tests/queue/conformance/`.
//!
//! What always holds, for every backend:
//! - A message that [`Queue::enqueue`] answered for survives the death of every process and of the queue's server.
//! - A message is given to one worker at a time, under a lease. A lease that ends unrenewed gives the message back,
//!   its attempt counted; the old [`Receipt`] is [`Held::Lost`] once somebody else has the message.
//! - Delivery is at least once: a worker that answers too late, or whose answer is lost, may have run the message
//!   that another runs again.
//! - Times are the queue server's, so that the clocks of nodes do not matter; all have milliseconds.

mod error;
mod message;
mod operations;
mod policy;
mod retry;
mod stored_call;
mod transition;
mod view;
mod wake;
mod work;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

pub use error::QueueError;
pub use message::{Enqueued, NewMessage, Priority, Reserved};
pub use operations::{
    Cancelled, Functions, Held, Outcome, Preferred, Purge, Receipt, Redrive, Reserve, Retry, Settled,
    Settlement,
};
pub use policy::{Destination, DetachedPolicy, NoDestination, RetryInput};
pub use retry::RetryPolicy;
pub use stored_call::StoredCall;
pub use transition::{Next, Tries, abandoned, expired, failed, kept_error};
pub use view::{Depth, List, MessageView, NoState, Page, State};
pub use wake::{QueueClosed, WakeSource, Wakeups};
pub use work::{ANSWER_BYTES_MAX, Finished, KeptAnswer, TAKE_WAIT_MAX, Work, WorkSource};

use crate::ids::CallId;

/// Largest payload of a message, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 8 << 20;
/// Largest envelope of a message, in bytes of JSON.
pub const ENVELOPE_BYTES_MAX: usize = 64 << 10;
/// Most messages, receipts or settlements in one operation.
pub const BATCH_MAX: usize = 1000;
/// Most bytes of payloads in one enqueue or one reserve; a reserve gives at least one message all the same.
pub const BATCH_BYTES_MAX: usize = 32 << 20;
/// Longest idempotency key, in bytes.
pub const KEY_BYTES_MAX: usize = 256;
/// Longest name of a worker, in bytes.
pub const WORKER_BYTES_MAX: usize = 256;
/// What is kept of an error's text, in bytes.
pub const ERROR_BYTES_MAX: usize = 4096;
/// Most messages on a page of a list.
pub const PAGE_MAX: usize = 500;
/// Most functions that one reserve names.
pub const FUNCTIONS_MAX: usize = 1000;
/// Longest lease, delay of a retry, and pause between attempts.
pub const LEASE_MAX: Duration = Duration::from_hours(24);
/// Longest delay and latest deadline of a message.
pub const DELAY_MAX: Duration = Duration::from_hours(24 * 366);

/// An operation under way.
pub type QueueFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, QueueError>> + Send + 'a>>;

/// A queue. Operations on many items are all or nothing in what they store, and answer item by item in the given
/// order. Dropping an operation's future may or may not undo it; repeating any of them does no harm.
pub trait Queue: Send + Sync + std::fmt::Debug {
    /// Stores messages; durable when this answers. One whose id is there already, or whose idempotency key its
    /// function has used, is not stored again: the answer names the one that was.
    ///
    /// # Errors
    /// [`QueueError::Invalid`] and [`QueueError::TooLarge`] for what is over a limit, [`QueueError::Full`] if there
    /// is no room, [`QueueError::Unavailable`] if the backend is away. Then nothing was stored, unless a connection
    /// broke at the end: repeat it with the same ids.
    fn enqueue(&self, messages: Vec<NewMessage>) -> QueueFuture<'_, Vec<Enqueued>>;

    /// Gives up to [`Reserve::messages_max`] messages that are due to a worker, under a lease: higher priorities
    /// first; within one, fair between functions; within a function in the order in which they became due. Never
    /// waits for messages: see [`Self::subscribe`].
    fn reserve(&self, reserve: Reserve) -> QueueFuture<'_, Vec<Reserved>>;

    /// Has leases end `lease` from now.
    fn renew(&self, receipts: Vec<Receipt>, lease: Duration) -> QueueFuture<'_, Vec<Held>>;

    /// Tells how messages ended: done, failed, or given back unstarted.
    fn settle(&self, settlements: Vec<Settlement>) -> QueueFuture<'_, Vec<Settled>>;

    /// One message as it is now.
    fn inspect(&self, id: CallId) -> QueueFuture<'_, Option<MessageView>>;

    /// Messages in the order in which they were enqueued, page by page.
    fn list(&self, list: List) -> QueueFuture<'_, Page>;

    /// Puts dead messages back in the queue, with all their attempts and without a deadline; how many.
    fn redrive(&self, redrive: Redrive) -> QueueFuture<'_, u64>;

    /// Takes a message that waits out of the queue.
    fn cancel(&self, id: CallId) -> QueueFuture<'_, Cancelled>;

    /// What waits, runs and is dead, for each function of which there is any, ordered by function.
    fn depth(&self) -> QueueFuture<'_, Vec<Depth>>;

    /// Forgets ended messages, some thousand at most; how many. Repeat until it answers 0. Idempotency keys are
    /// forgotten with their messages.
    fn purge(&self, purge: Purge) -> QueueFuture<'_, u64>;

    /// Tells from now on when messages may have become due.
    fn subscribe(&self) -> Wakeups;

    /// Finishes what is under way and closes connections. Later operations are [`QueueError::Unavailable`].
    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}
