//! Giving messages to a worker.

use kiln_shared::ids::FunctionId;
use kiln_shared::queue::{BATCH_BYTES_MAX, Priority, QueueError, Reserve, Reserved};

use super::reply::{Fields, with_body};
use super::{Redis, script};
use crate::engine::{Broken, millis, parse, priority};
use crate::fair::{Allotment, LANES_MAX, Lane, Selection};

/// A reserve under way.
struct Hand<'a> {
    reserve: &'a Reserve,
    now: i64,
    /// Of payloads, left in the answer.
    room_bytes: usize,
    given: Vec<Reserved>,
}

impl Redis {
    pub(super) async fn reserve(&self, reserve: &Reserve) -> Result<Vec<Reserved>, QueueError> {
        let now = self.core.time.now_millis();
        if self.core.is_time_to_sweep(now) {
            self.end_what_ended(now).await?;
        }
        let mut selection = Selection::new(self.lanes(now).await?, reserve);
        let mut hand = Hand { reserve, now, room_bytes: BATCH_BYTES_MAX, given: Vec::new() };
        loop {
            let round = self.core.with_turns(|turns| selection.round(reserve, turns, now));
            if round.is_empty() {
                return Ok(hand.given);
            }
            match self.take(&round, &mut hand, &mut selection).await {
                Ok(()) => {}
                // What the rounds before gave is the worker's already.
                Err(_) if !hand.given.is_empty() => return Ok(hand.given),
                Err(error) => return Err(error),
            }
        }
    }

    /// The lanes whose first message is due.
    async fn lanes(&self, now: i64) -> Result<Vec<Lane>, QueueError> {
        let lanes: Vec<(String, i64)> =
            self.server.run(&script::LANES, |command| _ = command.arg(now).arg(LANES_MAX)).await?;
        let lanes = lanes.iter().map(|(name, due_millis)| {
            let (priority, function_id) = lane(name)?;
            Ok(Lane { priority, function_id, due_millis: *due_millis })
        });
        Ok(lanes.collect::<Result<_, Broken>>()?)
    }

    /// One round: takes what lanes have, up to their allotments.
    async fn take(
        &self,
        round: &[Allotment],
        hand: &mut Hand<'_>,
        selection: &mut Selection,
    ) -> Result<(), QueueError> {
        let (all_fitted, lanes): (bool, Vec<Vec<Fields>>) = self
            .server
            .run(&script::TAKE, |command| {
                let until = hand.now + millis(hand.reserve.lease);
                command.arg(hand.now).arg(&hand.reserve.worker).arg(until).arg(hand.room_bytes);
                command.arg(i32::from(hand.given.is_empty()));
                for Allotment { priority, function_id, messages_max } in round {
                    command.arg(format!("{}:{function_id}", priority.get())).arg(*messages_max);
                }
            })
            .await?;
        for (allotment, given) in round.iter().zip(lanes) {
            selection.took(allotment, given.len());
            for fields in given {
                let (row, envelope, payload) = with_body(fields)?;
                hand.room_bytes = hand.room_bytes.saturating_sub(payload.len());
                hand.given.push(row.reserved(envelope, payload)?);
            }
        }
        if !all_fitted {
            selection.end();
        }
        Ok(())
    }
}

/// A lane's priority and function.
pub(super) fn lane(name: &str) -> Result<(Priority, FunctionId), Broken> {
    let (number, function) =
        name.split_once(':').ok_or_else(|| Broken(format!("{name:?} is no priority and function")))?;
    let number = number.parse().map_err(|_| Broken(format!("{number:?} is no priority")))?;
    Ok((priority(number)?, parse(function)?))
}
