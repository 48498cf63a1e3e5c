//! The queue's time: that of its server, told without asking each time.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

/// A server's time this far behind what it was taken for is believed: somebody set its clock.
const STEP_BACK_MILLIS_MIN: i64 = 2_000;

/// Where a queue's time comes from.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// The server's clock, or for a file this machine's.
    #[default]
    Server,
    /// Set by hand.
    Manual(ManualClock),
}

/// A clock that stands until it is moved, for tests; copies are the same clock.
#[derive(Debug, Clone)]
pub struct ManualClock {
    millis: Arc<watch::Sender<i64>>,
}

impl Default for ManualClock {
    /// Begins at the present time.
    fn default() -> Self {
        Self { millis: Arc::new(watch::Sender::new(system_millis())) }
    }
}

impl ManualClock {
    /// Moves the clock.
    pub fn advance(&self, by: std::time::Duration) {
        self.millis.send_modify(|millis| *millis += by.as_millis() as i64);
    }
}

/// What a backend reads the time from.
#[derive(Debug)]
pub(crate) struct QueueTime {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Manual(watch::Receiver<i64>, ManualClock),
    Server { known: Mutex<Known>, latest: AtomicI64 },
}

/// What the server's clock showed at a moment of ours.
#[derive(Debug, Clone, Copy)]
struct Known {
    millis: i64,
    at: Instant,
}

impl Known {
    fn millis_at(self, now: Instant) -> i64 {
        self.millis + now.saturating_duration_since(self.at).as_millis() as i64
    }
}

impl QueueTime {
    /// Begins with this machine's time. Later steps of its clock are followed once they are learnt.
    pub(crate) fn new(clock: Clock) -> Self {
        let source = match clock {
            Clock::Manual(clock) => Source::Manual(clock.millis.subscribe(), clock),
            Clock::Server => {
                let known = Known { millis: system_millis(), at: Instant::now() };
                Source::Server { known: Mutex::new(known), latest: AtomicI64::new(i64::MIN) }
            }
        };
        Self { source }
    }

    /// Milliseconds since 1970.
    pub(crate) fn now_millis(&self) -> i64 {
        match &self.source {
            Source::Manual(millis, _) => *millis.borrow(),
            Source::Server { known, latest } => {
                let known = *known.lock().unwrap_or_else(PoisonError::into_inner);
                let now = known.millis_at(Instant::now());
                // Messages that are enqueued one after the other keep their order.
                latest.fetch_max(now, Ordering::Relaxed).max(now)
            }
        }
    }

    /// Takes over the server's time, `millis`, as it was asked for at `asked` and answered just now.
    pub(crate) fn learn(&self, millis: i64, asked: Instant) {
        let Source::Server { known, latest } = &self.source else { return };
        let now = Instant::now();
        let at = asked + now.saturating_duration_since(asked) / 2;
        if self.now_millis() - millis > STEP_BACK_MILLIS_MIN {
            latest.store(i64::MIN, Ordering::Relaxed);
        }
        *known.lock().unwrap_or_else(PoisonError::into_inner) = Known { millis, at };
    }

    /// Takes over this machine's time: somebody may have set its clock, or the machine have slept, which only that
    /// clock counts.
    #[cfg(feature = "sqlite")]
    pub(crate) fn learn_own(&self) {
        self.learn(system_millis(), Instant::now());
    }

    /// Waits until the clock was moved by hand; for ever if it goes by itself. Cancel-safe.
    pub(crate) async fn moved(&self) {
        if let Source::Manual(millis, _keeps_the_sender) = &self.source {
            let mut millis = millis.clone();
            millis.mark_unchanged();
            if millis.changed().await.is_ok() {
                return;
            }
        }
        std::future::pending::<()>().await;
    }
}

fn system_millis() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_manual_clock_stands_until_it_is_moved() {
        let clock = ManualClock::default();
        let time = QueueTime::new(Clock::Manual(clock.clone()));
        let before = time.now_millis();
        clock.advance(Duration::from_secs(90));
        assert_eq!(time.now_millis() - before, 90_000);
    }

    #[test]
    fn a_server_slightly_behind_does_not_turn_time_back() {
        let time = QueueTime::new(Clock::Server);
        let before = time.now_millis();
        time.learn(before - 500, Instant::now());
        assert!(time.now_millis() >= before);
    }

    #[test]
    fn a_server_whose_clock_was_set_is_believed() {
        let time = QueueTime::new(Clock::Server);
        let before = time.now_millis();
        time.learn(before + 3_600_000, Instant::now());
        assert!(time.now_millis() >= before + 3_600_000);
        time.learn(before, Instant::now());
        assert!(time.now_millis() < before + 60_000);
    }
}
