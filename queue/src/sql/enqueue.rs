//! Storing messages once, however often they are enqueued.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use kiln_shared::ids::{CallId, FunctionId};
use kiln_shared::queue::{Enqueued, NewMessage, QueueError};

use super::operation::Fault;
use super::session::Session;
use crate::engine::{Core, Effect, Room, millis};

/// The answer for one batch.
type Answer = Result<Vec<Enqueued>, QueueError>;

/// Stores batches of several callers in one transaction; each is stored whole or, if there is no room, not at all.
pub(crate) async fn enqueue(
    session: &mut impl Session,
    core: &Core,
    batches: &[&[NewMessage]],
) -> Result<(Vec<Answer>, Effect), Fault> {
    let now = core.time.now_millis();
    let mut refusals: Vec<Option<QueueError>> = Vec::with_capacity(batches.len());
    for batch in batches {
        refusals.push(refusal(session, core, batch).await?);
    }
    let accepted = batches.iter().zip(&refusals).filter(|(_, refusal)| refusal.is_none());
    let messages: Vec<&NewMessage> = accepted.flat_map(|(batch, _)| batch.iter()).collect();
    let (mut stored, effect) = store(session, &messages, now).await?;
    let mut stored = stored.drain(..);
    let answers = batches.iter().zip(refusals).map(|(batch, refusal)| match refusal {
        Some(refusal) => Err(refusal),
        None => Ok(stored.by_ref().take(batch.len()).collect()),
    });
    Ok((answers.collect(), effect))
}

async fn refusal(
    session: &mut impl Session,
    core: &Core,
    batch: &[NewMessage],
) -> Result<Option<QueueError>, Fault> {
    if batch.iter().all(|message| message.tells_an_end) {
        return Ok(None);
    }
    let messages = batch.len() as u64;
    let mut room = core.room_for(messages);
    if matches!(room, Room::Uncounted) {
        core.counted(session.unfinished().await?);
        room = core.room_for(messages);
    }
    Ok(match room {
        Room::Full { messages_max } => Some(QueueError::Full { messages_max }),
        Room::Enough | Room::Uncounted => None,
    })
}

async fn store(
    session: &mut impl Session,
    messages: &[&NewMessage],
    now: i64,
) -> Result<(Vec<Enqueued>, Effect), Fault> {
    let first = first_of_each(messages);
    let distinct: Vec<usize> = (0..messages.len()).filter(|place| first[*place] == *place).collect();
    let new: Vec<&NewMessage> = distinct.iter().map(|place| messages[*place]).collect();
    let is_new = session.insert(&new, now).await?;
    let mut effect = Effect::Nothing;
    let mut enqueued: Vec<Option<Enqueued>> = vec![None; messages.len()];
    for ((place, message), is_new) in distinct.into_iter().zip(new).zip(is_new) {
        enqueued[place] = Some(if is_new {
            effect = effect.and(Effect::of_waiting(now + millis(message.delay), now));
            Enqueued::New(message.id)
        } else {
            // Gone meanwhile only if it was purged in between; then it has ended, as the caller is told.
            Enqueued::Known(session.known(message).await?.unwrap_or(message.id))
        });
    }
    let at = |place: usize| enqueued[first[place]].expect("each first one has an answer");
    let answers = (0..messages.len()).map(|place| match at(place) {
        answer if first[place] == place => answer,
        other => Enqueued::Known(other.id()),
    });
    Ok((answers.collect(), effect))
}

/// For each message the place of the first with its id or its key, which may be its own.
fn first_of_each(messages: &[&NewMessage]) -> Vec<usize> {
    let mut ids: HashMap<CallId, usize> = HashMap::with_capacity(messages.len());
    let mut keys: HashMap<(FunctionId, &str), usize> = HashMap::new();
    let mut first = Vec::with_capacity(messages.len());
    for (place, message) in messages.iter().enumerate() {
        let by_id = match ids.entry(message.id) {
            Entry::Occupied(there) => *there.get(),
            Entry::Vacant(free) => *free.insert(place),
        };
        let key = message.idempotency_key.as_deref();
        let by_key = key.map_or(by_id, |key| *keys.entry((message.function_id, key)).or_insert(by_id));
        first.push(first.get(by_key).copied().unwrap_or(place).min(by_id));
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_shared::ids::AppId;

    #[test]
    fn messages_of_one_id_or_key_are_one() {
        let (function, app) = (FunctionId::generate(), AppId::generate());
        let plain = || NewMessage::new(CallId::generate(), function, app, "");
        let keyed = |key: &str| NewMessage { idempotency_key: Some(key.to_owned()), ..plain() };
        let twice = plain();
        let elsewhere = NewMessage { function_id: FunctionId::generate(), ..keyed("a") };
        let batch =
            [plain(), keyed("a"), twice.clone(), keyed("b"), keyed("a"), twice, elsewhere, keyed("b")];
        let first = first_of_each(&batch.iter().collect::<Vec<_>>());
        assert_eq!(first, [0, 1, 2, 3, 1, 2, 6, 3]);
    }
}
