//! Whose messages go next: pure code that backends share.
//!
//! Higher priorities first. Within one, the functions that are warm at the worker, together with those that have
//! waited too long for such preference; then the others. Among equals the one served least recently, so that a
//! function with 100,000 messages delays the others' by one message each.

use std::collections::HashMap;

use kiln_shared::ids::FunctionId;
use kiln_shared::queue::{Priority, Reserve};

/// Functions whose turns are remembered. Of more, all are forgotten: they then go by who waits longest.
const REMEMBERED_MAX: usize = 100_000;

/// The waiting messages of one function and priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lane {
    pub(crate) priority: Priority,
    pub(crate) function_id: FunctionId,
    /// Since when the first has been due.
    pub(crate) due_millis: i64,
}

/// Most lanes of one priority that a look at them gives.
pub(crate) const LANES_MAX: usize = 4_000;

/// Where a look at the lanes of a priority begins.
#[cfg(feature = "sql")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) priority: Priority,
    /// Behind this function. None: at the first.
    after: Option<FunctionId>,
}

#[cfg(feature = "sql")]
impl Place {
    /// What is before all functions that are looked at.
    pub(crate) fn after(&self) -> &str {
        self.after.as_ref().map_or("", FunctionId::as_str)
    }
}

/// Which lanes a reserve looks at, where there are more than it may: those behind the ones of the last reserve, so that
/// each has its turn. Those of a priority hide none of another one.
#[cfg(feature = "sql")]
#[derive(Debug, Clone, Default)]
pub(crate) struct Window {
    /// By priority, where it does not begin at the first.
    after: HashMap<Priority, FunctionId>,
}

#[cfg(feature = "sql")]
impl Window {
    /// Where to look first.
    pub(crate) fn begin(&self) -> Vec<Place> {
        let place = |priority| Place { priority, after: self.after.get(&priority).copied() };
        Priority::ALL.map(place).to_vec()
    }

    /// Moves on behind the lanes that were found from places on. Where to look then: the first lanes of those
    /// priorities of which there were no more.
    pub(crate) fn move_on(&mut self, from: &[Place], found: &[Lane]) -> Vec<Place> {
        let mut ended = Vec::new();
        for place in from {
            let of_it = found.iter().filter(|lane| lane.priority == place.priority);
            let last = of_it.clone().map(|lane| lane.function_id).max();
            if let Some(last) = last.filter(|_| of_it.count() >= LANES_MAX) {
                self.after.insert(place.priority, last);
            } else {
                self.after.remove(&place.priority);
                ended.extend(place.after.map(|_| Place { after: None, ..*place }));
            }
        }
        ended
    }
}

/// Messages to take from a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allotment {
    pub(crate) priority: Priority,
    pub(crate) function_id: FunctionId,
    /// At least 1.
    pub(crate) messages_max: usize,
}

/// When each function was served, in turns.
#[derive(Debug, Clone, Default)]
#[cfg_attr(feature = "kafka", derive(serde::Serialize, serde::Deserialize))]
pub(crate) struct Turns {
    served: HashMap<FunctionId, u64>,
    turn: u64,
}

impl Turns {
    fn last(&self, function: FunctionId) -> u64 {
        self.served.get(&function).copied().unwrap_or(0)
    }

    fn serve(&mut self, function: FunctionId) {
        if self.served.len() >= REMEMBERED_MAX && !self.served.contains_key(&function) {
            self.served.clear();
        }
        self.turn += 1;
        self.served.insert(function, self.turn);
    }
}

/// One reserve: which lanes to take how much from, round by round, until there is enough or nothing is left.
#[derive(Debug)]
pub(crate) struct Selection {
    lanes: Vec<Lane>,
    wanted: usize,
    /// How many messages of a function that is not preferred are wanted.
    each_max: usize,
    /// Functions that are warm at the worker, and how many more messages of each are wanted.
    preferred: HashMap<FunctionId, usize>,
    /// How many more are wanted of others of which some were taken.
    begun: HashMap<FunctionId, usize>,
}

impl Selection {
    /// Begins with the lanes whose first message is due.
    pub(crate) fn new(lanes: Vec<Lane>, reserve: &Reserve) -> Self {
        let lanes = lanes.into_iter().filter(|lane| reserve.functions.include(lane.function_id)).collect();
        let preferred =
            reserve.preferred.iter().map(|preferred| (preferred.function, preferred.messages_max));
        let (preferred, begun) = (preferred.collect(), HashMap::new());
        Self { lanes, wanted: reserve.messages_max, each_max: reserve.each_max, preferred, begun }
    }

    /// How many more messages of the function are wanted.
    fn left_of(&self, function: FunctionId) -> usize {
        let left = self.preferred.get(&function).or_else(|| self.begun.get(&function));
        left.copied().unwrap_or(self.each_max).min(self.wanted)
    }

    /// The next lanes to take from, in their order; none at the end.
    pub(crate) fn round(&self, reserve: &Reserve, turns: &mut Turns, now_millis: i64) -> Vec<Allotment> {
        let wanted = self.lanes.iter().map(|lane| (lane, self.left_of(lane.function_id)));
        let wanted: Vec<(&Lane, usize)> = wanted.filter(|(_, left)| *left > 0).collect();
        let Some(priority) = wanted.iter().map(|(lane, _)| lane.priority).max() else { return Vec::new() };
        let patience = reserve.preferred_for.as_millis() as i64;
        let is_first = |(lane, _): &&(&Lane, usize)| {
            self.preferred.contains_key(&lane.function_id) || now_millis - lane.due_millis > patience
        };
        let level = || wanted.iter().filter(|(lane, _)| lane.priority == priority);
        let mut lanes: Vec<&(&Lane, usize)> = level().filter(is_first).collect();
        if lanes.is_empty() {
            lanes = level().collect();
        }
        lanes.sort_by_key(|(lane, _)| (turns.last(lane.function_id), lane.due_millis, lane.function_id));
        lanes.truncate(self.wanted);
        let (each, more) = (self.wanted / lanes.len(), self.wanted % lanes.len());
        let allotments = lanes.into_iter().enumerate().map(|(place, (lane, left))| {
            turns.serve(lane.function_id);
            Allotment {
                priority,
                function_id: lane.function_id,
                messages_max: (each + usize::from(place < more)).min(*left),
            }
        });
        allotments.collect()
    }

    /// Tells how many messages an allotment gave. A lane that gave less is empty.
    pub(crate) fn took(&mut self, allotment: &Allotment, messages: usize) {
        self.wanted = self.wanted.saturating_sub(messages);
        let left = match self.preferred.get_mut(&allotment.function_id) {
            Some(left) => left,
            None => self.begun.entry(allotment.function_id).or_insert(self.each_max),
        };
        *left = left.saturating_sub(messages);
        if messages < allotment.messages_max {
            self.lanes.retain(|lane| {
                (lane.priority, lane.function_id) != (allotment.priority, allotment.function_id)
            });
        }
    }

    /// Takes no more.
    pub(crate) fn end(&mut self) {
        self.wanted = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_shared::queue::{Functions, Preferred};
    use proptest::prelude::*;
    use std::time::Duration;

    fn function(number: u32) -> FunctionId {
        format!("{number:026}").parse().unwrap()
    }

    fn reserve(messages_max: usize) -> Reserve {
        Reserve::new("node", messages_max, Duration::from_secs(30))
    }

    fn preferred(numbers: impl IntoIterator<Item = u32>) -> Vec<Preferred> {
        let of = |number| Preferred { function: function(number), messages_max: usize::MAX };
        numbers.into_iter().map(of).collect()
    }

    /// Messages waiting per lane, all due at 0, from which a reserve takes.
    #[derive(Default)]
    struct Waiting(HashMap<(Priority, FunctionId), usize>);

    impl Waiting {
        fn of(lanes: &[(u8, u32, usize)]) -> Self {
            let lane = |&(priority, number, messages): &(u8, u32, usize)| {
                ((Priority::try_from(priority).unwrap(), function(number)), messages)
            };
            Self(lanes.iter().map(lane).collect())
        }

        fn take(&mut self, reserve: &Reserve, turns: &mut Turns, now_millis: i64) -> Vec<(u8, FunctionId)> {
            let lanes =
                self.0.iter().filter(|(_, messages)| **messages > 0).map(|((priority, function_id), _)| {
                    Lane { priority: *priority, function_id: *function_id, due_millis: 0 }
                });
            let mut selection = Selection::new(lanes.collect(), reserve);
            let mut taken = Vec::new();
            loop {
                let round = selection.round(reserve, turns, now_millis);
                if round.is_empty() {
                    return taken;
                }
                for allotment in round {
                    let left = self.0.get_mut(&(allotment.priority, allotment.function_id)).unwrap();
                    let messages = allotment.messages_max.min(*left);
                    *left -= messages;
                    selection.took(&allotment, messages);
                    taken.extend(vec![(allotment.priority.get(), allotment.function_id); messages]);
                }
            }
        }
    }

    fn count(taken: &[(u8, FunctionId)], number: u32) -> usize {
        taken.iter().filter(|(_, taken)| *taken == function(number)).count()
    }

    #[test]
    fn a_burst_of_one_function_delays_the_others_by_one_message() {
        let mut waiting = Waiting::of(&[(0, 1, 100_000), (0, 2, 10), (0, 3, 10)]);
        let mut turns = Turns::default();
        let served: Vec<_> = (0..9)
            .flat_map(|_| waiting.take(&reserve(1), &mut turns, 0))
            .map(|(_, function)| function)
            .collect();
        for three in served.chunks(3) {
            assert_eq!((1..4).filter(|number| three.contains(&function(*number))).count(), 3, "{served:?}");
        }
    }

    #[test]
    fn a_batch_is_shared_and_what_one_cannot_use_goes_to_the_others() {
        let mut waiting = Waiting::of(&[(0, 1, 1000), (0, 2, 2), (0, 3, 1000)]);
        let taken = waiting.take(&reserve(30), &mut Turns::default(), 0);
        assert_eq!((taken.len(), count(&taken, 2)), (30, 2));
        assert!(count(&taken, 1).abs_diff(count(&taken, 3)) <= 1);
    }

    #[test]
    fn a_higher_priority_goes_first_whatever_is_preferred() {
        let mut waiting = Waiting::of(&[(0, 1, 5), (2, 2, 3)]);
        let reserve = Reserve { preferred: preferred([1]), ..reserve(4) };
        let taken = waiting.take(&reserve, &mut Turns::default(), 0);
        assert_eq!((count(&taken[..3], 2), count(&taken, 1)), (3, 1));
    }

    #[test]
    fn preferred_functions_go_first_until_another_has_waited_too_long() {
        let mut waiting = Waiting::of(&[(0, 1, 100), (0, 2, 100)]);
        let reserve = Reserve { preferred: preferred([1]), ..reserve(2) };
        let mut turns = Turns::default();
        assert_eq!(count(&waiting.take(&reserve, &mut turns, 1_000), 1), 2);
        assert_eq!(count(&waiting.take(&reserve, &mut turns, 1_001), 1), 1);
    }

    #[test]
    fn of_no_function_more_is_taken_than_wanted_of_it() {
        let mut waiting = Waiting::of(&[(0, 1, 100), (2, 1, 3), (0, 2, 100), (0, 3, 100)]);
        let burst = Preferred { function: function(1), messages_max: 7 };
        let none = Preferred { function: function(3), messages_max: 0 };
        let reserve = Reserve { preferred: vec![burst, none], each_max: 2, ..reserve(50) };
        let taken = waiting.take(&reserve, &mut Turns::default(), 0);
        assert_eq!([1, 2, 3].map(|number| count(&taken, number)), [7, 2, 0], "whatever their priorities");
    }

    #[test]
    fn functions_that_are_not_wanted_get_nothing() {
        let mut waiting = Waiting::of(&[(0, 1, 5), (0, 2, 5)]);
        let only = Reserve { functions: Functions::Only(vec![function(2)]), ..reserve(9) };
        let taken = waiting.take(&only, &mut Turns::default(), 0);
        assert_eq!((taken.len(), count(&taken, 2)), (5, 5));
    }

    /// The lanes that a reserve looks at, of which there are so many by priority.
    #[cfg(feature = "sql")]
    fn look(
        window: &mut Window,
        there: &[(Priority, u32)],
    ) -> std::collections::HashSet<(Priority, FunctionId)> {
        let mut seen = std::collections::HashSet::new();
        let mut from = window.begin();
        while !from.is_empty() {
            let lanes = from.iter().flat_map(|place| {
                let there = there.iter().filter(|(priority, _)| *priority == place.priority);
                let of_it = there.flat_map(|(_, functions)| (0..*functions).map(function));
                let lane = |function_id| Lane { priority: place.priority, function_id, due_millis: 0 };
                of_it.filter(|function| function.as_str() > place.after()).take(LANES_MAX).map(lane)
            });
            let lanes: Vec<Lane> = lanes.collect();
            from = window.move_on(&from, &lanes);
            seen.extend(lanes.iter().map(|lane| (lane.priority, lane.function_id)));
        }
        seen
    }

    #[cfg(feature = "sql")]
    #[test]
    fn of_more_lanes_than_a_reserve_looks_at_each_has_its_turn() {
        let [high, middle, low] = Priority::ALL;
        let max = LANES_MAX as u32;
        let (mut window, there) = (Window::default(), [(high, 3), (middle, max), (low, 5 * max / 2)]);
        let mut seen = std::collections::HashSet::new();
        for _ in 0..3 {
            let looked = look(&mut window, &there);
            let of = |priority| looked.iter().filter(|(of, _)| *of == priority).count();
            assert_eq!((of(high), of(middle)), (3, LANES_MAX), "they are not hidden");
            assert!((LANES_MAX..=2 * LANES_MAX).contains(&of(low)), "{}", of(low));
            seen.extend(looked);
        }
        assert_eq!(seen.len() as u32, 3 + max + 5 * max / 2);
        let few = [(low, 7)];
        look(&mut window, &few);
        assert_eq!(look(&mut window, &few).len(), 7, "it begins anew");
    }

    proptest! {
        #[test]
        fn a_reserve_takes_as_much_as_there_is_and_never_more(
            lanes in proptest::collection::vec((0..3u8, 0..6u32, 0..20usize), 0..12),
            wanted in 1..60usize,
            preferred in proptest::collection::hash_map(0..6u32, 0..30usize, 0..3),
            each_max in 0..30usize,
        ) {
            let mut waiting = Waiting::of(&lanes);
            let preferred = preferred
                .into_iter()
                .map(|(number, messages_max)| Preferred { function: function(number), messages_max });
            let reserve = Reserve { preferred: preferred.collect(), each_max, ..reserve(wanted) };
            let of = |number| -> usize {
                let lanes = waiting.0.iter().filter(|((_, function_id), _)| *function_id == function(number));
                lanes.map(|(_, messages)| messages).sum()
            };
            let there: usize = (0..6).map(|number| of(number).min(reserve.most_of(function(number)))).sum();
            let taken = waiting.take(&reserve, &mut Turns::default(), 0);
            prop_assert_eq!(taken.len(), there.min(wanted));
            for number in 0..6 {
                prop_assert!(count(&taken, number) <= reserve.most_of(function(number)));
            }
            prop_assert!(taken.windows(2).all(|pair| pair[0].0 >= pair[1].0));
        }
    }
}
