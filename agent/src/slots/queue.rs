//! Slots of one (function, revision): idle containers, newest first, and who waits, oldest first.
//!
//! Callers wait in front of queued calls, which nobody waits for: one of those gets a slot only while no caller waits.
//!
//! A freed slot may pass over some callers for one who waits on its own thread: its connection stays with that
//! thread's runtime, and no other thread has to be woken. Nobody is passed over for long.
//!
//! Owns who gets the next free slot and how many containers the load needs. Does no I/O, reads no clock
//! (callers pass `now`), starts no container. Invariant: idle slots and waiters are never both present.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::climb::{Climb, Step};

/// Weight of the newest sample in the running means.
const NEWEST_WEIGHT: f64 = 0.2;
/// What a start is taken to cost before one was seen.
const START_GUESS: Duration = Duration::from_millis(150);

/// The oldest waiter is served first, wherever he waits, once he has waited for this long.
const PASSED_OVER_MAX: Duration = Duration::from_millis(2);
/// How many waiters are looked at for one on the slot's own thread.
const LOOKED_AT_MAX: usize = 16;

/// Names a thread: where a caller waits, or where a slot came free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(pub u32);

/// In which order waiters are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Somebody waits for the answer.
    Caller,
    /// The call came out of the queue of detached calls.
    Queued,
}

#[derive(Debug)]
struct Waiting<W> {
    waiter: W,
    place: Place,
    since: Instant,
}

/// A container that waits for work.
#[derive(Debug)]
pub struct Idle<S> {
    /// The slot.
    pub slot: S,
    /// Since when.
    pub since: Instant,
}

/// What became of a slot that was offered.
#[derive(Debug, PartialEq, Eq)]
pub enum Offer<S> {
    /// A waiter has it.
    Handed,
    /// It is idle now.
    Kept,
    /// Others need its room more; the caller removes it.
    Surrendered(S),
}

/// Slots, waiters and pace of one (function, revision).
#[derive(Debug)]
pub struct SlotQueue<S, W> {
    idle: Vec<Idle<S>>,
    callers: VecDeque<Waiting<W>>,
    queued: VecDeque<Waiting<W>>,
    busy: usize,
    starting: usize,
    surrenders: usize,
    /// Mean time a call holds a slot.
    service: Option<Duration>,
    /// Mean time a start takes.
    start: Duration,
    /// What is known of a queue that lasts.
    climb: Climb,
    /// When a slot last changed hands; bounds the service time from below while nothing returns.
    progress: Instant,
}

impl<S, W> SlotQueue<S, W> {
    /// Nothing yet.
    pub fn new(now: Instant) -> Self {
        Self {
            idle: Vec::new(),
            callers: VecDeque::new(),
            queued: VecDeque::new(),
            busy: 0,
            starting: 0,
            surrenders: 0,
            service: None,
            start: START_GUESS,
            climb: Climb::default(),
            progress: now,
        }
    }

    /// The warmest idle slot, which is busy from now on. O(1).
    pub fn take_idle(&mut self, now: Instant) -> Option<S> {
        let idle = self.idle.pop()?;
        self.progress = now;
        self.busy += 1;
        Some(idle.slot)
    }

    /// Lets somebody wait, behind all others of the class.
    pub fn wait(&mut self, waiter: W, class: Class, place: Place, now: Instant) {
        debug_assert!(self.idle.is_empty(), "nobody waits while a slot is idle");
        let line = match class {
            Class::Caller => &mut self.callers,
            Class::Queued => &mut self.queued,
        };
        line.push_back(Waiting { waiter, place, since: now });
    }

    /// Notes that a container is being started.
    pub fn start_begun(&mut self) {
        self.starting += 1;
    }

    /// Notes that a start failed. Returns the oldest waiter, who gets the error.
    pub fn start_failed(&mut self) -> Option<W> {
        self.starting -= 1;
        self.take_waiter()
    }

    /// Takes out the first waiter, for whom alone a container is being started.
    pub fn take_waiter(&mut self) -> Option<W> {
        self.line().pop_front().map(|waiting| waiting.waiter)
    }

    /// Those who are served next: callers, or queued calls while there are none.
    fn line(&mut self) -> &mut VecDeque<Waiting<W>> {
        if self.callers.is_empty() { &mut self.queued } else { &mut self.callers }
    }

    /// Notes that a start for one waiter alone has ended: its container is busy, or there is none.
    pub fn started_alone(&mut self, succeeded: bool, now: Instant) {
        self.starting -= 1;
        if succeeded {
            self.busy += 1;
            self.progress = now;
        }
    }

    /// All waiters, for an error that concerns every one of them.
    pub fn take_waiters(&mut self) -> Vec<W> {
        self.callers.drain(..).chain(self.queued.drain(..)).map(|waiting| waiting.waiter).collect()
    }

    /// Offers a slot whose container was just started.
    pub fn started(
        &mut self,
        slot: S,
        took: Duration,
        now: Instant,
        deliver: impl FnMut(W, S) -> Result<(), S>,
    ) -> Offer<S> {
        self.starting -= 1;
        self.start = mean(self.start, took);
        self.busy += 1;
        self.offer(slot, None, now, deliver)
    }

    /// Offers a slot whose call has ended at `place` after `served`.
    pub fn freed(
        &mut self,
        slot: S,
        place: Place,
        served: Duration,
        now: Instant,
        deliver: impl FnMut(W, S) -> Result<(), S>,
    ) -> Offer<S> {
        self.service = Some(self.service.map_or(served, |service| mean(service, served)));
        self.climb.served();
        self.offer(slot, Some(place), now, deliver)
    }

    /// Hands a busy slot to a waiter who still wants it, else keeps it idle.
    fn offer(
        &mut self,
        mut slot: S,
        place: Option<Place>,
        now: Instant,
        mut deliver: impl FnMut(W, S) -> Result<(), S>,
    ) -> Offer<S> {
        self.progress = now;
        if self.surrenders > 0 {
            self.surrenders -= 1;
            self.busy -= 1;
            return Offer::Surrendered(slot);
        }
        while let Some(waiter) = self.next_waiter(place, now) {
            match deliver(waiter, slot) {
                Ok(()) => return Offer::Handed,
                Err(back) => slot = back,
            }
        }
        self.busy -= 1;
        self.climb.interrupt();
        self.idle.push(Idle { slot, since: now });
        Offer::Kept
    }

    /// Who gets a slot that came free at `place`: the oldest caller of that place among the first few, else the oldest. No
    /// queued call while a caller waits; these go in the order in which the queue gave them.
    fn next_waiter(&mut self, place: Option<Place>, now: Instant) -> Option<W> {
        let own = place.filter(|_| !self.callers.is_empty());
        let line = self.line();
        let oldest = line.front()?;
        let own = own.filter(|_| now.saturating_duration_since(oldest.since) < PASSED_OVER_MAX);
        let index =
            own.and_then(|place| line.iter().take(LOOKED_AT_MAX).position(|waiting| waiting.place == place));
        line.remove(index.unwrap_or(0)).map(|waiting| waiting.waiter)
    }

    /// Notes that a busy slot is gone with its container.
    pub fn lost(&mut self, now: Instant) {
        self.climb.interrupt();
        self.busy -= 1;
        self.progress = now;
    }

    /// Asks for the next slot that comes free to be removed. Does nothing if none can come.
    pub fn surrender_one(&mut self) {
        if self.surrenders < self.busy {
            self.surrenders += 1;
        }
    }

    /// Takes out the idle slots for which `unwanted` holds.
    pub fn remove_idle(&mut self, mut unwanted: impl FnMut(&mut Idle<S>) -> bool) -> Vec<S> {
        self.idle.extract_if(.., |idle| unwanted(idle)).map(|idle| idle.slot).collect()
    }

    /// Since when the coldest idle slot is idle.
    pub fn coldest(&self) -> Option<Instant> {
        self.idle.first().map(|idle| idle.since)
    }

    /// Takes the coldest idle slot, for removal.
    pub fn take_coldest(&mut self) -> Option<S> {
        (!self.idle.is_empty()).then(|| self.idle.remove(0).slot)
    }

    /// Forgets waiters who no longer wait.
    pub fn forget_waiters(&mut self, mut gone: impl FnMut(&W) -> bool) {
        self.callers.retain(|waiting| !gone(&waiting.waiter));
        self.queued.retain(|waiting| !gone(&waiting.waiter));
    }

    /// How many containers to start now, so that those who wait are served sooner than without.
    ///
    /// A new container helps only those who would wait longer than its start takes: with `n` containers that
    /// hold a call for `s`, the last of `w` waiters is served after `w * s / n`. Never more than one start for
    /// each waiter. Until a function's pace is known, at most `unknown_max` containers.
    pub fn starts_needed(&self, now: Instant, unknown_max: usize) -> usize {
        let waiting = self.wanted();
        let serving = self.busy + self.starting;
        let unserved = waiting.saturating_sub(self.starting);
        if unserved == 0 {
            return 0;
        }
        if serving == 0 {
            return match self.service {
                Some(service) => self.containers_for(waiting, service).clamp(1, waiting),
                None => waiting.min(unknown_max.max(1)),
            };
        }
        let stalled =
            if self.busy > 0 { now.saturating_duration_since(self.progress) } else { Duration::ZERO };
        let service = match self.service {
            Some(service) => service.max(stalled),
            None if serving < unknown_max => return unserved.min(unknown_max - serving),
            None => stalled,
        };
        self.containers_for(waiting, service).saturating_sub(serving).min(unserved)
    }

    /// Whether a queue that lasts is worth one container more, or was not worth the last one. Call it every now and then
    /// while anybody waits and [`Self::starts_needed`] asks for none. Never asks for more than `containers_max`.
    pub fn climb(&mut self, containers_max: usize, now: Instant) -> Step {
        if self.wanted() == 0 || self.starting > 0 || self.surrenders > 0 || self.busy == 0 {
            self.climb.interrupt();
            return Step::Stay;
        }
        self.climb.step(self.busy, containers_max, self.start, now)
    }

    fn containers_for(&self, waiting: usize, service: Duration) -> usize {
        (waiting as f64 * service.as_secs_f64() / self.start.as_secs_f64().max(1e-6)).ceil() as usize
    }

    /// Idle containers.
    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Containers that serve a call.
    pub fn busy(&self) -> usize {
        self.busy
    }

    /// Containers that are being started.
    pub fn starting(&self) -> usize {
        self.starting
    }

    /// Callers who wait; queued calls are not among them.
    pub fn waiting(&self) -> usize {
        self.callers.len()
    }

    /// Slots that are waited for: callers and queued calls.
    pub fn wanted(&self) -> usize {
        self.callers.len() + self.queued.len()
    }
}

fn mean(old: Duration, newest: Duration) -> Duration {
    old.mul_f64(1.0 - NEWEST_WEIGHT) + newest.mul_f64(NEWEST_WEIGHT)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Queue = SlotQueue<u32, u32>;

    const HERE: Place = Place(1);
    const THERE: Place = Place(2);

    fn never(_: u32, slot: u32) -> Result<(), u32> {
        Err(slot)
    }

    #[test]
    fn the_warmest_idle_slot_is_taken_first() {
        let now = Instant::now();
        let mut queue = Queue::new(now);
        for slot in [1, 2] {
            queue.start_begun();
            assert_eq!(queue.started(slot, START_GUESS, now, never), Offer::Kept);
        }
        assert_eq!(queue.take_idle(now), Some(2));
        assert_eq!(queue.take_coldest(), Some(1));
        assert_eq!((queue.idle(), queue.busy()), (0, 1));
    }

    #[test]
    fn the_oldest_waiter_who_still_waits_gets_the_slot() {
        let now = Instant::now();
        let mut queue = Queue::new(now);
        for waiter in [10, 11, 12] {
            queue.wait(waiter, Class::Caller, HERE, now);
        }
        queue.start_begun();
        let mut got = Vec::new();
        let offer = queue.started(1, START_GUESS, now, |waiter, slot| {
            if waiter == 10 {
                return Err(slot);
            }
            got.push(waiter);
            Ok(())
        });
        assert_eq!((offer, got), (Offer::Handed, vec![11]));
        assert_eq!((queue.waiting(), queue.busy()), (1, 1));
    }

    /// A queue with one busy slot, and waiters 10, 11, ... at these places.
    fn waiting_at(places: &[Place], now: Instant) -> Queue {
        let mut queue = Queue::new(now);
        queue.start_begun();
        assert_eq!(queue.started(1, START_GUESS, now, never), Offer::Kept);
        assert_eq!(queue.take_idle(now), Some(1));
        for (waiter, place) in (10..).zip(places) {
            queue.wait(waiter, Class::Caller, *place, now);
        }
        queue
    }

    fn who_gets(queue: &mut Queue, place: Place, now: Instant) -> u32 {
        let mut got = 0;
        let offer = queue.freed(1, place, START_GUESS, now, |waiter, _| {
            got = waiter;
            Ok(())
        });
        assert_eq!(offer, Offer::Handed);
        got
    }

    #[test]
    fn queued_calls_keep_their_order_whatever_thread_a_slot_comes_free_on() {
        let now = Instant::now();
        let mut queue = waiting_at(&[], now);
        for (waiter, place) in [(10, THERE), (11, HERE), (12, THERE)] {
            queue.wait(waiter, Class::Queued, place, now);
        }
        let got: Vec<u32> = (0..3).map(|_| who_gets(&mut queue, HERE, now)).collect();
        assert_eq!(got, [10, 11, 12]);
    }

    #[test]
    fn a_slot_stays_on_its_thread_if_somebody_waits_there() {
        let now = Instant::now();
        let mut queue = waiting_at(&[THERE, HERE, THERE, HERE], now);
        let got: Vec<u32> = (0..4).map(|_| who_gets(&mut queue, HERE, now)).collect();
        assert_eq!(got, [11, 13, 10, 12]);
    }

    #[test]
    fn nobody_is_passed_over_for_long() {
        let now = Instant::now();
        let mut queue = waiting_at(&[THERE, HERE, HERE], now);
        assert_eq!(who_gets(&mut queue, HERE, now), 11);
        assert_eq!(who_gets(&mut queue, HERE, now + PASSED_OVER_MAX), 10);
    }

    #[test]
    fn only_the_first_few_are_looked_at() {
        let now = Instant::now();
        let mut places = vec![THERE; LOOKED_AT_MAX];
        places.push(HERE);
        assert_eq!(who_gets(&mut waiting_at(&places, now), HERE, now), 10);
    }

    #[test]
    fn a_fast_function_needs_one_container_for_many_callers() {
        let now = Instant::now();
        let mut queue = Queue::new(now);
        queue.start_begun();
        assert_eq!(queue.started(1, START_GUESS, now, never), Offer::Kept);
        assert_eq!(queue.take_idle(now), Some(1));
        assert_eq!(queue.freed(1, HERE, Duration::from_micros(50), now, never), Offer::Kept);
        assert_eq!(queue.take_idle(now), Some(1));
        (0..31).for_each(|waiter| queue.wait(waiter, Class::Caller, HERE, now));
        assert_eq!(queue.starts_needed(now, 2), 1_usize.saturating_sub(1));
    }

    #[test]
    fn a_slow_function_gets_a_container_for_each_waiter() {
        let now = Instant::now();
        let mut queue = Queue::new(now);
        queue.start_begun();
        assert_eq!(queue.started(1, START_GUESS, now, never), Offer::Kept);
        assert_eq!(queue.take_idle(now), Some(1));
        (0..10).for_each(|waiter| queue.wait(waiter, Class::Caller, HERE, now));
        assert_eq!(queue.starts_needed(now, 2), 1, "the pace is not known yet");
        let later = now + Duration::from_secs(1);
        queue.start_begun();
        assert_eq!(queue.starts_needed(later, 2), 9, "nothing returned for a second");
    }

    #[test]
    fn a_surrendered_slot_leaves_although_callers_wait() {
        let now = Instant::now();
        let mut queue = Queue::new(now);
        queue.start_begun();
        assert_eq!(queue.started(1, START_GUESS, now, never), Offer::Kept);
        assert_eq!(queue.take_idle(now), Some(1));
        queue.wait(10, Class::Caller, HERE, now);
        queue.surrender_one();
        assert_eq!(queue.freed(1, HERE, START_GUESS, now, never), Offer::Surrendered(1));
        assert_eq!((queue.busy(), queue.waiting()), (0, 1));
        assert_eq!(queue.starts_needed(now, 2), 1);
    }

    #[test]
    fn a_queued_call_gets_a_slot_when_no_caller_waits() {
        let now = Instant::now();
        let mut queue = waiting_at(&[THERE], now);
        queue.wait(20, Class::Queued, HERE, now);
        queue.wait(11, Class::Caller, THERE, now);
        assert_eq!((queue.waiting(), queue.wanted()), (2, 3));
        let got: Vec<u32> = (0..3).map(|_| who_gets(&mut queue, HERE, now)).collect();
        assert_eq!(got, [10, 11, 20]);
    }

    proptest::proptest! {
        #[test]
        fn callers_are_served_first_and_each_class_in_its_order(
            steps in proptest::collection::vec(0u8..3, 0..200),
        ) {
            let now = Instant::now();
            let mut queue = waiting_at(&[], now);
            let (mut callers, mut queued) = (VecDeque::new(), VecDeque::new());
            for (waiter, step) in (10..).zip(steps) {
                match step {
                    0 => {
                        queue.wait(waiter, Class::Caller, HERE, now);
                        callers.push_back(waiter);
                    }
                    1 => {
                        queue.wait(waiter, Class::Queued, HERE, now);
                        queued.push_back(waiter);
                    }
                    _ if queue.wanted() > 0 => {
                        let expected = callers.pop_front().or_else(|| queued.pop_front());
                        proptest::prop_assert_eq!(Some(who_gets(&mut queue, HERE, now)), expected);
                    }
                    _ => {}
                }
                proptest::prop_assert_eq!(queue.waiting(), callers.len());
                proptest::prop_assert_eq!(queue.wanted(), callers.len() + queued.len());
            }
        }

        #[test]
        fn nobody_waits_while_a_slot_is_idle(steps in proptest::collection::vec(0u8..6, 0..200)) {
            let now = Instant::now();
            let mut queue = Queue::new(now);
            for step in steps {
                match step {
                    0 => match queue.take_idle(now) { Some(_) => {} None => queue.wait(0, Class::Caller, HERE, now) },
                    1 => queue.start_begun(),
                    2 if queue.starting() > 0 => drop(queue.started(1, START_GUESS, now, |_, _| Ok(()))),
                    3 if queue.busy() > 0 => drop(queue.freed(1, HERE, START_GUESS, now, |_, _| Ok(()))),
                    4 if queue.busy() > 0 => queue.lost(now),
                    _ => {}
                }
                proptest::prop_assert!(queue.idle() == 0 || queue.wanted() == 0);
                proptest::prop_assert!(queue.starts_needed(now, 2) <= queue.wanted());
            }
        }
    }
}
