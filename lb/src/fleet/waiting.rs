//! Who waits for a place, in which order, and whose turn it is.
//!
//! Pure: calls of one function wait in the order in which they came, functions take turns. Knows nothing of nodes:
//! callers say what would take the head of a line. Invariant: a function is in `turns` exactly once while calls of it
//! wait, and never otherwise.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use kiln_shared::ids::FunctionId;

/// How many calls may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitingLimits {
    /// Calls of all functions.
    pub calls_max: usize,
    /// Calls of one function.
    pub calls_per_function_max: usize,
}

impl Default for WaitingLimits {
    fn default() -> Self {
        Self { calls_max: 16_384, calls_per_function_max: 4096 }
    }
}

/// There is no place left to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RoomFull {
    /// As many calls as may wait do.
    #[error("as many calls wait already as may")]
    All,
    /// As many calls of this function as may wait do.
    #[error("as many calls of the function wait already as may")]
    Function,
}

/// Names a waiting call within its function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

#[derive(Debug)]
struct Waiter<T> {
    ticket: Ticket,
    since: Instant,
    call: T,
}

#[derive(Debug)]
struct Line<T> {
    waiters: VecDeque<Waiter<T>>,
    /// When it last was given a place ahead of its turn.
    favoured_at: Option<Instant>,
}

/// The lines of all functions.
#[derive(Debug)]
pub struct Lines<T> {
    limits: WaitingLimits,
    by_function: HashMap<FunctionId, Line<T>>,
    turns: VecDeque<FunctionId>,
    len: usize,
    next_ticket: u64,
}

impl<T> Lines<T> {
    /// No line yet.
    pub fn new(limits: WaitingLimits) -> Self {
        Self { limits, by_function: HashMap::new(), turns: VecDeque::new(), len: 0, next_ticket: 0 }
    }

    /// Calls that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if none does.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Functions of which calls wait.
    pub fn functions(&self) -> usize {
        self.turns.len()
    }

    /// Calls of one function that wait.
    pub fn len_of(&self, function: &FunctionId) -> usize {
        self.by_function.get(function).map_or(0, |line| line.waiters.len())
    }

    /// Lets a call wait at the end of its function's line. O(1).
    ///
    /// # Errors
    /// There is no place left; the call is given back.
    pub fn push(&mut self, function: FunctionId, call: T, now: Instant) -> Result<Ticket, (RoomFull, T)> {
        if self.len >= self.limits.calls_max {
            return Err((RoomFull::All, call));
        }
        if self.len_of(&function) >= self.limits.calls_per_function_max {
            return Err((RoomFull::Function, call));
        }
        let line = match self.by_function.entry(function) {
            Entry::Occupied(line) => line.into_mut(),
            Entry::Vacant(vacant) => {
                self.turns.push_back(function);
                vacant.insert(Line { waiters: VecDeque::new(), favoured_at: None })
            }
        };
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        line.waiters.push_back(Waiter { ticket, since: now, call });
        self.len += 1;
        Ok(ticket)
    }

    /// Takes a call out of the middle of its line, if it still waits. O(calls of the function), and O(functions) if it
    /// was the last of its own.
    pub fn remove(&mut self, function: &FunctionId, ticket: Ticket) -> Option<T> {
        let line = self.by_function.get_mut(function)?;
        let at = line.waiters.binary_search_by_key(&ticket, |waiter| waiter.ticket).ok()?;
        let waiter = line.waiters.remove(at)?;
        self.len -= 1;
        if line.waiters.is_empty() {
            self.by_function.remove(function);
            self.turns.retain(|other| other != function);
        }
        Some(waiter.call)
    }

    /// Asks the heads of at most `looked_at_max` lines in turn; the first that `accept` has something for leaves, and
    /// its function's next turn comes after all others'. If none does, the next look begins behind them.
    pub fn take<S>(
        &mut self,
        looked_at_max: usize,
        mut accept: impl FnMut(&T) -> Option<S>,
    ) -> Option<(T, S)> {
        let looked_at = looked_at_max.min(self.turns.len());
        for at in 0..looked_at {
            if let Some(found) = self.head(at).and_then(|waiter| accept(&waiter.call)) {
                return self.leave(at).map(|call| (call, found));
            }
        }
        self.turns.rotate_left(looked_at);
        None
    }

    /// As [`Self::take`], but asks only heads that have waited for `after`, and each function only once in that time:
    /// what keeps a function that always finds the slots of others taken from waiting for ever.
    pub fn take_starving<S>(
        &mut self,
        looked_at_max: usize,
        after: Duration,
        now: Instant,
        mut accept: impl FnMut(&T) -> Option<S>,
    ) -> Option<(T, S)> {
        for at in 0..looked_at_max.min(self.turns.len()) {
            let function = self.turns[at];
            let Some(line) = self.by_function.get_mut(&function) else { continue };
            let Some(head) = line.waiters.front() else { continue };
            let hungry_since = line.favoured_at.map_or(head.since, |favoured| favoured.max(head.since));
            if now.saturating_duration_since(hungry_since) < after {
                continue;
            }
            if let Some(found) = accept(&head.call) {
                line.favoured_at = Some(now);
                return self.leave(at).map(|call| (call, found));
            }
        }
        None
    }

    fn head(&self, at: usize) -> Option<&Waiter<T>> {
        self.by_function.get(&self.turns[at])?.waiters.front()
    }

    /// The head of the line at this turn leaves.
    fn leave(&mut self, at: usize) -> Option<T> {
        let function = self.turns.remove(at)?;
        let line = self.by_function.get_mut(&function)?;
        let waiter = line.waiters.pop_front();
        if line.waiters.is_empty() {
            self.by_function.remove(&function);
        } else {
            self.turns.push_back(function);
        }
        self.len -= usize::from(waiter.is_some());
        waiter.map(|waiter| waiter.call)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn function(number: usize) -> FunctionId {
        format!("{number:026}").parse().unwrap()
    }

    fn lines(calls: &[(usize, u32)]) -> Lines<u32> {
        let mut lines = Lines::new(WaitingLimits::default());
        for &(of, call) in calls {
            lines.push(function(of), call, Instant::now()).unwrap();
        }
        lines
    }

    fn all<T>(lines: &mut Lines<T>) -> Vec<T> {
        std::iter::from_fn(|| lines.take(usize::MAX, |_| Some(()))).map(|(call, ())| call).collect()
    }

    #[test]
    fn functions_take_turns_and_calls_of_one_leave_in_their_order() {
        let mut lines = lines(&[(1, 10), (1, 11), (1, 12), (2, 20), (3, 30), (2, 21)]);
        assert_eq!(all(&mut lines), [10, 20, 30, 11, 21, 12]);
        assert!(lines.is_empty() && lines.functions() == 0);
    }

    #[test]
    fn a_head_that_nothing_is_there_for_holds_up_its_own_line_alone() {
        let mut lines = lines(&[(1, 10), (2, 20), (1, 11)]);
        assert_eq!(lines.take(9, |&call| (call >= 20).then_some(())), Some((20, ())));
        assert_eq!(lines.take(9, |&call| (call == 11).then_some(())), None);
        assert_eq!(all(&mut lines), [10, 11]);
    }

    #[test]
    fn every_line_is_looked_at_although_each_look_is_bounded() {
        let mut lines = lines(&(0..10).map(|n| (n, n as u32)).collect::<Vec<_>>());
        let mut seen = Vec::new();
        for _ in 0..5 {
            let taken: Option<(u32, ())> = lines.take(2, |&call| {
                seen.push(call);
                None
            });
            assert_eq!(taken, None);
        }
        assert_eq!(seen, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn a_starving_function_is_favoured_once_in_its_time() {
        let start = Instant::now();
        let after = Duration::from_secs(1);
        let mut lines = Lines::new(WaitingLimits::default());
        for call in [1, 2] {
            lines.push(function(1), call, start).unwrap();
        }
        let take = |lines: &mut Lines<i32>, millis| {
            let now = start + Duration::from_millis(millis);
            lines.take_starving(9, after, now, |_| Some(())).map(|(call, ())| call)
        };
        assert_eq!([999, 1000, 1999, 2000].map(|at| take(&mut lines, at)), [None, Some(1), None, Some(2)]);
    }

    #[test]
    fn both_limits_hold() {
        let mut lines = Lines::new(WaitingLimits { calls_max: 3, calls_per_function_max: 2 });
        let now = Instant::now();
        let results: Vec<_> = [1, 1, 1, 2, 3].map(|of| lines.push(function(of), of, now)).into();
        assert_eq!(results[2], Err((RoomFull::Function, 1)));
        assert_eq!(results[4], Err((RoomFull::All, 3)));
        assert_eq!(lines.len(), 3);
    }

    proptest! {
        #[test]
        fn who_came_leaves_once_or_was_removed(
            steps in prop::collection::vec((0_u8..4, 0_usize..5), 0..200),
        ) {
            let mut lines = Lines::new(WaitingLimits::default());
            let mut waiting: Vec<(usize, Ticket, usize)> = Vec::new();
            for (number, (kind, of)) in steps.into_iter().enumerate() {
                match kind {
                    0 | 1 => {
                        let ticket = lines.push(function(of), number, Instant::now()).unwrap();
                        waiting.push((of, ticket, number));
                    }
                    2 if of < waiting.len() => {
                        let (function_number, ticket, call) = waiting.remove(of);
                        prop_assert_eq!(lines.remove(&function(function_number), ticket), Some(call));
                        prop_assert_eq!(lines.remove(&function(function_number), ticket), None);
                    }
                    _ => {
                        let taken = lines.take(usize::MAX, |_| Some(()));
                        prop_assert_eq!(taken.is_some(), !waiting.is_empty());
                        let Some((call, ())) = taken else { continue };
                        let at = waiting.iter().position(|w| w.2 == call).expect("it waited");
                        let (of, _, _) = waiting.remove(at);
                        prop_assert!(waiting.iter().all(|w| w.0 != of || w.2 > call), "first come");
                    }
                }
                prop_assert_eq!(lines.len(), waiting.len());
            }
            prop_assert_eq!(all(&mut lines).len(), waiting.len());
        }
    }
}
