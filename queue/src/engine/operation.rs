//! The operations and their answers, as an engine gets and gives them.

use std::time::Duration;

use kiln_shared::ids::CallId;
use kiln_shared::queue::{
    Cancelled, Depth, Enqueued, Held, List, MessageView, NewMessage, Page, Purge, QueueError, Receipt,
    Redrive, Reserve, Reserved, Settled, Settlement,
};

/// Most messages that one purge forgets.
pub(crate) const PURGED_MAX: i64 = 2_000;

/// What to do.
#[derive(Debug)]
pub(crate) enum Operation {
    Enqueue(Vec<NewMessage>),
    Reserve(Reserve),
    Renew(Vec<Receipt>, Duration),
    Settle(Vec<Settlement>),
    Redrive(Redrive),
    Cancel(CallId),
    Purge(Purge),
    Sweep,
    Inspect(CallId),
    List(List),
    Depth,
}

impl Operation {
    /// True if it changes nothing.
    #[cfg(any(feature = "sqlite", feature = "kafka"))]
    pub(crate) fn only_reads(&self) -> bool {
        matches!(self, Self::Inspect(_) | Self::List(_) | Self::Depth)
    }
}

/// What was answered; the variant is the operation's.
#[derive(Debug)]
pub(crate) enum Reply {
    Enqueued(Vec<Enqueued>),
    Reserved(Vec<Reserved>),
    Held(Vec<Held>),
    Settled(Vec<Settled>),
    Cancelled(Cancelled),
    Count(u64),
    Horizon(Horizon),
    Message(Option<Box<MessageView>>),
    Page(Page),
    Depth(Vec<Depth>),
}

/// What an operation means, once committed, to those who wait for messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Effect {
    #[default]
    Nothing,
    /// A message will be due at this time.
    Later(i64),
    /// A message is due.
    Due,
}

impl Effect {
    /// A message that waits and is due then.
    pub(crate) fn of_waiting(due_at: i64, now: i64) -> Self {
        if due_at <= now { Self::Due } else { Self::Later(due_at) }
    }

    /// Both.
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nothing, effect) | (effect, Self::Nothing) => effect,
            (Self::Later(one), Self::Later(other)) => Self::Later(one.min(other)),
            _ => Self::Due,
        }
    }
}

/// What happens next by itself. Fields are named as the columns.
#[expect(clippy::struct_field_names, reason = "all are times")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "sql", derive(sqlx::FromRow))]
pub(crate) struct Horizon {
    /// When the first waiting message is due, or was.
    pub(crate) due_at: Option<i64>,
    /// When the first that is not due yet will be.
    pub(crate) next_due_at: Option<i64>,
    /// When the first lease ends.
    pub(crate) lease_ends_at: Option<i64>,
    /// When the first waiting message is too late.
    pub(crate) deadline_at: Option<i64>,
}

/// The sequence number after which a page begins.
///
/// # Errors
/// [`QueueError::Invalid`] if no page gave it.
pub(crate) fn page_begin(list: &List) -> Result<i64, QueueError> {
    match &list.after {
        None => Ok(0),
        Some(after) => after
            .parse()
            .map_err(|_| QueueError::Invalid(format!("a page after {after:?}; use the last page's next"))),
    }
}
