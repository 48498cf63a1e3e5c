//! What destinations are told of: which function or URL hears of an end, as a message of the same queue.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_shared::function::Function;
use kiln_shared::ids::{CallId, FunctionId};
use kiln_shared::queue::{BATCH_BYTES_MAX, Destination, Finished, NewMessage, Queue, QueueError};

use super::notice::{End, Recipient, notice};
use crate::route::RouteReader;

/// Most names of destinations that are remembered with their ids.
const NAMES_MAX: usize = 10_000;

/// Tells destinations.
#[derive(Debug)]
pub(super) struct Teller {
    queue: Arc<dyn Queue>,
    routes: RouteReader,
    names: Mutex<HashMap<(String, String), FunctionId>>,
}

impl Teller {
    pub(super) fn new(queue: Arc<dyn Queue>, routes: RouteReader) -> Self {
        Self { queue, routes, names: Mutex::default() }
    }

    /// Stores notices, as many at a time as the queue takes.
    pub(super) async fn tell(&self, notices: Vec<NewMessage>) -> Result<(), QueueError> {
        for batch in batches(notices) {
            self.queue.enqueue(batch).await?;
        }
        Ok(())
    }

    /// The message for the destination of what a node told, if there is one.
    pub(super) fn notice_of_end(&self, finished: &Finished, end: End<'_>) -> Option<NewMessage> {
        self.notice_of(finished.receipt.id, finished.function_id, finished.attempt, end)
    }

    /// The message for the destination of this end, if there is one.
    pub(super) fn notice_of(
        &self,
        call: CallId,
        function_id: FunctionId,
        attempts: u32,
        end: End<'_>,
    ) -> Option<NewMessage> {
        let function = self.function(function_id)?;
        let policy = &function.spec.detached;
        let destination = match end {
            End::Success(_) => policy.on_success.as_ref(),
            End::Dead(_) => policy.on_failure.as_ref(),
        };
        let made = match destination? {
            Destination::Http(url) => notice(call, &function, attempts, end, Recipient::Url(url)),
            Destination::Function { app, function: name } => {
                let Some(to) = self.named(app, name) else {
                    tracing::warn!(%call, destination = %destination?, "no such destination; nothing is told");
                    metrics::counter!("kiln_destinations_missing_total").increment(1);
                    return None;
                };
                notice(call, &function, attempts, end, Recipient::Function(&to))
            }
        };
        made.inspect_err(|error| tracing::warn!(%call, %error, "cannot tell a destination")).ok()
    }

    /// A function by its names. O(functions) the first time, O(1) then.
    fn named(&self, app: &str, name: &str) -> Option<Arc<Function>> {
        let is_named = |function: &Arc<Function>| function.spec.app_name == app && function.spec.name == name;
        let key = (app.to_owned(), name.to_owned());
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = names.get(&key).and_then(|id| self.function(*id)).filter(is_named) {
            return Some(function);
        }
        let mut routes = self.routes.clone();
        let function = routes.routes().functions().find(|function| is_named(function)).cloned()?;
        if names.len() >= NAMES_MAX {
            names.clear();
        }
        names.insert(key, function.spec.id);
        Some(function)
    }

    fn function(&self, id: FunctionId) -> Option<Arc<Function>> {
        self.routes.clone().routes().function(&id).ok().cloned()
    }
}

/// Messages in as many batches as it takes for each to be one that the queue takes.
fn batches(messages: Vec<NewMessage>) -> Vec<Vec<NewMessage>> {
    let mut batches: Vec<Vec<NewMessage>> = Vec::new();
    let mut bytes_left = 0;
    for message in messages {
        let bytes = message.payload.len() + message.envelope.get().len();
        match batches.last_mut() {
            Some(batch) if bytes <= bytes_left => {
                bytes_left -= bytes;
                batch.push(message);
            }
            _ => {
                bytes_left = BATCH_BYTES_MAX.saturating_sub(bytes);
                batches.push(vec![message]);
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use kiln_shared::ids::AppId;

    use super::*;

    #[test]
    fn notices_are_stored_in_batches_that_the_queue_takes() {
        let message = |bytes: usize| {
            let payload = vec![b'x'; bytes];
            NewMessage::new(CallId::generate(), FunctionId::generate(), AppId::generate(), payload)
        };
        let sizes = |messages: Vec<NewMessage>| {
            let batches = batches(messages);
            assert!(batches.iter().all(|batch| NewMessage::check(batch).is_ok()));
            batches.iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert!(sizes(Vec::new()).is_empty());
        let eighth = BATCH_BYTES_MAX / 8;
        assert_eq!(sizes((0..9).map(|_| message(eighth)).collect()), [7, 2]);
        assert_eq!(sizes(vec![message(1), message(2)]), [2]);
    }
}
