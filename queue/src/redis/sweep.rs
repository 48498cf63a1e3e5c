//! What becomes of messages by itself: leases and deadlines end.

use kiln_shared::queue::{QueueError, abandoned, expired};

use super::change::{Change, Changed, Lease, To};
use super::reply::{Fields, optional_number, rows};
use super::{Redis, script};
use crate::engine::{Broken, Horizon, Row, parse, stored};

/// Most leases, and most deadlines, that one sweep ends.
const SWEPT_MAX: i64 = 500;

/// What `lua/look.lua` answers: messages abandoned and late, and four times.
type Answer = (Vec<Fields>, Vec<Fields>, String, String, String, String);

/// What a look at the queue finds.
struct Look {
    abandoned: Vec<Row>,
    late: Vec<Row>,
    horizon: Horizon,
}

impl Redis {
    /// Ends what ended; what will end next, as of before.
    pub(super) async fn sweep(&self) -> Result<Horizon, QueueError> {
        self.end_what_ended(self.core.time.now_millis()).await
    }

    /// The same, at a time.
    pub(super) async fn end_what_ended(&self, now: i64) -> Result<Horizon, QueueError> {
        let look = self.look(now).await?;
        let abandoned = look.abandoned.iter().map(|row| {
            let worker = row.worker.as_deref().unwrap_or("its worker");
            let to = To::after(abandoned(&row.tries(), worker, now), row, now);
            Ok(Change { id: parse(&row.id)?, state: stored::RUNNING, lease: Lease::Ended(row.lease), to })
        });
        let late = look.late.iter().map(|row| {
            let to = To::Dead { error: expired(row.last_error.as_deref()) };
            Ok(Change { id: parse(&row.id)?, state: stored::WAITING, lease: Lease::Is(row.lease), to })
        });
        let changes = abandoned.chain(late).collect::<Result<Vec<Change>, Broken>>()?;
        let outcomes = self.change(&changes, now).await?;
        let given_up =
            outcomes.iter().take(look.abandoned.len()).filter(|outcome| **outcome == Changed::Made);
        metrics::counter!("kiln_queue_leases_abandoned_total").increment(given_up.count() as u64);
        Ok(look.horizon)
    }

    async fn look(&self, now: i64) -> Result<Look, QueueError> {
        let (abandoned, late, due, next_due, lease_ends, deadline): Answer =
            self.server.run(&script::LOOK, |command| _ = command.arg(now).arg(SWEPT_MAX)).await?;
        let horizon = Horizon {
            due_at: optional_number(&due)?,
            next_due_at: optional_number(&next_due)?,
            lease_ends_at: optional_number(&lease_ends)?,
            deadline_at: optional_number(&deadline)?,
        };
        Ok(Look { abandoned: rows(abandoned)?, late: rows(late)?, horizon })
    }
}
