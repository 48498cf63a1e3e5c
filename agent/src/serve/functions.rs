//! The functions that balancers have told this agent about.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use kiln_shared::function::{Function, Revision};
use kiln_shared::ids::FunctionId;

/// Most definitions that are kept. One that was forgotten is sent again when it is called.
const FUNCTIONS_MAX: usize = 20_000;

#[derive(Debug)]
struct Known {
    function: Arc<Function>,
    used: AtomicU64,
}

/// Definitions by function and revision, the least recently used forgotten first.
#[derive(Debug)]
pub(super) struct KnownFunctions {
    known: DashMap<(FunctionId, Revision), Known>,
    clock: AtomicU64,
    functions_max: usize,
}

impl Default for KnownFunctions {
    fn default() -> Self {
        Self { known: DashMap::new(), clock: AtomicU64::new(0), functions_max: FUNCTIONS_MAX }
    }
}

impl KnownFunctions {
    /// The function, if it is known.
    pub(super) fn get(&self, id: FunctionId, revision: Revision) -> Option<Arc<Function>> {
        let known = self.known.get(&(id, revision))?;
        // The clock counts definitions, not calls: reading it shares no written cache line.
        let now = self.clock.load(Ordering::Relaxed);
        if known.used.load(Ordering::Relaxed) != now {
            known.used.store(now, Ordering::Relaxed);
        }
        Some(Arc::clone(&known.function))
    }

    /// Keeps a definition. O(1), and O(definitions) when a quarter of them has to go.
    pub(super) fn learn(&self, function: Function) {
        let now = self.clock.fetch_add(1, Ordering::Relaxed) + 1;
        if self.known.len() >= self.functions_max {
            self.forget_oldest();
        }
        let key = (function.spec.id, function.revision);
        self.known.insert(key, Known { function: Arc::new(function), used: AtomicU64::new(now) });
    }

    fn forget_oldest(&self) {
        let mut used: Vec<u64> = self.known.iter().map(|known| known.used.load(Ordering::Relaxed)).collect();
        let quarter = used.len() / 4;
        let (_, &mut oldest_kept, _) = used.select_nth_unstable(quarter);
        self.known.retain(|_, known| known.used.load(Ordering::Relaxed) >= oldest_kept);
        // All were used in the same breath: any may go.
        if self.known.len() >= self.functions_max {
            let mut left = quarter.max(1);
            self.known.retain(|_, _| {
                let goes = left > 0;
                left = left.saturating_sub(1);
                !goes
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use kiln_shared::function::FunctionSpec;
    use kiln_shared::ids::AppId;

    use super::*;

    fn function(number: usize) -> Function {
        Function::new(FunctionSpec::with_defaults(
            format!("{number:026}").parse().expect("an id"),
            AppId::generate(),
            "example/f:1",
        ))
    }

    #[test]
    fn only_what_was_learned_is_known() {
        let functions = KnownFunctions::default();
        let known = function(1);
        let (id, revision) = (known.spec.id, known.revision);
        functions.learn(known.clone());
        assert_eq!(functions.get(id, revision).as_deref(), Some(&known));
        assert!(functions.get(id, Revision(revision.0 ^ 1)).is_none());
        assert!(functions.get(function(2).spec.id, revision).is_none());
    }

    #[test]
    fn the_least_recently_used_are_forgotten_and_what_is_in_use_stays() {
        let functions = KnownFunctions { functions_max: 8, ..KnownFunctions::default() };
        let busy = function(0);
        functions.learn(busy.clone());
        for number in 1..100 {
            assert!(functions.get(busy.spec.id, busy.revision).is_some(), "forgotten at {number}");
            functions.learn(function(number));
            assert!(functions.known.len() <= 8);
        }
        let last = function(99);
        assert!(functions.known.contains_key(&(last.spec.id, functions_revision(&functions, &last))));
    }

    /// App ids are made anew for each test function, so its revision is looked up.
    fn functions_revision(functions: &KnownFunctions, of: &Function) -> Revision {
        let found = functions.known.iter().find(|known| known.key().0 == of.spec.id);
        found.expect("is known").key().1
    }
}
