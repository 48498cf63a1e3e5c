//! Taking messages in, once each.

use std::collections::HashSet;

use kiln_shared::queue::{Enqueued, NewMessage, QueueError};

use super::Machine;
use super::store::Message;
use crate::engine::{Effect, NewRow, Row, stored};

impl Machine {
    /// Stores what is new; all of it or, if there is no room, nothing.
    pub(super) fn enqueue(
        &mut self,
        messages: Vec<NewMessage>,
        messages_max: Option<u64>,
    ) -> Result<(Vec<Enqueued>, Effect), QueueError> {
        if let Some(messages_max) = messages_max
            && !messages.iter().all(|message| message.tells_an_end)
            && self.store.unfinished() + self.count_new(&messages) > messages_max
        {
            return Err(QueueError::Full { messages_max });
        }
        let mut effect = Effect::Nothing;
        let enqueued = messages.into_iter().map(|message| {
            if let Some(known) = self.known(&message) {
                return Enqueued::Known(known.id);
            }
            let id = message.id;
            let seq = self.store.next_seq();
            let message = stored_as(message, seq, self.latest_millis);
            effect = effect.and(Effect::of_waiting(message.row.due_at, self.latest_millis));
            self.store.insert(message);
            Enqueued::New(id)
        });
        let enqueued = enqueued.collect();
        Ok((enqueued, effect))
    }

    /// How many of the messages are not there yet; those of one id or key once.
    fn count_new(&self, messages: &[NewMessage]) -> u64 {
        let (mut ids, mut keys) = (HashSet::new(), HashSet::new());
        let mut count = 0;
        for message in messages {
            let is_first = ids.insert(message.id);
            let key = message.idempotency_key.as_deref();
            let has_new_key = key.is_none_or(|key| keys.insert((message.function_id, key)));
            count += u64::from(is_first && has_new_key && self.known(message).is_none());
        }
        count
    }

    fn known(&self, new: &NewMessage) -> Option<&Message> {
        let by_key = || self.store.by_key(new.function_id, new.idempotency_key.as_deref()?);
        self.store.by_id(new.id).or_else(by_key)
    }
}

fn stored_as(message: NewMessage, seq: i64, now: i64) -> Message {
    let new = NewRow::of(&message, now);
    let row = Row {
        seq,
        id: message.id.as_str().to_owned(),
        function_id: message.function_id.as_str().to_owned(),
        app_id: message.app_id.as_str().to_owned(),
        priority: message.priority.get().into(),
        state: stored::WAITING,
        due_at: new.due_at,
        deadline_at: new.deadline_at,
        created_at: now,
        started_at: None,
        leased_until: None,
        ended_at: None,
        lease: 0,
        attempts: 0,
        attempts_max: new.attempts_max,
        pause_min: new.pause_min,
        pause_max: new.pause_max,
        jitter: new.jitter,
        worker: None,
        last_error: None,
        payload_bytes: new.payload_bytes,
    };
    Message {
        row,
        id: message.id,
        function_id: message.function_id,
        priority: message.priority,
        key: message.idempotency_key,
        envelope: message.envelope.get().to_owned(),
        payload: message.payload,
    }
}
