//! Work: messages as nodes take them, with what it needs to run them.
//!
//! The seam between the agent and whoever holds the queue: the balancer in this process, or one at the other end of
//! the link. The queue itself is behind it, so that a node needs no credentials of its backend.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{Held, Outcome, QueueFuture, Receipt, Reserve, Reserved, Settled};
use crate::function::Function;
use crate::ids::FunctionId;

/// What is kept of an answer for a destination, in bytes.
pub const ANSWER_BYTES_MAX: usize = 256 << 10;
/// Longest wait for work in one question.
pub const TAKE_WAIT_MAX: Duration = Duration::from_mins(1);

/// A message and the function to run it with, as deployed now.
#[derive(Debug, Clone)]
pub struct Work {
    /// The message.
    pub message: Reserved,
    /// The function.
    pub function: Arc<Function>,
}

/// What a function answered, for a destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptAnswer {
    /// Its status.
    pub status: u16,
    /// Its content type, if it gave one.
    pub content_type: Option<String>,
    /// Its body, or the first [`ANSWER_BYTES_MAX`] bytes of it. Apart from the rest on the link.
    #[serde(skip)]
    pub body: Bytes,
    /// The body is longer.
    pub is_cut: bool,
}

/// A message that a node is done with, for now or for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// Proves that the node had it.
    pub receipt: Receipt,
    /// Its function.
    pub function_id: FunctionId,
    /// Which attempt this was, from 1.
    pub attempt: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// The answer, if the function has a destination for it.
    pub answer: Option<KeptAnswer>,
}

/// Where a node gets work.
pub trait WorkSource: Send + Sync + std::fmt::Debug {
    /// Takes what is due. If nothing is, waits for it, for up to `wait` or until `enough`, whichever is first. To be
    /// awaited to its end: what was taken by a future that is dropped comes back when its lease ends.
    ///
    /// # Errors
    /// As [`super::Queue::reserve`].
    fn take(&self, reserve: Reserve, wait: Duration, enough: CancellationToken)
    -> QueueFuture<'_, Vec<Work>>;

    /// As [`super::Queue::renew`].
    ///
    /// # Errors
    /// As there.
    fn renew(&self, receipts: Vec<Receipt>, lease: Duration) -> QueueFuture<'_, Vec<Held>>;

    /// Tells how work ended, and sends on what goes to destinations. Repeating it does no harm.
    ///
    /// # Errors
    /// As [`super::Queue::settle`].
    fn finish(&self, finished: Vec<Finished>) -> QueueFuture<'_, Vec<Settled>>;
}
