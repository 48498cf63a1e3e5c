//! Storing messages.

use kiln_shared::queue::{Enqueued, NewMessage, QueueError};
use redis::Cmd;

use super::server::optional;
use super::{Redis, script};
use crate::engine::{Broken, Effect, NewRow, parse};

impl Redis {
    pub(super) async fn enqueue(&self, messages: &[NewMessage]) -> Result<Vec<Enqueued>, QueueError> {
        let now = self.core.time.now_millis();
        let is_limited = messages.iter().any(|message| !message.tells_an_end);
        let messages_max = self.core.messages_max().filter(|_| is_limited);
        let known: Option<Vec<String>> = self
            .server
            .run(&script::ENQUEUE, |command| {
                optional(command.arg(now), messages_max);
                self.server.publisher(command);
                for message in messages {
                    write(message, now, command);
                }
            })
            .await?;
        let known = known.ok_or(QueueError::Full { messages_max: messages_max.unwrap_or(u64::MAX) })?;
        let mut effect = Effect::Nothing;
        let enqueued = messages.iter().zip(known).map(|(message, known)| {
            if !known.is_empty() {
                return Ok(Enqueued::Known(parse(&known)?));
            }
            effect = effect.and(Effect::of_waiting(NewRow::of(message, now).due_at, now));
            Ok(Enqueued::New(message.id))
        });
        let enqueued = enqueued.collect::<Result<_, Broken>>()?;
        self.core.tell(effect);
        Ok(enqueued)
    }
}

/// The arguments of a message.
fn write(message: &NewMessage, now: i64, command: &mut Cmd) {
    let row = NewRow::of(message, now);
    command.arg(message.id.as_str()).arg(message.function_id.as_str()).arg(message.app_id.as_str());
    command.arg(message.priority.get()).arg(row.due_at);
    optional(command, row.deadline_at);
    command
        .arg(row.attempts_max)
        .arg(row.pause_min)
        .arg(row.pause_max)
        .arg(row.jitter)
        .arg(row.payload_bytes);
    command.arg(message.idempotency_key.as_deref().unwrap_or_default());
    // The payload first: it then needs no copy on its way out.
    command.arg([&message.payload[..], message.envelope.get().as_bytes()].concat());
}
