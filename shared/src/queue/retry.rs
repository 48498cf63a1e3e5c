//! How often a failed message is tried again, and after which pauses.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{LEASE_MAX, QueueError};

/// What to do with a message that failed. Pauses double from `pause_min` to `pause_max`; a part of each is random,
/// so that messages that failed together do not come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Attempts in all, the first included; at least 1.
    pub attempts_max: u32,
    /// Pause before the second attempt.
    pub pause_min: Duration,
    /// Longest pause, at most [`LEASE_MAX`].
    pub pause_max: Duration,
    /// Which part of each pause is random, in percent: at 20 a pause of 10 s takes 8 to 10 s.
    pub jitter_percent: u8,
}

impl Default for RetryPolicy {
    /// Three attempts within about 3 s of pauses.
    fn default() -> Self {
        Self {
            attempts_max: 3,
            pause_min: Duration::from_secs(1),
            pause_max: Duration::from_mins(5),
            jitter_percent: 20,
        }
    }
}

impl RetryPolicy {
    /// One attempt and no other.
    pub const NEVER: Self =
        Self { attempts_max: 1, pause_min: Duration::ZERO, pause_max: Duration::ZERO, jitter_percent: 0 };

    /// Checks the policy against the limits of the queue.
    ///
    /// # Errors
    /// The first limit that is not kept.
    pub fn check(&self) -> Result<(), QueueError> {
        let wrong = if self.attempts_max == 0 || self.attempts_max > 1000 {
            format!("{} attempts; use 1 to 1000", self.attempts_max)
        } else if self.pause_max > LEASE_MAX {
            format!("a longest pause of {:?}; use at most {LEASE_MAX:?}", self.pause_max)
        } else if self.pause_min > self.pause_max {
            format!("a first pause of {:?} is longer than the longest, {:?}", self.pause_min, self.pause_max)
        } else if self.jitter_percent > 100 {
            format!("jitter of {} percent; use 0 to 100", self.jitter_percent)
        } else {
            return Ok(());
        };
        Err(QueueError::Invalid(format!("retry policy: {wrong}")))
    }

    /// The pause after this many attempts, at least 1; `random` is at least 0 and below 1.
    pub fn pause(&self, attempts: u32, random: f64) -> Duration {
        let doubled = self.pause_min.saturating_mul(1 << attempts.saturating_sub(1).min(30));
        let pause = doubled.min(self.pause_max);
        pause.saturating_sub(pause.mul_f64(random.clamp(0.0, 1.0) * f64::from(self.jitter_percent) / 100.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let policy =
            RetryPolicy { jitter_percent: 0, pause_max: Duration::from_secs(5), ..RetryPolicy::default() };
        let pauses: Vec<u64> = (1..6).map(|attempts| policy.pause(attempts, 0.5).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 5, 5]);
        assert_eq!(policy.pause(u32::MAX, 0.5).as_secs(), 5);
    }

    #[test]
    fn jitter_shortens_a_pause_by_its_part() {
        let policy =
            RetryPolicy { jitter_percent: 20, pause_min: Duration::from_secs(10), ..RetryPolicy::default() };
        assert_eq!(policy.pause(1, 0.0), Duration::from_secs(10));
        assert_eq!(policy.pause(1, 0.5), Duration::from_secs(9));
    }

    proptest! {
        #[test]
        fn a_pause_is_never_longer_than_the_longest(
            attempts in 0..u32::MAX, random in 0.0..1.0, min in 0..100_000u64, more in 0..100_000u64, percent in 0..=100u8
        ) {
            let policy = RetryPolicy {
                attempts_max: 3,
                pause_min: Duration::from_millis(min),
                pause_max: Duration::from_millis(min + more),
                jitter_percent: percent,
            };
            prop_assert_eq!(policy.check(), Ok(()));
            prop_assert!(policy.pause(attempts, random) <= policy.pause_max);
        }
    }

    #[test]
    fn policies_that_cannot_be_kept_are_refused() {
        let good = RetryPolicy::default();
        assert_eq!(good.check(), Ok(()));
        assert_eq!(RetryPolicy::NEVER.check(), Ok(()));
        for bad in [
            RetryPolicy { attempts_max: 0, ..good },
            RetryPolicy { pause_max: LEASE_MAX * 2, ..good },
            RetryPolicy { pause_min: Duration::from_hours(1), ..good },
            RetryPolicy { jitter_percent: 101, ..good },
        ] {
            assert!(bad.check().unwrap_err().to_string().starts_with("retry policy: "));
        }
    }
}
