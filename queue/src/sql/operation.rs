//! The operations, each one transaction.

use std::time::Duration;

use kiln_shared::ids::CallId;
use kiln_shared::queue::{
    Cancelled, Depth, Enqueued, Held, List, MessageView, NewMessage, Page, Purge, QueueError, Receipt,
    Redrive, Reserve, Reserved, Settled, Settlement,
};

use super::core::Core;
use super::row::millis;
use super::session::{Horizon, Session};
use super::{enqueue, reserve, settle};

/// Most messages that one purge forgets.
const PURGED_MAX: i64 = 2_000;

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
    pub(super) fn of_waiting(due_at: i64, now: i64) -> Self {
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

/// An operation that may be committed.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) reply: Reply,
    pub(crate) effect: Effect,
}

/// An operation to be rolled back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
    /// Nothing was changed.
    #[error(transparent)]
    Refused(#[from] QueueError),
}

impl Done {
    fn quietly(reply: Reply) -> Self {
        Self { reply, effect: Effect::Nothing }
    }
}

/// Runs an operation in a transaction.
pub(crate) async fn run(
    session: &mut impl Session,
    core: &Core,
    operation: &Operation,
) -> Result<Done, Fault> {
    let now = core.time.now_millis();
    Ok(match operation {
        Operation::Enqueue(messages) => {
            let (mut answers, effect) = enqueue::enqueue(session, core, &[messages]).await?;
            let enqueued = answers.pop().expect("one answer for one batch")?;
            Done { reply: Reply::Enqueued(enqueued), effect }
        }
        Operation::Reserve(reserve) => {
            let (reserved, effect) = reserve::reserve(session, core, reserve).await?;
            Done { reply: Reply::Reserved(reserved), effect }
        }
        Operation::Renew(receipts, lease) => {
            Done::quietly(Reply::Held(settle::renew(session, receipts, now + millis(*lease)).await?))
        }
        Operation::Settle(settlements) => {
            let (settled, effect) = settle::settle(session, settlements, now).await?;
            Done { reply: Reply::Settled(settled), effect }
        }
        Operation::Redrive(redrive) => {
            let count = settle::redrive(session, *redrive, now).await?;
            let effect = if count > 0 { Effect::Due } else { Effect::Nothing };
            Done { reply: Reply::Count(count), effect }
        }
        Operation::Cancel(id) => Done::quietly(Reply::Cancelled(settle::cancel(session, *id, now).await?)),
        Operation::Purge(purge) => Done::quietly(Reply::Count(session.purge(*purge, now, PURGED_MAX).await?)),
        Operation::Sweep => {
            let effect = settle::sweep(session, now).await?;
            Done { reply: Reply::Horizon(session.horizon(now).await?), effect }
        }
        Operation::Inspect(id) => {
            let row = session.row(*id).await?;
            Done::quietly(Reply::Message(row.map(|row| row.view(now).map(Box::new)).transpose()?))
        }
        Operation::List(list) => Done::quietly(Reply::Page(page(session, list, now).await?)),
        Operation::Depth => Done::quietly(Reply::Depth(session.depth(now).await?)),
    })
}

async fn page(session: &mut impl Session, list: &List, now: i64) -> Result<Page, Fault> {
    let after = match &list.after {
        None => 0,
        Some(after) => after
            .parse()
            .map_err(|_| QueueError::Invalid(format!("a page after {after:?}; use the last page's next")))?,
    };
    let rows = session.rows(list, after, now).await?;
    let next = rows.get(list.messages_max.saturating_sub(1)).map(|last| last.seq.to_string());
    let messages = rows.iter().map(|row| row.view(now)).collect::<Result<_, _>>()?;
    Ok(Page { messages, next })
}
