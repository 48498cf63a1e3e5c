//! Giving messages to a worker.

use kiln_shared::queue::{BATCH_BYTES_MAX, Reserve, Reserved};

use super::lanes::lanes;
use super::operation::Fault;
use super::session::Session;
use super::settle;
use crate::engine::{Core, Effect, Row, millis};
use crate::fair::Selection;

/// Gives messages, those of leases that ended included; the effect is that of the ended ones.
pub(super) async fn reserve(
    session: &mut impl Session,
    core: &Core,
    reserve: &Reserve,
) -> Result<(Vec<Reserved>, Effect), Fault> {
    let now = core.time.now_millis();
    let effect =
        if core.is_time_to_sweep(now) { settle::sweep(session, now).await? } else { Effect::Nothing };
    let mut selection = Selection::new(lanes(session, core, now).await?, reserve);
    let until = now + millis(reserve.lease);
    let mut room_bytes = BATCH_BYTES_MAX;
    let mut reserved = Vec::new();
    loop {
        let round = core.with_turns(|turns| selection.round(reserve, turns, now));
        if round.is_empty() {
            return Ok((reserved, effect));
        }
        let mut rows: Vec<Row> = Vec::new();
        for (allotment, picked) in round.iter().zip(session.pick(&round, now).await?) {
            selection.took(allotment, picked.len());
            rows.extend(picked);
        }
        let fit = fitting(&rows, room_bytes, reserved.is_empty());
        if fit < rows.len() {
            rows.truncate(fit);
            selection.end();
        }
        if rows.is_empty() {
            continue;
        }
        room_bytes = room_bytes.saturating_sub(bytes(&rows));
        let seqs: Vec<i64> = rows.iter().map(|row| row.seq).collect();
        // Each round's before the next one picks, which else would find the same.
        let mut bodies = session.lease(&seqs, &reserve.worker, now, until).await?;
        for row in rows {
            let body = bodies.remove(&row.seq).ok_or_else(|| {
                sqlx::Error::Protocol(format!("message {} has lost what it carries", row.id))
            })?;
            reserved.push(row.reserved(body.envelope, body.payload)?);
        }
    }
}

/// How many of the rows fit in what is left of an answer; one in any case if the answer is empty.
fn fitting(rows: &[Row], room_bytes: usize, is_first: bool) -> usize {
    let mut bytes = 0;
    let over = rows.iter().position(|row| {
        bytes += row.payload_bytes as usize;
        bytes > room_bytes
    });
    over.unwrap_or(rows.len()).max(usize::from(is_first).min(rows.len()))
}

fn bytes(rows: &[Row]) -> usize {
    rows.iter().map(|row| row.payload_bytes as usize).sum()
}
