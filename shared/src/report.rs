//! What a node tells every balancer about itself.
//!
//! A report is whole, or it is what has changed since the report before it: its numbers are always whole, its lists of
//! functions and images are one or the other.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::function::Revision;
use crate::ids::{FunctionId, NodeId};

/// Whether a report's lists are all there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReportScope {
    /// What is not in the lists is not on the node.
    Whole,
    /// What is not in the lists is as it was in the report with that sequence.
    Changes {
        /// The sequence of the report that these changes follow.
        since: u64,
    },
}

/// A node's state at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The node.
    pub node: NodeId,
    /// Names this life of the agent; a new value means that it restarted and forgot everything.
    pub epoch: u64,
    /// Counts reports within an epoch; larger is newer.
    pub sequence: u64,
    /// Whether the lists are whole.
    pub scope: ReportScope,
    /// The agent takes no more calls.
    pub draining: bool,
    /// Memory that containers may commit, in MiB.
    pub memory_total_mib: u64,
    /// Memory committed to containers, idle ones included, in MiB.
    pub memory_committed_mib: u64,
    /// Memory of idle containers, which others may claim, in MiB.
    pub memory_idle_mib: u64,
    /// CPU that containers may commit, in thousandths of a core.
    pub cpu_total_millis: u32,
    /// CPU committed to containers, in thousandths of a core.
    pub cpu_committed_millis: u32,
    /// Calls that run or wait.
    pub calls: u32,
    /// Containers by function, in the order of (id, revision). Of a report of changes: those that are new or another.
    pub functions: Vec<FunctionReport>,
    /// Of a report of changes: functions that have neither containers nor calls any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<(FunctionId, Revision)>,
    /// References of the images that are present, sorted. `None` in a report of changes: as before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<Arc<[Arc<str>]>>,
}

/// Containers of one function on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionReport {
    /// The function.
    pub id: FunctionId,
    /// Its revision.
    pub revision: Revision,
    /// Containers that are ready and unused.
    pub idle: u32,
    /// Containers that serve a call.
    pub busy: u32,
    /// Containers that are being started.
    pub starting: u32,
    /// Calls that wait for a slot.
    pub waiting: u32,
}

impl NodeReport {
    /// This whole report as changes since another whole one of the same life, which the reader has.
    #[must_use]
    pub fn changes_since(&self, known: &Self) -> Self {
        let key = |function: &FunctionReport| (function.id, function.revision);
        let mut before: HashMap<_, _> = known.functions.iter().map(|f| (key(f), f)).collect();
        let changed = |function: &&FunctionReport| before.remove(&key(function)) != Some(*function);
        let functions = self.functions.iter().filter(changed).copied().collect();
        let mut gone: Vec<_> = before.into_keys().collect();
        gone.sort_unstable();
        Self {
            node: self.node.clone(),
            scope: ReportScope::Changes { since: known.sequence },
            functions,
            gone,
            images: self.images.clone().filter(|_| self.images != known.images),
            ..*self
        }
    }

    /// Brings a whole report up to date with the changes that follow it.
    ///
    /// Returns false and changes nothing if `changes` does not follow: it is of another life, follows another report,
    /// or is none of changes.
    pub fn apply(&mut self, changes: &Self) -> bool {
        let follows = changes.scope == ReportScope::Changes { since: self.sequence };
        if changes.epoch != self.epoch || !follows {
            return false;
        }
        let mut functions: HashMap<_, _> = self.functions.iter().map(|f| ((f.id, f.revision), *f)).collect();
        for gone in &changes.gone {
            functions.remove(gone);
        }
        functions.extend(changes.functions.iter().map(|f| ((f.id, f.revision), *f)));
        let mut functions: Vec<_> = functions.into_values().collect();
        functions.sort_unstable_by_key(|function| (function.id, function.revision));
        let images = changes.images.clone().or_else(|| self.images.take());
        *self = Self {
            node: self.node.clone(),
            scope: ReportScope::Whole,
            functions,
            gone: Vec::new(),
            images,
            ..*changes
        };
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(sequence: u64, functions: Vec<FunctionReport>, images: Vec<String>) -> NodeReport {
        NodeReport {
            node: NodeId::new("n"),
            epoch: 1,
            sequence,
            scope: ReportScope::Whole,
            draining: false,
            memory_total_mib: 8192,
            memory_committed_mib: sequence,
            memory_idle_mib: 0,
            cpu_total_millis: 4000,
            cpu_committed_millis: 0,
            calls: 0,
            functions,
            gone: Vec::new(),
            images: Some(images.into_iter().map(Arc::from).collect()),
        }
    }

    fn functions() -> impl Strategy<Value = Vec<FunctionReport>> {
        prop::collection::btree_map(0_u8..12, 0_u32..3, 0..12).prop_map(|counts| {
            let function = |(number, idle): (u8, u32)| FunctionReport {
                id: format!("{number:026}").parse().expect("an id"),
                revision: Revision(number.into()),
                idle,
                busy: 0,
                starting: 0,
                waiting: 0,
            };
            counts.into_iter().map(function).collect()
        })
    }

    proptest! {
        #[test]
        fn a_report_and_its_changes_make_the_next_report(
            before in functions(), after in functions(), images in prop::collection::vec("[a-c]", 0..3),
        ) {
            let mut known = whole(7, before, vec!["a".to_owned()]);
            let next = whole(12, after, images);
            let changes = next.changes_since(&known);
            let sent: NodeReport = serde_json::from_slice(&serde_json::to_vec(&changes).unwrap()).unwrap();
            prop_assert!(known.apply(&sent));
            prop_assert_eq!(known, next);
        }
    }

    #[test]
    fn what_has_not_changed_is_not_said_again() {
        let known = whole(7, Vec::new(), vec!["a".to_owned()]);
        let changes = whole(9, Vec::new(), vec!["a".to_owned()]).changes_since(&known);
        assert_eq!((changes.scope, changes.images), (ReportScope::Changes { since: 7 }, None));
    }

    #[test]
    fn changes_of_another_moment_or_life_do_not_follow() {
        let mut known = whole(7, Vec::new(), Vec::new());
        let unchanged = known.clone();
        let scopes = [6, 8].map(|since| ReportScope::Changes { since });
        for (epoch, scope) in
            [(1, scopes[0]), (1, scopes[1]), (2, ReportScope::Changes { since: 7 }), (1, ReportScope::Whole)]
        {
            let changes = NodeReport { epoch, scope, sequence: 10, ..unchanged.changes_since(&unchanged) };
            assert!(!known.apply(&changes), "{epoch} {scope:?}");
        }
        assert_eq!(known, unchanged);
    }
}
