//! How much queued work a node may take now. Pure: judged by the node's own report.
//!
//! Callers who wait come first: while one does, nothing is taken. Otherwise idle containers may be kept busy, a few
//! messages ahead of each, and new containers may be started as far as the share of queued work goes. Messages for those
//! are taken one by one, and none of a function some of whose messages wait for a container already: nobody knows whether
//! its calls are long, and other nodes may have room for them.
//!
//! Of each function no more is taken than its own containers can do with, so that one with very many messages leaves room for
//! the next message of every other one; and when it has enough, it is left out of the question for more, which then waits
//! for the others.
//!
//! While processors are pressed, nothing is taken ahead: a function gets its next message when a container of it is idle. What
//! runs already takes its time, and the next message of another function must not wait behind more of it.

use std::collections::HashMap;

use kiln_shared::ids::FunctionId;
use kiln_shared::queue::Preferred;
use kiln_shared::report::NodeReport;

use super::pace::Paces;

/// Most messages of one function that has no container here.
pub(super) const COLD_MAX: usize = 1;
/// Most functions that are named as not to be taken: few of those a source may be told of.
const EXCEPT_MAX: usize = 256;
/// What a container of unknown size is taken to need, in MiB.
const MEMORY_GUESS_MIB: u64 = 128;

/// Bounds of queued work on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// Part of the node's memory that queued work may hold, in percent; the rest is kept for callers who wait.
    pub memory_percent: u8,
    /// No container is started for queued work while this part of the node's memory is in use, in percent.
    pub high_water_percent: u8,
    /// Only idle containers get queued work while something has to wait for a processor in more than this part of the time, in
    /// percent; 100 is never.
    pub cpu_pressure_percent: u8,
    /// Most messages that the node has at a time, those that run included.
    pub messages_max: usize,
    /// Nothing is taken while the bodies of the messages that the node has are longer together, in bytes. What was asked for
    /// before comes on top: at most [`kiln_shared::queue::BATCH_BYTES_MAX`] of each source.
    pub payload_bytes_max: u64,
}

/// Queued work that the node has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Messages, in whatever state.
    pub(super) messages: usize,
    /// Of these, the ones that run.
    pub(super) running: usize,
    /// Of these, the ones that wait for a container, by function.
    pub(super) waiting: HashMap<FunctionId, usize>,
    /// Of these, the ones that have not ended, by function.
    pub(super) unfinished: HashMap<FunctionId, usize>,
    /// Memory of the containers of those that run, in MiB.
    pub(super) memory_mib: u64,
    /// Bodies of those that have not ended, in bytes.
    pub(super) payload_bytes: u64,
    /// Processors are pressed.
    pub(super) is_pressed: bool,
}

/// What may be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Room {
    /// Nothing.
    None,
    /// Messages of functions that have a container here.
    Warm {
        /// The functions, and how many messages of each.
        functions: Vec<Preferred>,
        /// How many messages.
        messages: usize,
    },
    /// Messages of any function, those that have a container here first.
    Any {
        /// Functions that have one, and how many messages of each. Of others, [`COLD_MAX`].
        warm: Vec<Preferred>,
        /// Functions of which none may be taken, in order.
        except: Vec<FunctionId>,
        /// How many messages.
        messages: usize,
    },
}

impl Room {
    /// What may be taken on a node with this report that has `held` already, and that functions which are `unfit` never
    /// run on.
    pub(super) fn of(
        report: &NodeReport,
        held: &Held,
        paces: &Paces,
        unfit: impl Iterator<Item = FunctionId>,
        shares: Shares,
    ) -> Self {
        let left = shares.messages_max.saturating_sub(held.messages);
        let callers_wait = report.functions.iter().any(|function| function.waiting > 0);
        let is_full = left == 0 || held.payload_bytes >= shares.payload_bytes_max;
        if report.draining || is_full || callers_wait {
            return Self::None;
        }
        let share_mib = percent(report.memory_total_mib, shares.memory_percent);
        if held.memory_mib >= share_mib && held.messages > 0 {
            // Its own containers may go on with the next message.
            return Warm::of(report, held, paces, false).room(left);
        }
        let used_mib = report.memory_committed_mib.saturating_sub(report.memory_idle_mib);
        let high_water_mib = percent(report.memory_total_mib, shares.high_water_percent);
        let room_mib = share_mib.saturating_sub(held.memory_mib).min(high_water_mib.saturating_sub(used_mib));
        let mean_mib = match held.running {
            0 => MEMORY_GUESS_MIB,
            running => (held.memory_mib / running as u64).max(1),
        };
        let warm = Warm::of(report, held, paces, true);
        let unhoused: u64 = warm.unhoused.values().map(|messages| *messages as u64).sum();
        // One is taken even where the guess says that there is no room for it: it may be small.
        let has_cold_room = room_mib / mean_mib > unhoused || held.messages == 0 && room_mib > 0;
        if !has_cold_room {
            return warm.room(left);
        }
        let mut except: Vec<_> = warm.unhoused.into_keys().chain(warm.enough).chain(unfit).collect();
        except.sort_unstable();
        except.dedup();
        except.truncate(EXCEPT_MAX);
        Self::Any { messages: (1 + warm.messages).min(left), warm: warm.functions, except }
    }

    /// One of so many equal parts, rounded up.
    pub(super) fn part(self, of: usize) -> Self {
        let part = |messages: usize| messages.div_ceil(of.max(1));
        let part_each = |mut functions: Vec<Preferred>| {
            for function in &mut functions {
                function.messages_max = part(function.messages_max);
            }
            functions
        };
        match self {
            Self::None => Self::None,
            Self::Warm { functions, messages } => {
                Self::Warm { functions: part_each(functions), messages: part(messages) }
            }
            Self::Any { warm, except, messages } => {
                Self::Any { warm: part_each(warm), except, messages: part(messages) }
            }
        }
    }

    /// True if a question for `asked` should not wait any longer, now that there is this room.
    pub(super) fn is_other_than(&self, asked: &Self) -> bool {
        match (asked, self) {
            (
                Self::Any { except: asked_except, messages: asked_messages, warm: asked },
                Self::Any { except, messages, warm },
            ) => {
                let now: HashMap<FunctionId, usize> =
                    warm.iter().map(|warm| (warm.function, warm.messages_max)).collect();
                let most = |function: FunctionId| now.get(&function).copied().unwrap_or(COLD_MAX);
                let is_less = |asked: &Preferred| most(asked.function) < asked.messages_max;
                asked_except != except || messages < asked_messages || asked.iter().any(is_less)
            }
            (
                Self::Warm { functions: asked, messages: asked_messages },
                Self::Warm { functions, messages },
            ) => {
                let is_other = |(asked, now): (&Preferred, &Preferred)| {
                    asked.function != now.function || now.messages_max < asked.messages_max
                };
                asked.len() != functions.len()
                    || messages < asked_messages
                    || asked.iter().zip(functions).any(is_other)
            }
            _ => true,
        }
    }
}

/// What containers that exist can do.
struct Warm {
    /// Functions whose containers can do with more, and with how much.
    functions: Vec<Preferred>,
    /// How many messages they can do with.
    messages: usize,
    /// Functions whose containers have enough for now.
    enough: Vec<FunctionId>,
    /// Messages that wait for containers which do not exist yet, by function; no function has none.
    unhoused: HashMap<FunctionId, usize>,
}

impl Warm {
    /// Work for containers that exist: for idle ones too unless queued work has its share already.
    fn of(report: &NodeReport, held: &Held, paces: &Paces, idle_too: bool) -> Self {
        let mut containers: HashMap<FunctionId, usize> = HashMap::new();
        // In the report's order, in which revisions of a function stand together.
        let mut functions = Vec::new();
        for function in &report.functions {
            let idle = if idle_too { function.idle } else { 0 };
            *containers.entry(function.id).or_default() += (function.busy + idle) as usize;
            functions.push(function.id);
        }
        functions.dedup();
        let ahead = |function| containers.get(&function).copied().unwrap_or(0) * paces.ahead(function);
        let waiting = |function| held.waiting.get(&function).copied().unwrap_or(0);
        let unhoused = held
            .waiting
            .iter()
            .map(|(function, waiting)| (*function, waiting.saturating_sub(ahead(*function))));
        let unhoused = unhoused.filter(|(_, messages)| *messages > 0).collect();
        let (mut preferred, mut enough) = (Vec::with_capacity(functions.len()), Vec::new());
        for function in functions {
            let ahead = ahead(function);
            let more = ahead.saturating_sub(waiting(function));
            if more == 0 {
                continue;
            }
            // Asked for by the half of what is taken ahead, not one by one as they end.
            let (more, more_min) = if held.is_pressed {
                let unfinished = held.unfinished.get(&function).copied().unwrap_or(0);
                (more.min(containers.get(&function).copied().unwrap_or(0).saturating_sub(unfinished)), 1)
            } else {
                (more, ahead / 2)
            };
            if more > 0 && more >= more_min {
                preferred.push(Preferred { function, messages_max: more });
            } else {
                enough.push(function);
            }
        }
        let messages = preferred.iter().map(|function| function.messages_max).sum();
        Self { functions: preferred, messages, enough, unhoused }
    }

    fn room(self, left: usize) -> Room {
        let Self { functions, messages, .. } = self;
        if messages == 0 { Room::None } else { Room::Warm { functions, messages: messages.min(left) } }
    }
}

fn percent(of: u64, percent: u8) -> u64 {
    of * u64::from(percent.min(100)) / 100
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kiln_shared::function::Revision;
    use kiln_shared::ids::NodeId;
    use kiln_shared::report::{FunctionReport, ReportScope};
    use proptest::prelude::*;

    use super::*;

    const SHARES: Shares = Shares {
        memory_percent: 80,
        high_water_percent: 80,
        cpu_pressure_percent: 100,
        messages_max: 64,
        payload_bytes_max: 1 << 20,
    };

    fn report(committed_mib: u64, idle_mib: u64, functions: Vec<FunctionReport>) -> NodeReport {
        NodeReport {
            node: NodeId::new("n"),
            epoch: 1,
            sequence: 1,
            scope: ReportScope::Whole,
            draining: false,
            memory_total_mib: 1000,
            memory_committed_mib: committed_mib,
            memory_idle_mib: idle_mib,
            cpu_total_millis: 2000,
            cpu_committed_millis: 0,
            calls: 0,
            functions,
            gone: Vec::new(),
            images: None,
        }
    }

    fn containers_of(idle: u32, busy: u32, waiting: u32) -> FunctionReport {
        FunctionReport { id: FunctionId::generate(), revision: Revision(1), idle, busy, starting: 0, waiting }
    }

    /// Messages, of which so many wait, all of one function.
    fn held(messages: usize, waiting: usize, memory_mib: u64) -> Held {
        held_of(FunctionId::generate(), messages, waiting, memory_mib)
    }

    fn held_of(function: FunctionId, messages: usize, waiting: usize, memory_mib: u64) -> Held {
        Held {
            messages,
            running: messages - waiting,
            waiting: HashMap::from([(function, waiting)]),
            unfinished: HashMap::from([(function, messages)]),
            memory_mib,
            ..Held::default()
        }
    }

    fn room(report: &NodeReport, held: &Held) -> Room {
        Room::of(report, held, &Paces::default(), std::iter::empty(), SHARES)
    }

    fn any(messages: usize) -> Room {
        Room::Any { warm: Vec::new(), except: Vec::new(), messages }
    }

    #[test]
    fn messages_for_new_containers_are_taken_one_by_one_while_the_share_has_room() {
        let empty = report(0, 0, Vec::new());
        assert_eq!(room(&empty, &Held::default()), any(1));
        let [one, other] = [FunctionId::generate(), FunctionId::generate()];
        let waiting = |one_waits, other_waits| Held {
            messages: one_waits + other_waits,
            waiting: HashMap::from([(one, one_waits), (other, other_waits)]),
            ..Held::default()
        };
        let Room::Any { messages, except, .. } = room(&empty, &waiting(4, 1)) else { panic!("not any") };
        assert_eq!((messages, except.len()), (1, 2), "of others");
        assert_eq!(room(&empty, &waiting(5, 1)), Room::None, "as many as there is room for");
    }

    #[test]
    fn nothing_is_taken_while_the_bodies_that_are_here_are_long() {
        let empty = report(0, 0, Vec::new());
        let of = |payload_bytes| Held { payload_bytes, ..Held::default() };
        assert_eq!(room(&empty, &of(SHARES.payload_bytes_max - 1)), any(1));
        assert_eq!(room(&empty, &of(SHARES.payload_bytes_max)), Room::None);
    }

    #[test]
    fn of_a_function_of_unknown_pace_little_is_taken_before_its_containers_are_there() {
        let mut function = containers_of(0, 0, 0);
        let one = held_of(function.id, 1, 1, 0);
        let except = |report: &NodeReport, held: &Held| match room(report, held) {
            Room::Any { except, .. } => except,
            room => panic!("{room:?}"),
        };
        assert_eq!(except(&report(0, 0, Vec::new()), &one), [function.id]);
        function.busy = 1;
        let running = report(64, 0, vec![function]);
        assert_eq!(
            except(&running, &held_of(function.id, 2, 1, 64)),
            [],
            "one stands behind the one that runs"
        );
        assert_eq!(except(&running, &held_of(function.id, 3, 2, 64)), [function.id]);
    }

    #[test]
    fn what_never_fits_is_left_to_others() {
        let (small, large) = (report(0, 0, Vec::new()), FunctionId::generate());
        let unfit = [large].into_iter();
        let room = Room::of(&small, &Held::default(), &Paces::default(), unfit, SHARES);
        let Room::Any { except, .. } = &room else { panic!("not any") };
        assert_eq!(*except, [large]);
        assert!(any(1).is_other_than(&room) && room.is_other_than(&any(1)), "it is asked for anew");
    }

    #[test]
    fn a_small_node_takes_one_at_a_time() {
        let small = NodeReport { memory_total_mib: 80, ..report(0, 0, Vec::new()) };
        assert_eq!(room(&small, &Held::default()), any(1));
        assert_eq!(room(&small, &held(1, 1, 0)), Room::None);
    }

    #[test]
    fn nothing_is_taken_while_a_caller_waits() {
        let waited = report(128, 0, vec![containers_of(0, 1, 1)]);
        assert_eq!(room(&waited, &held(1, 1, 0)), Room::None);
        let unwaited = report(128, 0, vec![containers_of(0, 1, 0)]);
        assert_ne!(room(&unwaited, &held(3, 2, 128)), Room::None);
    }

    #[test]
    fn a_container_has_as_many_messages_ahead_as_its_pace_says() {
        let (quick, slow) = (containers_of(0, 1, 0), containers_of(0, 1, 0));
        let report = report(1000, 0, vec![quick, slow]);
        let mut paces = Paces::default();
        paces.ran(quick.id, Duration::from_millis(10));
        paces.ran(slow.id, Duration::from_secs(9));
        let room = |held: &Held| Room::of(&report, held, &paces, std::iter::empty(), SHARES);
        let of = |function: &FunctionReport, messages_max| Preferred { function: function.id, messages_max };
        let both = Room::Warm { functions: vec![of(&quick, 2), of(&slow, 1)], messages: 3 };
        assert_eq!(room(&Held::default()), both);
        let held = held_of(slow.id, 2, 1, 128);
        assert_eq!(room(&held), Room::Warm { functions: vec![of(&quick, 2)], messages: 2 });
    }

    #[test]
    fn a_function_that_has_enough_for_now_is_left_out_until_half_of_it_is_done() {
        let function = containers_of(0, 1, 0);
        let (report, mut paces) = (report(64, 0, vec![function]), Paces::default());
        paces.ran(function.id, Duration::from_millis(2));
        let room = |waiting| {
            let held = held_of(function.id, waiting + 1, waiting, 64);
            Room::of(&report, &held, &paces, std::iter::empty(), SHARES)
        };
        let left_out = Room::Any { warm: Vec::new(), except: vec![function.id], messages: 1 };
        assert_eq!([room(9), room(6)], [left_out.clone(), left_out]);
        let warm = vec![Preferred { function: function.id, messages_max: 5 }];
        assert_eq!(room(5), Room::Any { warm, except: Vec::new(), messages: 6 });
    }

    #[test]
    fn while_processors_are_pressed_only_idle_containers_get_a_message() {
        let (burst, other) = (containers_of(1, 1, 0), containers_of(1, 0, 0));
        let (report, mut paces) = (report(192, 128, vec![burst, other]), Paces::default());
        for function in [burst.id, other.id] {
            paces.ran(function, Duration::from_millis(1));
        }
        let room = |held: Held| {
            let held = Held { is_pressed: true, ..held };
            match Room::of(&report, &held, &paces, std::iter::empty(), SHARES) {
                Room::Any { warm, except, .. } => {
                    (warm.iter().map(|warm| (warm.function, warm.messages_max)).collect::<Vec<_>>(), except)
                }
                room => panic!("{room:?}"),
            }
        };
        assert_eq!(room(Held::default()), (vec![(burst.id, 2), (other.id, 1)], vec![]));
        assert_eq!(room(held_of(burst.id, 1, 0, 64)), (vec![(burst.id, 1), (other.id, 1)], vec![]));
        assert_eq!(room(held_of(burst.id, 2, 0, 64)), (vec![(other.id, 1)], vec![burst.id]));
    }

    #[test]
    fn a_question_is_asked_again_when_there_is_less_room_for_one_of_its_functions() {
        let [one, other] = [FunctionId::generate(), FunctionId::generate()];
        let any = |most: &[(FunctionId, usize)]| {
            let warm = most.iter().map(|&(function, messages_max)| Preferred { function, messages_max });
            Room::Any { warm: warm.collect(), except: Vec::new(), messages: 9 }
        };
        let asked = any(&[(one, 3), (other, 5)]);
        assert!(
            any(&[(one, 3), (other, 4)]).is_other_than(&asked) && any(&[(other, 5)]).is_other_than(&asked)
        );
        assert!(!any(&[(other, 7), (one, 3)]).is_other_than(&asked));
    }

    #[test]
    fn several_taps_share_the_room() {
        assert_eq!(any(5).part(2), any(3));
        assert_eq!(Room::None.part(2), Room::None);
    }

    #[test]
    fn a_question_is_asked_again_when_there_is_less_room_than_it_asks_for() {
        assert!(any(4).is_other_than(&any(5)) && Room::None.is_other_than(&any(5)));
        assert!(!any(6).is_other_than(&any(5)));
    }

    #[test]
    fn above_the_high_water_mark_only_containers_that_exist_get_work() {
        let function = containers_of(2, 5, 0);
        let report = report(1000, 150, vec![function]);
        let Room::Warm { functions, messages } = room(&report, &Held::default()) else { panic!("not warm") };
        assert_eq!((functions, messages), (vec![Preferred { function: function.id, messages_max: 7 }], 7));
    }

    #[test]
    fn queued_work_with_its_whole_share_leaves_idle_containers_to_callers() {
        let (idle, busy) = (containers_of(1, 0, 0), containers_of(0, 8, 0));
        let report = report(900, 100, vec![idle, busy]);
        let Room::Warm { functions, .. } = room(&report, &held(8, 0, 800)) else { panic!("not warm") };
        assert_eq!(functions.iter().map(|function| function.function).collect::<Vec<_>>(), [busy.id]);
    }

    #[test]
    fn a_node_that_drains_takes_nothing() {
        let report = NodeReport { draining: true, ..report(0, 0, Vec::new()) };
        assert_eq!(room(&report, &Held::default()), Room::None);
    }

    proptest! {
        #[test]
        fn never_more_than_the_bound(
            committed in 0..2000u64, idle_mib in 0..2000u64, memory in 0..2000u64, messages in 0..200usize,
            waiting in 0..200usize, functions in prop::collection::vec((0..50u32, 0..50u32), 0..9),
        ) {
            let functions = functions.into_iter().map(|(idle, busy)| containers_of(idle, busy, 0)).collect();
            let held = held(messages, waiting.min(messages), memory);
            let taken = match room(&report(committed, idle_mib, functions), &held) {
                Room::None => 0,
                Room::Warm { messages, functions } => {
                    prop_assert!(messages > 0 && !functions.is_empty());
                    messages
                }
                Room::Any { messages, .. } => {
                    prop_assert!(messages > 0);
                    messages
                }
            };
            prop_assert!(taken + messages <= SHARES.messages_max.max(messages));
        }
    }
}
