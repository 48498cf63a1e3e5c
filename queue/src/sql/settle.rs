//! What becomes of messages: kept, done, tried again, dead, cancelled, revived.

use std::collections::HashMap;
use std::time::Duration;

use kiln_shared::ids::CallId;
use kiln_shared::queue::{
    Cancelled, Held, Next, Outcome, Receipt, Redrive, Settled, Settlement, abandoned, expired, failed,
};

use super::operation::Fault;
use super::session::{Again, Buried, Session};
use crate::engine::{Effect, Row, millis, stored};

/// Most leases, and most deadlines, that one sweep ends.
const SWEPT_MAX: i64 = 500;

/// Has leases end at `until_millis`.
pub(super) async fn renew(
    session: &mut impl Session,
    receipts: &[Receipt],
    until_millis: i64,
) -> Result<Vec<Held>, Fault> {
    let rows = by_id(session, receipts.iter().map(|receipt| receipt.id)).await?;
    let held = |receipt: &Receipt| {
        rows.get(receipt.id.as_str()).filter(|row| row.state == stored::RUNNING && row.is_of(receipt))
    };
    let seqs: Vec<i64> = receipts.iter().filter_map(held).map(|row| row.seq).collect();
    session.hold(&seqs, until_millis).await?;
    Ok(receipts.iter().map(|receipt| if held(receipt).is_some() { Held::Held } else { Held::Lost }).collect())
}

/// What is to be stored after messages were settled, or left without a worker.
#[derive(Debug, Default)]
struct Changes {
    done: Vec<i64>,
    again: Vec<Again>,
    buried: Vec<Buried>,
    effect: Effect,
}

impl Changes {
    /// After a failure.
    fn follow(&mut self, row: &Row, next: Next, now: i64) -> Settled {
        match next {
            Next::Again { after, error } => {
                let attempts = row.attempts;
                self.wait(
                    Again { seq: row.seq, due_at: now + millis(after), attempts, last_error: Some(error) },
                    now,
                );
                Settled::Again { after }
            }
            Next::Dead { error } => {
                self.buried.push(Buried { seq: row.seq, last_error: error });
                Settled::Dead
            }
        }
    }

    fn wait(&mut self, again: Again, now: i64) {
        self.effect = self.effect.and(Effect::of_waiting(again.due_at, now));
        self.again.push(again);
    }

    async fn store(self, session: &mut impl Session, now: i64) -> Result<Effect, Fault> {
        if !self.done.is_empty() {
            session.end(&self.done, stored::DONE, now).await?;
        }
        if !self.again.is_empty() {
            session.put_back(&self.again).await?;
        }
        if !self.buried.is_empty() {
            session.bury(&self.buried, now).await?;
        }
        Ok(self.effect)
    }
}

/// Ends workers' work on messages.
pub(super) async fn settle(
    session: &mut impl Session,
    settlements: &[Settlement],
    now: i64,
) -> Result<(Vec<Settled>, Effect), Fault> {
    let rows = by_id(session, settlements.iter().map(|settlement| settlement.receipt.id)).await?;
    let mut changes = Changes::default();
    let settled = settlements.iter().map(|settlement| {
        let row = rows.get(settlement.receipt.id.as_str()).filter(|row| row.is_of(&settlement.receipt));
        let Some(row) = row else { return Settled::Lost };
        match (&settlement.outcome, row.state) {
            (Outcome::Done, stored::RUNNING) => {
                changes.done.push(row.seq);
                Settled::Done
            }
            (Outcome::Done, stored::DONE) => Settled::Done,
            (Outcome::Failed { error, retry }, stored::RUNNING) => {
                let next = failed(&row.tries(), error, *retry, now, rand::random());
                changes.follow(row, next, now)
            }
            (Outcome::Unstarted, stored::RUNNING) => {
                let attempts = row.attempts - 1;
                changes.wait(Again { seq: row.seq, due_at: row.due_at, attempts, last_error: None }, now);
                Settled::Again { after: Duration::ZERO }
            }
            _ => Settled::Lost,
        }
    });
    let settled = settled.collect();
    Ok((settled, changes.store(session, now).await?))
}

/// Ends what ended by itself: leases that nobody renewed, and waiting messages whose deadline passed.
pub(super) async fn sweep(session: &mut impl Session, now: i64) -> Result<Effect, Fault> {
    let mut changes = Changes::default();
    for row in session.abandoned(now, SWEPT_MAX).await? {
        let worker = row.worker.as_deref().unwrap_or("its worker");
        let next = abandoned(&row.tries(), worker, now);
        changes.follow(&row, next, now);
        metrics::counter!("kiln_queue_leases_abandoned_total").increment(1);
    }
    for row in session.late(now, SWEPT_MAX).await? {
        changes.buried.push(Buried { seq: row.seq, last_error: expired(row.last_error.as_deref()) });
    }
    changes.store(session, now).await
}

/// Takes a waiting message out.
pub(super) async fn cancel(session: &mut impl Session, id: CallId, now: i64) -> Result<Cancelled, Fault> {
    let rows = session.locked(&[id]).await?;
    Ok(match rows.first() {
        None => Cancelled::Unknown,
        Some(row) if row.state == stored::WAITING => {
            session.end(&[row.seq], stored::CANCELLED, now).await?;
            Cancelled::Cancelled
        }
        Some(row) if row.state == stored::RUNNING => Cancelled::Running,
        Some(_) => Cancelled::Ended,
    })
}

/// Revives dead messages; how many.
pub(super) async fn redrive(session: &mut impl Session, redrive: Redrive, now: i64) -> Result<u64, Fault> {
    let rows = match redrive {
        Redrive::Message(id) => session.locked(&[id]).await?,
        Redrive::Function { function_id, messages_max } => {
            session.dead(function_id, messages_max as i64).await?
        }
    };
    let seqs: Vec<i64> = rows.iter().filter(|row| row.state == stored::DEAD).map(|row| row.seq).collect();
    if !seqs.is_empty() {
        session.revive(&seqs, now).await?;
    }
    Ok(seqs.len() as u64)
}

async fn by_id(
    session: &mut impl Session,
    ids: impl Iterator<Item = CallId>,
) -> Result<HashMap<String, Row>, Fault> {
    let ids: Vec<CallId> = ids.collect();
    let rows = session.locked(&ids).await?;
    Ok(rows.into_iter().map(|row| (row.id.clone(), row)).collect())
}
