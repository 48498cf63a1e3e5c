//! The queue as operators and callers see it.

use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{PAGE_MAX, Priority, QueueError};
use crate::ids::{AppId, CallId, FunctionId};

/// Where a message is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It waits and is due.
    Queued,
    /// It waits for its time, before its first attempt or between two.
    Delayed,
    /// A worker has it.
    Running,
    /// A worker finished it.
    Done,
    /// It failed for good, or its deadline passed.
    Dead,
    /// It was cancelled before it ran.
    Cancelled,
}

/// A text that is no state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be queued, delayed, running, done, dead or cancelled")]
pub struct NoState;

impl FromStr for State {
    type Err = NoState;

    fn from_str(text: &str) -> Result<Self, NoState> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or(NoState)
    }
}

impl State {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Queued, Self::Delayed, Self::Running, Self::Done, Self::Dead, Self::Cancelled];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Delayed => "delayed",
            Self::Running => "running",
            Self::Done => "done",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A message without its envelope and payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageView {
    /// Names it.
    pub id: CallId,
    /// Its function.
    pub function_id: FunctionId,
    /// Its app.
    pub app_id: AppId,
    /// Its priority.
    pub priority: Priority,
    /// Where it is.
    pub state: State,
    /// Attempts that were begun.
    pub attempts: u32,
    /// Attempts that it may have.
    pub attempts_max: u32,
    /// When it was enqueued.
    pub created_at: Timestamp,
    /// When it is due, or was last.
    pub due_at: Timestamp,
    /// No attempt begins later.
    pub deadline_at: Option<Timestamp>,
    /// When its last attempt began.
    pub started_at: Option<Timestamp>,
    /// While it runs: when the lease ends.
    pub leased_until: Option<Timestamp>,
    /// Who has it, or had it last.
    pub worker: Option<String>,
    /// When it was done, dead or cancelled.
    pub ended_at: Option<Timestamp>,
    /// Why its last attempt failed.
    pub last_error: Option<String>,
    /// Size of the payload as it was enqueued.
    pub payload_bytes: u64,
}

/// Asks for a page of messages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// Of this function alone.
    pub function_id: Option<FunctionId>,
    /// In this state alone.
    pub state: Option<State>,
    /// After the page that gave this as [`Page::next`].
    pub after: Option<String>,
    /// At most so many, up to [`PAGE_MAX`].
    pub messages_max: usize,
}

impl List {
    /// Checks it against the limits of the queue.
    ///
    /// # Errors
    /// The first limit that is not kept.
    pub fn check(&self) -> Result<(), QueueError> {
        if self.messages_max == 0 || self.messages_max > PAGE_MAX {
            return Err(QueueError::Invalid(format!(
                "a page of {} messages; use 1 to {PAGE_MAX}",
                self.messages_max
            )));
        }
        Ok(())
    }
}

/// A page of messages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// In the order in which they were enqueued.
    pub messages: Vec<MessageView>,
    /// Asks for the next page; absent on the last.
    pub next: Option<String>,
}

/// What a function has in the queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Depth {
    /// The function.
    pub function_id: FunctionId,
    /// Messages that are due.
    pub queued: u64,
    /// Messages whose time has not come.
    pub delayed: u64,
    /// Messages that workers have.
    pub running: u64,
    /// Messages that failed for good.
    pub dead: u64,
    /// Since when the longest waiting message has been due.
    pub oldest_due_at: Option<Timestamp>,
}
