//! Storing messages once, however often they are enqueued.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use kiln_shared::ids::{CallId, FunctionId};
use kiln_shared::queue::{Enqueued, NewMessage, QueueError};

use super::operation::Fault;
use super::session::Session;
use crate::engine::{Core, Effect, Room, millis, parse};

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
    let full = no_room(session, core, batch.len()).await?;
    if full.is_none() {
        return Ok(None);
    }
    // What is there takes no room: whoever repeats what may have been stored shall learn that it was.
    let batch: Vec<&NewMessage> = batch.iter().collect();
    let known = Known::of(session, &batch).await?;
    let new = batch.iter().filter(|message| known.id(message).is_none()).count();
    match new {
        0 => Ok(None),
        new if new < batch.len() => no_room(session, core, new).await,
        _ => Ok(full),
    }
}

/// The refusal of so many messages, if there is no room.
async fn no_room(
    session: &mut impl Session,
    core: &Core,
    messages: usize,
) -> Result<Option<QueueError>, Fault> {
    let mut room = core.room_for(messages as u64);
    if matches!(room, Room::Uncounted) {
        core.counted(session.unfinished().await?);
        room = core.room_for(messages as u64);
    }
    Ok(match room {
        Room::Full { messages_max } => Some(QueueError::Full { messages_max }),
        Room::Enough | Room::Uncounted => None,
    })
}

/// Stored messages, by what new ones may have in common with them.
#[derive(Debug, Default)]
struct Known {
    ids: HashSet<CallId>,
    keys: HashMap<(FunctionId, String), CallId>,
}

impl Known {
    async fn of(session: &mut impl Session, new: &[&NewMessage]) -> Result<Self, Fault> {
        let mut known = Self::default();
        if new.is_empty() {
            return Ok(known);
        }
        for row in session.known(new).await? {
            let id = parse(&row.id)?;
            known.ids.insert(id);
            if let Some(key) = row.idempotency_key {
                known.keys.insert((parse(&row.function_id)?, key), id);
            }
        }
        Ok(known)
    }

    /// The message with the new one's id or, if there is none, with its function and key.
    fn id(&self, new: &NewMessage) -> Option<CallId> {
        if self.ids.contains(&new.id) {
            return Some(new.id);
        }
        let key = new.idempotency_key.clone()?;
        self.keys.get(&(new.function_id, key)).copied()
    }
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
    let refused = new.iter().zip(&is_new).filter(|(_, is_new)| !**is_new).map(|(message, _)| *message);
    let known = Known::of(session, &refused.collect::<Vec<_>>()).await?;
    let mut effect = Effect::Nothing;
    let mut enqueued: Vec<Option<Enqueued>> = vec![None; messages.len()];
    for ((place, message), is_new) in distinct.into_iter().zip(new).zip(is_new) {
        enqueued[place] = Some(if is_new {
            effect = effect.and(Effect::of_waiting(now + millis(message.delay), now));
            Enqueued::New(message.id)
        } else {
            // Gone meanwhile only if it was purged in between; then it has ended, as the caller is told.
            Enqueued::Known(known.id(message).unwrap_or(message.id))
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
