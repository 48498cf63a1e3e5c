//! Pauses between tries: they double up to a bound, and are spread so that a fleet does not try in step.

use std::time::Duration;

use rand::RngExt as _;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);
/// What ends sooner did not go well.
const LASTED: Duration = Duration::from_secs(5);

/// The pauses of one who tries again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { next: FIRST }
    }

    /// The next pause: between half and all of what the tries so far have made it.
    pub(crate) fn pause(&mut self) -> Duration {
        let longest = self.next;
        self.next = (2 * longest).min(LONGEST);
        longest.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// It held for so long. If that is some time the next trouble is a new one.
    pub(crate) fn held(&mut self, time: Duration) {
        if time >= LASTED {
            *self = Self::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_begin_anew_after_what_has_lasted() {
        let mut backoff = Backoff::new();
        let first = backoff.pause();
        assert!((FIRST / 2..=FIRST).contains(&first), "{first:?}");
        for _ in 0..20 {
            assert!(backoff.pause() <= LONGEST);
        }
        assert!(backoff.pause() >= LONGEST / 2);
        backoff.held(LASTED / 2);
        assert!(backoff.pause() >= LONGEST / 2);
        backoff.held(LASTED);
        assert!(backoff.pause() <= FIRST);
    }
}
