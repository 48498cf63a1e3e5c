//! Giving messages to a worker.

use kiln_shared::queue::{BATCH_BYTES_MAX, QueueError, Reserve, Reserved};

use super::Machine;
use crate::engine::{Row, millis, stored};
use crate::fair::{Allotment, Selection};

impl Machine {
    /// Gives messages that are due. What ended is ended before.
    pub(super) fn reserve(&mut self, reserve: &Reserve) -> Result<Vec<Reserved>, QueueError> {
        let now = self.latest_millis;
        let until = now + millis(reserve.lease);
        let mut selection = Selection::new(self.store.lanes(now).collect(), reserve);
        let mut room_bytes = BATCH_BYTES_MAX;
        let mut reserved = Vec::new();
        loop {
            let round = selection.round(reserve, &mut self.turns, now);
            if round.is_empty() {
                return Ok(reserved);
            }
            for allotment in round {
                let seqs = self.pick(&allotment, now);
                selection.took(&allotment, seqs.len());
                for seq in seqs {
                    let Some(message) = self.store.get(seq) else { continue };
                    let bytes = message.payload.len();
                    if bytes > room_bytes && !reserved.is_empty() {
                        selection.end();
                        // What is not given was not leased either: it waits as before.
                        return Ok(reserved);
                    }
                    room_bytes = room_bytes.saturating_sub(bytes);
                    let given = message.row.reserved(message.envelope.clone(), message.payload.clone());
                    reserved.push(given.map_err(Self::broken)?);
                    self.store.change(seq, |message| lease(&mut message.row, &reserve.worker, now, until));
                }
            }
        }
    }

    fn pick(&self, allotment: &Allotment, now: i64) -> Vec<i64> {
        let due = self.store.due_in(allotment.priority, allotment.function_id, now);
        let is_in_time = |seq: &i64| {
            let deadline = self.store.get(*seq).and_then(|message| message.row.deadline_at);
            deadline.is_none_or(|deadline| deadline > now)
        };
        due.filter(is_in_time).take(allotment.messages_max).collect()
    }
}

fn lease(row: &mut Row, worker: &str, now: i64, until: i64) {
    row.state = stored::RUNNING;
    row.lease += 1;
    row.attempts += 1;
    row.worker = Some(worker.to_owned());
    row.started_at = Some(now);
    row.leased_until = Some(until);
}
