//! Functions that messages are of and that are unknown at this balancer: they may become known, or are gone.

use std::collections::HashMap;
use std::time::Duration;

use kiln_shared::ids::FunctionId;
use tokio::time::Instant;

/// How long a message waits for its function to be known here before the catalog is asked whether it is gone. Another
/// balancer may have taken the call in before this one has heard of the function.
const UNKNOWN_FOR: Duration = Duration::from_secs(30);
/// How long messages of an unknown function are left alone.
pub(super) const UNKNOWN_PAUSE: Duration = Duration::from_secs(1);
/// Most unknown functions that are remembered; of others it is asked at once whether they are gone.
const UNKNOWN_MAX: usize = 500;

/// Functions of which there are messages and that the catalog, as it is known here, does not have.
#[derive(Debug, Default)]
pub(super) struct Unknown {
    functions: HashMap<FunctionId, Since>,
}

#[derive(Debug)]
struct Since {
    first: Instant,
    last: Instant,
}

impl Unknown {
    /// True if a message of the function has waited long enough for it to become known.
    pub(super) fn is_over(&mut self, function: FunctionId, now: Instant) -> bool {
        let has_room = self.functions.len() < UNKNOWN_MAX;
        let since = match self.functions.get_mut(&function) {
            Some(since) => since,
            None if has_room => self.functions.entry(function).or_insert(Since { first: now, last: now }),
            None => return true,
        };
        let is_over = now.duration_since(since.first) >= UNKNOWN_FOR;
        if !is_over {
            since.last = now;
        }
        is_over
    }

    /// The function is there after all: its messages wait once more.
    pub(super) fn begin_anew(&mut self, function: FunctionId, now: Instant) {
        if let Some(since) = self.functions.get_mut(&function) {
            *since = Since { first: now, last: now };
        }
    }

    /// Those whose messages are left alone now; forgets those that have become known or that nobody calls.
    pub(super) fn paused(&mut self, now: Instant, is_known: impl Fn(&FunctionId) -> bool) -> Vec<FunctionId> {
        self.functions.retain(|function, since| {
            !is_known(function) && now.duration_since(since.last) < 2 * UNKNOWN_FOR
        });
        let paused = self.functions.iter().filter(|(_, since)| {
            now.duration_since(since.last) < UNKNOWN_PAUSE && now.duration_since(since.first) < UNKNOWN_FOR
        });
        paused.map(|(function, _)| *function).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_an_unknown_function_waits_for_a_while_for_it_to_become_known() {
        let (function, begun) = (FunctionId::generate(), Instant::now());
        let mut unknown = Unknown::default();
        assert!(!unknown.is_over(function, begun));
        assert_eq!(unknown.paused(begun, |_| false), [function]);
        assert!(unknown.paused(begun + UNKNOWN_PAUSE, |_| false).is_empty());
        assert!(!unknown.is_over(function, begun + UNKNOWN_PAUSE));
        let late = begun + UNKNOWN_FOR;
        assert!(unknown.is_over(function, late));
        assert!(unknown.paused(late, |_| false).is_empty(), "others of its messages fail, too");
        unknown.begin_anew(function, late);
        assert!(!unknown.is_over(function, late));
        assert_eq!(unknown.paused(late, |_| false), [function]);
    }

    #[test]
    fn a_function_that_becomes_known_is_left_alone_no_longer() {
        let (function, now) = (FunctionId::generate(), Instant::now());
        let mut unknown = Unknown::default();
        unknown.is_over(function, now);
        assert!(unknown.paused(now, |_| true).is_empty());
        assert!(!unknown.is_over(function, now + UNKNOWN_FOR), "it begins anew");
    }
}
