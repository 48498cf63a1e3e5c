//! The operations, each one transaction.

use kiln_shared::queue::{List, Page, QueueError};

use super::session::Session;
use super::{enqueue, reserve, settle};
use crate::engine::{Broken, Core, Effect, Operation, PURGED_MAX, Reply, millis, page_begin};

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

impl From<Broken> for Fault {
    fn from(broken: Broken) -> Self {
        Self::Sql(broken.into())
    }
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
    let after = page_begin(list)?;
    let rows = session.rows(list, after, now).await?;
    let next = rows.get(list.messages_max.saturating_sub(1)).map(|last| last.seq.to_string());
    let messages = rows.iter().map(|row| row.view(now)).collect::<Result<_, _>>()?;
    Ok(Page { messages, next })
}
