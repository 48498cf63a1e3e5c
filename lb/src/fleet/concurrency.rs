//! How many calls of one function run in the fleet, for functions that have a limit.
//!
//! Owns the exact count of this balancer's own calls; what other balancers have comes from the nodes' reports. Each
//! worker keeps the counts that it used last, so that only the first call of a function on a worker takes the lock.
//! Balancers share nothing: together they may exceed a limit by what they sent within one report's delay.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use kiln_shared::ids::FunctionId;

/// Counts that a worker keeps at hand.
const AT_HAND_MAX: usize = 1024;

/// This balancer's calls of one function.
#[derive(Debug, Default)]
struct Count(AtomicU32);

/// A function's limit and the count that it is compared with.
#[derive(Debug, Clone)]
pub struct Limit {
    count: Arc<Count>,
    calls_max: u32,
}

/// One call's place under its function's limit; dropping it gives the place back.
#[derive(Debug)]
#[must_use = "dropping it gives the place back"]
pub struct Running(Arc<Count>);

impl Limit {
    /// Takes a place; `None` if the limit is reached. `calls_seen` are the function's calls by the view, which may lag
    /// behind what this balancer sent, or know of others' calls.
    pub fn enter(&self, calls_seen: u32) -> Option<Running> {
        let own = self.count.0.fetch_add(1, Relaxed);
        let running = Running(Arc::clone(&self.count));
        (own.max(calls_seen) < self.calls_max).then_some(running)
    }
}

impl Limit {
    /// How many more places there are; `calls_seen` as in [`Self::enter`].
    pub fn free(&self, calls_seen: u32) -> u32 {
        self.calls_max.saturating_sub(self.count.0.load(Relaxed).max(calls_seen))
    }
}

/// As many calls of the function run as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitReached;

/// Takes a place under a function's limit, if it has one; `calls_seen` is asked only then.
///
/// # Errors
/// The limit is reached.
pub fn enter(
    limit: Option<&Limit>,
    calls_seen: impl FnOnce() -> u32,
) -> Result<Option<Running>, LimitReached> {
    limit.map(|limit| limit.enter(calls_seen()).ok_or(LimitReached)).transpose()
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

#[derive(Debug)]
struct Known {
    counts: HashMap<FunctionId, Weak<Count>>,
    /// Look for counts that nobody has any more when there are so many.
    sweep_at: usize,
}

/// The limits of one edge. Shared by its workers.
#[derive(Debug)]
pub struct Limits {
    serial: usize,
    known: Mutex<Known>,
}

thread_local! {
    /// Counts that this worker used last, by limits and function.
    static AT_HAND: RefCell<HashMap<(usize, FunctionId), Arc<Count>>> = RefCell::default();
}

impl Default for Limits {
    fn default() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let known = Known { counts: HashMap::new(), sweep_at: AT_HAND_MAX };
        Self { serial: NEXT.fetch_add(1, Relaxed), known: Mutex::new(known) }
    }
}

impl Limits {
    /// The limit of a function, of which at most `calls_max` calls may run.
    pub fn of(&self, function: &FunctionId, calls_max: u32) -> Limit {
        AT_HAND.with_borrow_mut(|at_hand| {
            if let Some(count) = at_hand.get(&(self.serial, *function)) {
                return Limit { count: Arc::clone(count), calls_max };
            }
            if at_hand.len() >= AT_HAND_MAX {
                at_hand.clear();
            }
            let count = self.find(function);
            at_hand.insert((self.serial, *function), Arc::clone(&count));
            Limit { count, calls_max }
        })
    }

    fn find(&self, function: &FunctionId) -> Arc<Count> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = known.counts.get(function).and_then(Weak::upgrade) {
            return count;
        }
        if known.counts.len() >= known.sweep_at {
            known.counts.retain(|_, count| count.strong_count() > 0);
            known.sweep_at = AT_HAND_MAX.max(2 * known.counts.len());
        }
        let count = Arc::default();
        known.counts.insert(*function, Arc::downgrade(&count));
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(number: usize) -> FunctionId {
        format!("{number:026}").parse().unwrap()
    }

    #[test]
    fn a_place_comes_back_when_its_call_ends() {
        let limits = Limits::default();
        let limit = limits.of(&function(1), 2);
        let first = limit.enter(0);
        let _second = limits.of(&function(1), 2).enter(1).unwrap();
        assert!(limit.enter(0).is_none() && limits.of(&function(2), 1).enter(0).is_some());
        drop(first);
        assert!(limit.enter(1).is_some());
    }

    #[test]
    fn calls_of_other_balancers_count() {
        let limit = Limits::default().of(&function(1), 3);
        assert!(limit.enter(3).is_none());
        assert!(limit.enter(2).is_some());
    }

    #[test]
    fn threads_never_exceed_a_limit_together_and_counts_of_unused_functions_are_forgotten() {
        let limits = Limits::default();
        let (inside, highest) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        if let Some(_running) = limits.of(&function(1), 3).enter(0) {
                            highest.fetch_max(inside.fetch_add(1, Relaxed) + 1, Relaxed);
                            inside.fetch_sub(1, Relaxed);
                        }
                    }
                });
            }
        });
        assert!((1..=3).contains(&highest.load(Relaxed)));
        for number in 0..10 * AT_HAND_MAX {
            let _running = limits.of(&function(number), 1).enter(0);
        }
        assert!(limits.known.lock().unwrap().counts.len() <= 3 * AT_HAND_MAX);
    }
}
