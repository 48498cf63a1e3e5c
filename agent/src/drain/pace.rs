//! How much work is taken ahead for a container, so that it does not wait for the next message. Pure.
//!
//! Short calls end faster than messages can be asked for one by one; long ones that wait here could begin elsewhere.

use std::collections::HashMap;
use std::time::Duration;

use kiln_shared::ids::FunctionId;

/// How long the work that is taken ahead for a container lasts: some times what it takes to ask for more.
const AHEAD_TIME: Duration = Duration::from_millis(20);
/// Most messages that are taken ahead for one container: what is taken at once is run at once, and others wait for a
/// processor meanwhile.
const AHEAD_MAX: usize = 16;
/// Messages that are taken ahead before the function's pace is known: it may be a slow one.
const AHEAD_UNKNOWN: usize = 1;
/// Weight of the newest run in a mean.
const NEWEST_WEIGHT: f64 = 0.2;
/// Functions whose pace is remembered; when there are more, all are forgotten and learned again.
const FUNCTIONS_MAX: usize = 1000;

/// How long the queued calls of functions take here.
#[derive(Debug, Default)]
pub(super) struct Paces {
    means: HashMap<FunctionId, Duration>,
}

impl Paces {
    /// A call took so long, from when it had its container.
    pub(super) fn ran(&mut self, function: FunctionId, took: Duration) {
        if self.means.len() >= FUNCTIONS_MAX && !self.means.contains_key(&function) {
            self.means.clear();
        }
        let mean = self.means.entry(function).or_insert(took);
        *mean = mean.mul_f64(1.0 - NEWEST_WEIGHT) + took.mul_f64(NEWEST_WEIGHT);
    }

    /// How many messages may wait for each container of the function, from 1 to [`AHEAD_MAX`].
    pub(super) fn ahead(&self, function: FunctionId) -> usize {
        let Some(mean) = self.means.get(&function) else { return AHEAD_UNKNOWN };
        let calls = AHEAD_TIME.as_nanos() / mean.as_nanos().max(1);
        usize::try_from(calls).unwrap_or(AHEAD_MAX).clamp(1, AHEAD_MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn short_calls_are_taken_ahead_by_the_dozen_and_long_ones_one_by_one() {
        let (quick, slow, unknown) = (FunctionId::generate(), FunctionId::generate(), FunctionId::generate());
        let mut paces = Paces::default();
        paces.ran(quick, Duration::from_millis(2));
        paces.ran(slow, Duration::from_secs(3));
        let ahead = [quick, slow, unknown].map(|function| paces.ahead(function));
        assert_eq!(ahead, [10, 1, AHEAD_UNKNOWN]);
    }

    #[test]
    fn a_function_that_becomes_slow_is_soon_taken_one_by_one() {
        let (function, mut paces) = (FunctionId::generate(), Paces::default());
        paces.ran(function, Duration::ZERO);
        assert_eq!(paces.ahead(function), AHEAD_MAX);
        paces.ran(function, Duration::from_secs(1));
        assert_eq!(paces.ahead(function), 1);
    }

    proptest! {
        #[test]
        fn some_are_always_taken_ahead_and_never_too_many(runs in prop::collection::vec(any::<u32>(), 0..50)) {
            let (function, mut paces) = (FunctionId::generate(), Paces::default());
            for micros in runs {
                paces.ran(function, Duration::from_micros(micros.into()));
                prop_assert!((1..=AHEAD_MAX).contains(&paces.ahead(function)));
            }
        }
    }
}
