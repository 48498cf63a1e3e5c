//! What becomes of messages because somebody says so.

use std::collections::HashMap;
use std::time::Duration;

use kiln_shared::ids::CallId;
use kiln_shared::queue::QueueError;
use kiln_shared::queue::{
    Cancelled, Held, List, Next, Outcome, Receipt, Redrive, Settled, Settlement, State, failed,
};

use super::change::{Change, Changed, Lease, To};
use super::{Redis, reply, script};
use crate::engine::{Row, millis, parse, stored};

impl Redis {
    pub(super) async fn renew(&self, receipts: &[Receipt], lease: Duration) -> Result<Vec<Held>, QueueError> {
        let now = self.core.time.now_millis();
        let until = now + millis(lease);
        let changes: Vec<Change> = receipts.iter().map(|receipt| held(receipt, To::Hold(until))).collect();
        let outcomes = self.change(&changes, now).await?;
        let held = |outcome: &Changed| if *outcome == Changed::Made { Held::Held } else { Held::Lost };
        Ok(outcomes.iter().map(held).collect())
    }

    pub(super) async fn settle(&self, settlements: &[Settlement]) -> Result<Vec<Settled>, QueueError> {
        let now = self.core.time.now_millis();
        let failed =
            settlements.iter().filter(|settlement| matches!(settlement.outcome, Outcome::Failed { .. }));
        let ids: Vec<CallId> = failed.map(|settlement| settlement.receipt.id).collect();
        let rows = self.rows(&ids).await?;
        let rows: HashMap<&str, &Row> = rows.iter().map(|row| (row.id.as_str(), row)).collect();
        let decided: Vec<Option<(To, Settled)>> = settlements
            .iter()
            .map(|settlement| decide(settlement, rows.get(settlement.receipt.id.as_str()).copied(), now))
            .collect();
        let (mut changes, mut meant) = (Vec::new(), Vec::with_capacity(settlements.len()));
        for (settlement, decided) in settlements.iter().zip(decided) {
            meant.push(decided.map(|(to, settled)| {
                changes.push(held(&settlement.receipt, to));
                settled
            }));
        }
        let mut outcomes = self.change(&changes, now).await?.into_iter();
        let settled = settlements.iter().zip(meant).map(|(settlement, meant)| {
            let Some((settled, outcome)) = meant.and_then(|settled| Some((settled, outcomes.next()?))) else {
                return Settled::Lost;
            };
            let is_said_again = settled == Settled::Done && outcome.is_done_in(settlement.receipt.lease);
            if outcome == Changed::Made || is_said_again { settled } else { Settled::Lost }
        });
        Ok(settled.collect())
    }

    pub(super) async fn cancel(&self, id: CallId) -> Result<Cancelled, QueueError> {
        let now = self.core.time.now_millis();
        Ok(match self.change_one(id, stored::WAITING, To::Cancelled, now).await? {
            Changed::Made => Cancelled::Cancelled,
            Changed::Unknown => Cancelled::Unknown,
            Changed::Otherwise { state: stored::RUNNING, .. } => Cancelled::Running,
            Changed::Otherwise { .. } => Cancelled::Ended,
        })
    }

    pub(super) async fn redrive(&self, redrive: Redrive) -> Result<u64, QueueError> {
        let now = self.core.time.now_millis();
        let ids = match redrive {
            Redrive::Message(id) => vec![id],
            Redrive::Function { function_id, messages_max } => {
                let list = List {
                    function_id: Some(function_id),
                    state: Some(State::Dead),
                    messages_max,
                    ..List::default()
                };
                let dead = self.scan(&list, 0, now).await?;
                dead.iter().map(|row| parse(&row.id)).collect::<Result<_, _>>()?
            }
        };
        let revived = |id| Change { id, state: stored::DEAD, lease: Lease::Any, to: To::Revived(now) };
        let changes: Vec<Change> = ids.into_iter().map(revived).collect();
        let outcomes = self.change(&changes, now).await?;
        Ok(outcomes.iter().filter(|outcome| **outcome == Changed::Made).count() as u64)
    }

    /// The messages of these ids that are there.
    pub(super) async fn rows(&self, ids: &[CallId]) -> Result<Vec<Row>, QueueError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let write = |command: &mut redis::Cmd| ids.iter().for_each(|id| _ = command.arg(id.as_str()));
        Ok(reply::rows(self.server.run(&script::READ, write).await?)?)
    }
}

/// A change of a message that the receipt's worker has.
fn held(receipt: &Receipt, to: To) -> Change {
    // A number that no lease has stays one.
    let lease = i64::try_from(receipt.lease).unwrap_or(i64::MAX);
    Change { id: receipt.id, state: stored::RUNNING, lease: Lease::Is(lease), to }
}

/// What a settlement does, and its answer if it does. None: the worker has lost the message.
fn decide(settlement: &Settlement, row: Option<&Row>, now: i64) -> Option<(To, Settled)> {
    Some(match &settlement.outcome {
        Outcome::Done => (To::Done, Settled::Done),
        Outcome::Unstarted => (To::Back, Settled::Again { after: Duration::ZERO }),
        Outcome::Failed { error, retry } => {
            let row = row.filter(|row| row.state == stored::RUNNING && row.is_of(&settlement.receipt))?;
            let next = failed(&row.tries(), error, *retry, now, rand::random());
            let settled = match next {
                Next::Again { after, .. } => Settled::Again { after },
                Next::Dead { .. } => Settled::Dead,
            };
            (To::after(next, row, now), settled)
        }
    })
}

impl To {
    /// After an attempt that failed.
    pub(super) fn after(next: Next, row: &Row, now: i64) -> Self {
        match next {
            Next::Again { after, error } => {
                Self::Again { due_at: now + millis(after), attempts: row.attempts, error }
            }
            Next::Dead { error } => Self::Dead { error },
        }
    }
}
