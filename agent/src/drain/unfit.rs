//! Functions that are too large for this node: their messages are left to other nodes. Pure.

use std::collections::HashMap;
use std::time::Duration;

use kiln_shared::ids::FunctionId;
use tokio::time::Instant;

/// A function may have become smaller after this time.
const AGAIN_AFTER: Duration = Duration::from_mins(1);
/// Most functions that are remembered.
const FUNCTIONS_MAX: usize = 128;

/// What does not fit.
#[derive(Debug, Default)]
pub(super) struct Unfit {
    until: HashMap<FunctionId, Instant>,
}

impl Unfit {
    /// A message of the function came, and the node is too small for it. True if that is news.
    pub(super) fn found(&mut self, function: FunctionId, now: Instant) -> bool {
        self.until.retain(|_, until| *until > now);
        if self.until.len() >= FUNCTIONS_MAX && !self.until.contains_key(&function) {
            // The one that would be tried again first.
            let first = self.until.iter().min_by_key(|(_, until)| **until).map(|(function, _)| *function);
            first.and_then(|first| self.until.remove(&first));
        }
        self.until.insert(function, now + AGAIN_AFTER).is_none()
    }

    /// Those whose messages are not to be taken now, at most [`FUNCTIONS_MAX`].
    pub(super) fn functions(&self, now: Instant) -> impl Iterator<Item = FunctionId> {
        self.until.iter().filter(move |(_, until)| **until > now).map(|(function, _)| *function)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_does_not_fit_is_left_alone_for_a_while() {
        let (mut unfit, function, now) = (Unfit::default(), FunctionId::generate(), Instant::now());
        assert!(unfit.found(function, now));
        assert!(!unfit.found(function, now), "of a batch the first is news");
        let left = |unfit: &Unfit, at| unfit.functions(at).collect::<Vec<_>>();
        assert_eq!(left(&unfit, now), [function]);
        assert_eq!(left(&unfit, now + AGAIN_AFTER), []);
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_are_remembered_the_newest_ones() {
        let (mut unfit, first, now) = (Unfit::default(), FunctionId::generate(), Instant::now());
        unfit.found(first, now);
        for _ in 0..FUNCTIONS_MAX {
            unfit.found(FunctionId::generate(), now + Duration::from_secs(1));
        }
        let left: Vec<_> = unfit.functions(now + Duration::from_secs(2)).collect();
        assert!(left.len() == FUNCTIONS_MAX && !left.contains(&first));
    }
}
