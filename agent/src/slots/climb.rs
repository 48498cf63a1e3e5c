//! How many containers a lasting queue is worth.
//!
//! Where calls are short no single caller waits long enough to justify a start, and yet a queue that never empties means
//! that one more container might serve more calls. Whether it does depends on what the function waits for, so it is
//! tried: one container at a time, kept as long as it clearly raises the rate of calls, given back if not.
//!
//! Pure. Invariant: the rates of two numbers of containers are compared only if callers waited all the while.

use std::time::{Duration, Instant};

/// A container is worth keeping if it raises the rate by this factor.
const GAIN_MIN: f64 = 1.15;
/// Shortest time over which a rate is measured.
const WINDOW_MIN: Duration = Duration::from_millis(250);
/// A rate is compared with another one that was found at most this long before: later it is another load.
const COMPARABLE: Duration = Duration::from_secs(5);
/// A number that was found to be too large is not tried again for this long.
const CEILING_KEPT: Duration = Duration::from_secs(30);

/// What to do about a queue that lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing now.
    Stay,
    /// Start one more container.
    Up,
    /// The last one did not help: give it back.
    Down,
}

/// Measures while callers wait.
#[derive(Debug, Default)]
pub(super) struct Climb {
    window: Option<Window>,
    /// The rate that so many containers reached, and when that was found.
    measured: Option<(usize, f64, Instant)>,
    /// More than so many did not help, as was found then.
    ceiling: Option<(usize, Instant)>,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    containers: usize,
    served: u64,
}

impl Climb {
    /// A call ended.
    pub(super) fn served(&mut self) {
        if let Some(window) = &mut self.window {
            window.served += 1;
        }
    }

    /// Nobody waits any more, or a container comes or goes: what is being measured would mean nothing.
    pub(super) fn interrupt(&mut self) {
        self.window = None;
    }

    /// Looks at a queue whose `containers` are all busy, where a start takes about `start`. Call it now and then while
    /// callers wait. Never asks for more than `containers_max`.
    pub(super) fn step(
        &mut self,
        containers: usize,
        containers_max: usize,
        start: Duration,
        now: Instant,
    ) -> Step {
        let window = match &mut self.window {
            Some(window) if window.containers == containers => window,
            window => {
                *window = Some(Window { since: now, containers, served: 0 });
                return Step::Stay;
            }
        };
        let elapsed = now.saturating_duration_since(window.since);
        if elapsed < WINDOW_MIN.max(2 * start) {
            return Step::Stay;
        }
        let rate = window.served as f64 / elapsed.as_secs_f64();
        self.window = None;
        let before = self.measured.replace((containers, rate, now));
        if let Some((fewer, before, found)) = before
            && fewer + 1 == containers
            && now.saturating_duration_since(found) < COMPARABLE
            && rate < before * GAIN_MIN
        {
            self.ceiling = Some((fewer, now));
            self.measured = None;
            return Step::Down;
        }
        let ceiling = self.ceiling.filter(|(_, found)| now.saturating_duration_since(*found) < CEILING_KEPT);
        let is_enough =
            containers >= containers_max || ceiling.is_some_and(|(ceiling, _)| containers >= ceiling);
        if is_enough { Step::Stay } else { Step::Up }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_millis(20);
    const START: Duration = Duration::from_millis(100);
    const MAX: usize = 6;

    /// Lets a queue last for `lasts` on a function whose rate is `rate` of the number of containers; the numbers of
    /// containers that there were.
    fn climb(rate: impl Fn(usize) -> f64, lasts: Duration) -> Vec<usize> {
        let (mut climb, begin) = (Climb::default(), Instant::now());
        let (mut now, mut containers, mut due, mut seen) = (begin, 1, 0.0, vec![1]);
        while now < begin + lasts {
            now += LOOK;
            due += rate(containers) * LOOK.as_secs_f64();
            while due >= 1.0 {
                climb.served();
                due -= 1.0;
            }
            match climb.step(containers, MAX, START, now) {
                Step::Stay => continue,
                Step::Up => containers += 1,
                Step::Down => containers -= 1,
            }
            seen.push(containers);
        }
        seen
    }

    #[test]
    fn containers_are_added_as_long_as_each_helps() {
        let per_container_up_to_four = |containers: usize| 5000.0 * containers.min(4) as f64;
        assert_eq!(climb(per_container_up_to_four, Duration::from_secs(10)), [1, 2, 3, 4, 5, 4]);
        let per_container = |containers: usize| 5000.0 * containers as f64;
        assert_eq!(climb(per_container, Duration::from_secs(10)), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn one_that_does_not_help_is_given_back_and_not_tried_again_for_a_while() {
        assert_eq!(climb(|_| 9000.0, Duration::from_secs(20)), [1, 2, 1]);
        assert_eq!(climb(|_| 9000.0, CEILING_KEPT + Duration::from_secs(10)), [1, 2, 1, 2, 1]);
    }

    /// Lets callers wait until there is something to do, at so many calls a look.
    fn until_step(climb: &mut Climb, containers: usize, served: u64, now: &mut Instant) -> Step {
        loop {
            *now += LOOK;
            (0..served).for_each(|_| climb.served());
            match climb.step(containers, MAX, START, *now) {
                Step::Stay => {}
                step => return step,
            }
        }
    }

    #[test]
    fn rates_are_compared_unless_they_are_of_two_loads() {
        for (pause, expected) in [(LOOK, Step::Down), (COMPARABLE, Step::Up)] {
            let (mut climb, mut now) = (Climb::default(), Instant::now());
            assert_eq!(until_step(&mut climb, 1, 1000, &mut now), Step::Up);
            climb.interrupt();
            now += pause;
            assert_eq!(until_step(&mut climb, 2, 10, &mut now), expected, "after {pause:?}");
        }
    }

    #[test]
    fn a_queue_that_empties_now_and_then_is_left_alone() {
        let (mut climb, mut now) = (Climb::default(), Instant::now());
        for look in 0..1000 {
            now += LOOK;
            climb.served();
            assert_eq!(climb.step(1, MAX, START, now), Step::Stay);
            if look % 5 == 0 {
                climb.interrupt();
            }
        }
    }
}
