//! Room for messages where counting them costs: a count is good for a moment, and what is stored meanwhile is added.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Messages are counted at most this often.
const COUNT_EVERY: Duration = Duration::from_millis(100);

/// Whether messages fit.
pub(crate) enum Room {
    /// They do, and are counted.
    Enough,
    /// They may: count, then ask again.
    Uncounted,
    /// They do not.
    Full { messages_max: u64 },
}

/// How many messages wait or run, as of a moment ago.
#[derive(Debug, Default)]
pub(super) struct RoomCount {
    count: Mutex<Option<Count>>,
}

#[derive(Debug, Clone, Copy)]
struct Count {
    messages: u64,
    at: Instant,
}

impl RoomCount {
    /// Asks for room for so many messages.
    pub(super) fn ask(&self, messages: u64, messages_max: u64) -> Room {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *count {
            Some(count) if count.messages + messages <= messages_max => {
                count.messages += messages;
                Room::Enough
            }
            Some(count) if count.at.elapsed() < COUNT_EVERY => Room::Full { messages_max },
            _ => Room::Uncounted,
        }
    }

    /// Takes over a count made just now.
    pub(super) fn counted(&self, messages: u64) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count = Some(Count { messages, at: Instant::now() });
    }
}
