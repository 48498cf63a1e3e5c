//! How much queued work a node may take now. Pure: judged by the node's own report.
//!
//! Callers who wait come first: while one does, nothing is taken. Otherwise idle containers may be kept busy, a few
//! messages ahead of each, and new containers may be started as far as the share of queued work goes.

use kiln_shared::ids::FunctionId;
use kiln_shared::report::NodeReport;

/// Messages taken ahead for each container that works on the queue, so that it does not wait for the next one.
const AHEAD_OF_EACH: usize = 4;
/// Most messages that are taken for containers that do not exist yet, in one go.
const COLD_MAX: usize = 16;
/// What a container of unknown size is taken to need, in MiB.
const MEMORY_GUESS_MIB: u64 = 128;

/// Bounds of queued work on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// Part of the node's memory that queued work may hold, in percent; the rest is kept for callers who wait.
    pub memory_percent: u8,
    /// No container is started for queued work while this part of the node's memory is in use, in percent.
    pub high_water_percent: u8,
    /// Most messages that the node has at a time, those that run included.
    pub messages_max: usize,
}

/// Queued work that the node has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Messages, in whatever state.
    pub(super) messages: usize,
    /// Of these, the ones that wait for a container.
    pub(super) waiting: usize,
    /// Memory of the containers of those that run, in MiB.
    pub(super) memory_mib: u64,
}

/// What may be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Room {
    /// Nothing.
    None,
    /// Messages of functions that have a container here.
    Warm {
        /// The functions.
        functions: Vec<FunctionId>,
        /// How many messages.
        messages: usize,
    },
    /// Messages of any function, those that have a container here first.
    Any {
        /// Functions that have one.
        warm: Vec<FunctionId>,
        /// How many messages.
        messages: usize,
    },
}

impl Room {
    /// What may be taken on a node with this report that has `held` already.
    pub(super) fn of(report: &NodeReport, held: Held, shares: Shares) -> Self {
        let left = shares.messages_max.saturating_sub(held.messages);
        let waiting: usize = report.functions.iter().map(|function| function.waiting as usize).sum();
        if report.draining || left == 0 || waiting > held.waiting {
            return Self::None;
        }
        let share_mib = percent(report.memory_total_mib, shares.memory_percent);
        if held.memory_mib >= share_mib && held.messages > 0 {
            // Its own containers may go on with the next message.
            return Self::warm(report, held, left, false);
        }
        let used_mib = report.memory_committed_mib.saturating_sub(report.memory_idle_mib);
        let high_water_mib = percent(report.memory_total_mib, shares.high_water_percent);
        let room_mib = share_mib.saturating_sub(held.memory_mib).min(high_water_mib.saturating_sub(used_mib));
        let mean_mib = match held.messages - held.waiting.min(held.messages) {
            0 => MEMORY_GUESS_MIB,
            running => (held.memory_mib / running as u64).max(1),
        };
        // One at a time is taken even where the guess says that there is no room for it: it may be small.
        let cold_min = usize::from(held.messages == 0 && room_mib > 0);
        let cold = usize::try_from(room_mib / mean_mib).unwrap_or(COLD_MAX).clamp(cold_min, COLD_MAX);
        let cold = cold.saturating_sub(held.waiting);
        if cold == 0 {
            return Self::warm(report, held, left, true);
        }
        let (warm, ahead) = containers(report, true);
        let messages = (cold + (ahead * AHEAD_OF_EACH).saturating_sub(held.waiting)).min(left);
        Self::Any { warm, messages }
    }

    /// Work for containers that exist: for idle ones too unless queued work has its share already.
    fn warm(report: &NodeReport, held: Held, left: usize, idle_too: bool) -> Self {
        let (functions, count) = containers(report, idle_too);
        let messages = (count * AHEAD_OF_EACH).saturating_sub(held.waiting).min(left);
        if messages == 0 { Self::None } else { Self::Warm { functions, messages } }
    }
}

/// Functions that have containers, and how many those are.
fn containers(report: &NodeReport, idle_too: bool) -> (Vec<FunctionId>, usize) {
    let counted = report.functions.iter().map(|function| {
        let idle = if idle_too { function.idle } else { 0 };
        (function.id, (function.busy + idle) as usize)
    });
    let (mut functions, mut count) = (Vec::new(), 0);
    for (function, containers) in counted.filter(|&(_, containers)| containers > 0) {
        functions.push(function);
        count += containers;
    }
    functions.dedup();
    (functions, count)
}

fn percent(of: u64, percent: u8) -> u64 {
    of * u64::from(percent.min(100)) / 100
}

#[cfg(test)]
mod tests {
    use kiln_shared::function::Revision;
    use kiln_shared::ids::NodeId;
    use kiln_shared::report::{FunctionReport, ReportScope};
    use proptest::prelude::*;

    use super::*;

    const SHARES: Shares = Shares { memory_percent: 80, high_water_percent: 80, messages_max: 64 };

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

    fn held(messages: usize, waiting: usize, memory_mib: u64) -> Held {
        Held { messages, waiting, memory_mib }
    }

    #[test]
    fn an_empty_node_takes_what_its_share_has_room_for() {
        let room = Room::of(&report(0, 0, Vec::new()), Held::default(), SHARES);
        assert_eq!(room, Room::Any { warm: Vec::new(), messages: 6 });
    }

    #[test]
    fn a_small_node_takes_one_at_a_time() {
        let small = NodeReport { memory_total_mib: 80, ..report(0, 0, Vec::new()) };
        let room = |held| Room::of(&small, held, SHARES);
        assert_eq!(room(Held::default()), Room::Any { warm: Vec::new(), messages: 1 });
        assert_eq!(room(held(1, 1, 0)), Room::None);
    }

    #[test]
    fn nothing_is_taken_while_a_caller_waits() {
        let report = report(128, 0, vec![containers_of(0, 1, 2)]);
        assert_eq!(Room::of(&report, held(1, 1, 0), SHARES), Room::None);
        assert_ne!(Room::of(&report, held(3, 2, 128), SHARES), Room::None);
    }

    #[test]
    fn above_the_high_water_mark_only_containers_that_exist_get_work() {
        let function = containers_of(2, 5, 0);
        let report = report(1000, 150, vec![function]);
        let Room::Warm { functions, messages } = Room::of(&report, Held::default(), SHARES) else {
            panic!("not warm")
        };
        assert_eq!((functions, messages), (vec![function.id], 28));
    }

    #[test]
    fn queued_work_with_its_whole_share_leaves_idle_containers_to_callers() {
        let (idle, busy) = (containers_of(1, 0, 0), containers_of(0, 8, 0));
        let report = report(900, 100, vec![idle, busy]);
        let Room::Warm { functions, .. } = Room::of(&report, held(8, 0, 800), SHARES) else {
            panic!("not warm")
        };
        assert_eq!(functions, [busy.id]);
    }

    #[test]
    fn a_node_that_drains_takes_nothing() {
        let report = NodeReport { draining: true, ..report(0, 0, Vec::new()) };
        assert_eq!(Room::of(&report, Held::default(), SHARES), Room::None);
    }

    proptest! {
        #[test]
        fn never_more_than_the_bound(
            committed in 0..2000u64, idle_mib in 0..2000u64, memory in 0..2000u64, messages in 0..200usize,
            waiting in 0..200usize, functions in prop::collection::vec((0..50u32, 0..50u32), 0..9),
        ) {
            let functions = functions.into_iter().map(|(idle, busy)| containers_of(idle, busy, 0)).collect();
            let held = held(messages, waiting.min(messages), memory);
            let taken = match Room::of(&report(committed, idle_mib, functions), held, SHARES) {
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
