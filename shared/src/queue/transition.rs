//! What becomes of a message that did not succeed: pure rules that all backends share.

use std::time::Duration;

use super::{ERROR_BYTES_MAX, Retry, RetryPolicy};

/// What decides about another attempt. Times are milliseconds since 1970, by the queue's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tries {
    /// Attempts that were begun, the last one included.
    pub attempts: u32,
    /// The message's policy.
    pub retry: RetryPolicy,
    /// No attempt begins later.
    pub deadline_millis: Option<i64>,
}

/// What becomes of the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// It is due again after this time.
    Again {
        /// From now.
        after: Duration,
        /// What happened.
        error: String,
    },
    /// It is dead.
    Dead {
        /// What happened.
        error: String,
    },
}

/// After an attempt that failed with `error`. `random` is at least 0 and below 1.
pub fn failed(tries: &Tries, error: &str, retry: Retry, now_millis: i64, random: f64) -> Next {
    let after = match retry {
        Retry::ByPolicy => tries.retry.pause(tries.attempts, random),
        Retry::After(pause) => pause,
        Retry::Never => return Next::Dead { error: kept_error(error) },
    };
    if tries.attempts >= tries.retry.attempts_max {
        return Next::Dead { error: kept_error(error) };
    }
    if is_late(tries, now_millis.saturating_add(millis(after))) {
        return Next::Dead {
            error: kept_error(&format!("{error} (the deadline is before the next attempt)")),
        };
    }
    Next::Again { after, error: kept_error(error) }
}

/// After a lease ended and nobody had settled the message: its worker died, was cut off, or was too slow. The
/// lease was the pause, so it is due at once.
pub fn abandoned(tries: &Tries, worker: &str, now_millis: i64) -> Next {
    let error = format!("attempt {} at {worker} did not end before its lease did", tries.attempts);
    failed(tries, &error, Retry::After(Duration::ZERO), now_millis, 0.0)
}

/// The error of a message whose deadline passed while it waited.
pub fn expired(last_error: Option<&str>) -> String {
    match last_error {
        Some(error) => {
            kept_error(&format!("the deadline passed before the next attempt; last error: {error}"))
        }
        None => "the deadline passed before it started".to_owned(),
    }
}

/// What is kept of an error's text: no NUL, which not every database stores, and at most [`ERROR_BYTES_MAX`].
pub fn kept_error(error: &str) -> String {
    let cut = &error[..error.floor_char_boundary(ERROR_BYTES_MAX)];
    if cut.contains('\0') {
        // The picture of NUL has three bytes.
        let pictured = cut.replace('\0', "\u{2400}");
        return pictured[..pictured.floor_char_boundary(ERROR_BYTES_MAX)].to_owned();
    }
    cut.to_owned()
}

fn is_late(tries: &Tries, at_millis: i64) -> bool {
    tries.deadline_millis.is_some_and(|deadline| at_millis >= deadline)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tries(attempts: u32) -> Tries {
        let retry = RetryPolicy { attempts_max: 3, jitter_percent: 0, ..RetryPolicy::default() };
        Tries { attempts, retry, deadline_millis: None }
    }

    fn again(after_secs: u64) -> Next {
        Next::Again { after: Duration::from_secs(after_secs), error: "no".to_owned() }
    }

    fn dead() -> Next {
        Next::Dead { error: "no".to_owned() }
    }

    #[test]
    fn a_failed_message_is_tried_again_until_its_attempts_are_used_up() {
        let next = |attempts| failed(&tries(attempts), "no", Retry::ByPolicy, 0, 0.0);
        assert_eq!([next(1), next(2), next(3)], [again(1), again(2), dead()]);
    }

    #[test]
    fn the_worker_may_choose_the_pause_but_not_another_attempt() {
        let after = Retry::After(Duration::from_secs(7));
        assert_eq!(failed(&tries(1), "no", after, 0, 0.0), again(7));
        assert_eq!(failed(&tries(3), "no", after, 0, 0.0), dead());
        assert_eq!(failed(&tries(1), "no", Retry::Never, 0, 0.0), dead());
    }

    #[test]
    fn no_attempt_begins_after_the_deadline() {
        let near = Tries { deadline_millis: Some(1_500), ..tries(1) };
        assert_eq!(failed(&near, "no", Retry::ByPolicy, 499, 0.0), again(1));
        let Next::Dead { error } = failed(&near, "no", Retry::ByPolicy, 500, 0.0) else { panic!("not dead") };
        assert_eq!(error, "no (the deadline is before the next attempt)");
    }

    #[test]
    fn an_abandoned_message_is_due_at_once_and_says_why() {
        let Next::Again { after, error } = abandoned(&tries(1), "node-7", 0) else { panic!("dead") };
        assert_eq!(after, Duration::ZERO);
        assert_eq!(error, "attempt 1 at node-7 did not end before its lease did");
        assert!(matches!(abandoned(&tries(3), "node-7", 0), Next::Dead { .. }));
    }

    proptest! {
        #[test]
        fn a_kept_error_fits_and_holds_no_nul(text in "[\0aä€]{0,6000}") {
            let kept = kept_error(&text);
            prop_assert!(kept.len() <= ERROR_BYTES_MAX && !kept.contains('\0'));
            prop_assert!(text.len() > 1300 || kept.chars().count() == text.chars().count());
        }
    }
}
