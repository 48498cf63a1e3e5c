//! What happens to messages by themselves: leases and deadlines end, delays pass, other processes store messages.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::core::Core;
use super::operation::{Horizon, Operation, Reply};
use super::queue::Engine;

/// Longest time without a look, so that nothing depends on being told.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Shortest time between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(2);

/// Tends a queue until `stop`.
pub(super) async fn tend<E: Engine>(engine: Arc<E>, core: Arc<Core>, stop: CancellationToken) {
    let mut told = false;
    let mut in_vain = 0_u32;
    loop {
        core.looks();
        let looked = tokio::select! {
            () = stop.cancelled() => return,
            // What is dropped here is rolled back.
            looked = look(&*engine) => looked,
        };
        let now = core.time.now_millis();
        let pause = match looked {
            Ok(horizon) => {
                if std::mem::take(&mut told) {
                    tracing::info!(queue = ?engine, "the queue is reached again");
                    core.wake.wake();
                }
                if horizon.due_at.is_some_and(|due_at| due_at <= now) {
                    core.wake.wake();
                    in_vain = 0;
                } else {
                    in_vain = in_vain.saturating_add(1);
                }
                until_next(&horizon, now).min(engine.look_again(in_vain))
            }
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(queue = ?engine, %error, "the queue cannot be reached; tried again until it can");
                }
                LOOK_EVERY
            }
        };
        core.looks_by(now.saturating_add(pause.min(LOOK_EVERY).as_millis() as i64));
        loop {
            let next = Instant::now() + core.until_look().clamp(LOOK_PAUSE, LOOK_EVERY);
            // All are cancel-safe: what was not waited for is looked for anyway.
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep_until(next) => break,
                () = core.time.moved() => break,
                () = core.sooner.notified() => {}
            }
        }
    }
}

async fn look(engine: &impl Engine) -> Result<Horizon, kiln_shared::queue::QueueError> {
    engine.tell_time().await?;
    match engine.run(Operation::Sweep).await? {
        Reply::Horizon(horizon) => Ok(horizon),
        other => unreachable!("a sweep is answered in kind, not with {other:?}"),
    }
}

/// How long until something happens by itself.
fn until_next(horizon: &Horizon, now: i64) -> Duration {
    let next = [horizon.next_due_at, horizon.lease_ends_at, horizon.deadline_at].into_iter().flatten().min();
    next.map_or(LOOK_EVERY, |next| Duration::from_millis((next - now).max(0).unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Effect;
    use crate::{Clock, ManualClock, Options};
    use kiln_shared::queue::QueueError;
    use std::sync::Mutex;
    use tokio_util::task::AbortOnDropHandle;

    /// An empty queue, and when it was looked at. During the second look a message is stored that it does not see.
    #[derive(Debug)]
    struct Empty {
        core: Arc<Core>,
        looks: Mutex<Vec<Instant>>,
    }

    /// After this time the message is due.
    const DELAY: Duration = Duration::from_millis(300);

    impl Engine for Empty {
        async fn run(&self, _sweep: Operation) -> Result<Reply, QueueError> {
            let mut looks = self.looks.lock().expect("no test panics here");
            looks.push(Instant::now());
            if looks.len() == 2 {
                let due_at = self.core.time.now_millis() + DELAY.as_millis() as i64;
                self.core.tell(Effect::Later(due_at));
            }
            Ok(Reply::Horizon(Horizon::default()))
        }

        async fn tell_time(&self) -> Result<(), QueueError> {
            Ok(())
        }

        fn look_again(&self, _in_vain: u32) -> Duration {
            Duration::MAX
        }

        async fn close(&self) {}
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_stored_during_a_look_is_found_when_it_is_due() {
        let clock = Clock::Manual(ManualClock::default());
        let core = Arc::new(Core::new(Options { clock, ..Options::default() }));
        let engine = Arc::new(Empty { core: Arc::clone(&core), looks: Mutex::default() });
        let tending = tend(Arc::clone(&engine), core, CancellationToken::new());
        let _tending = AbortOnDropHandle::new(tokio::spawn(tending));
        let looks = || engine.looks.lock().expect("no test panics here").clone();
        while looks().len() < 3 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let looks = looks();
        assert!(looks[1] - looks[0] >= LOOK_EVERY, "nothing happens before");
        let late = (looks[2] - looks[1]).checked_sub(DELAY).expect("it is not due before");
        assert!(late < Duration::from_millis(10), "{late:?}");
    }

    #[test]
    fn the_next_look_is_when_the_first_thing_happens() {
        let mut horizon = Horizon { due_at: Some(1), ..Horizon::default() };
        assert_eq!(until_next(&horizon, 1_000), LOOK_EVERY);
        horizon.next_due_at = Some(1_300);
        horizon.lease_ends_at = Some(1_200);
        assert_eq!(until_next(&horizon, 1_000), Duration::from_millis(200));
        horizon.deadline_at = Some(900);
        assert_eq!(until_next(&horizon, 1_000), Duration::ZERO);
    }
}
