//! What containers have committed of the node's memory and CPU. Pure.

use kiln_shared::function::Function;

/// What one container commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Memory in MiB, the tmpfs included.
    pub memory_mib: u64,
    /// CPU in thousandths of a core; zero if it has no limit.
    pub cpu_millis: u32,
}

impl Demand {
    /// What a container of the function commits.
    pub fn of(function: &Function) -> Self {
        let spec = &function.spec;
        Self {
            memory_mib: spec.memory_mib + u64::from(spec.tmpfs_mib.unwrap_or(0)),
            cpu_millis: spec.cpu_millis.unwrap_or(0),
        }
    }
}

/// Why a demand was not committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    /// The node is too small even when it is empty.
    Never,
    /// This much must come free first.
    Missing(Demand),
}

/// Total and committed.
#[derive(Debug)]
pub struct Ledger {
    total: Demand,
    committed: Demand,
}

impl Ledger {
    /// An empty node that has `total`.
    pub fn new(total: Demand) -> Self {
        Self { total, committed: Demand { memory_mib: 0, cpu_millis: 0 } }
    }

    /// True if an empty node could hold it.
    pub fn could_ever_fit(&self, demand: Demand) -> bool {
        demand.memory_mib <= self.total.memory_mib && demand.cpu_millis <= self.total.cpu_millis
    }

    /// Commits a container.
    ///
    /// # Errors
    /// What is missing.
    pub fn commit(&mut self, demand: Demand) -> Result<(), Shortage> {
        if !self.could_ever_fit(demand) {
            return Err(Shortage::Never);
        }
        let missing = Demand {
            memory_mib: (self.committed.memory_mib + demand.memory_mib).saturating_sub(self.total.memory_mib),
            cpu_millis: (self.committed.cpu_millis + demand.cpu_millis).saturating_sub(self.total.cpu_millis),
        };
        if missing.memory_mib > 0 || missing.cpu_millis > 0 {
            return Err(Shortage::Missing(missing));
        }
        self.committed.memory_mib += demand.memory_mib;
        self.committed.cpu_millis += demand.cpu_millis;
        Ok(())
    }

    /// Gives back what a container had committed.
    pub fn release(&mut self, demand: Demand) {
        self.committed.memory_mib -= demand.memory_mib;
        self.committed.cpu_millis -= demand.cpu_millis;
    }

    /// What the node has.
    pub fn total(&self) -> Demand {
        self.total
    }

    /// What is committed.
    pub fn committed(&self) -> Demand {
        self.committed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(memory_mib: u64, cpu_millis: u32) -> Demand {
        Demand { memory_mib, cpu_millis }
    }

    #[test]
    fn memory_and_cpu_are_both_counted() {
        let mut ledger = Ledger::new(demand(256, 1000));
        assert_eq!(ledger.commit(demand(128, 600)), Ok(()));
        assert_eq!(ledger.commit(demand(128, 600)), Err(Shortage::Missing(demand(0, 200))));
        assert_eq!(ledger.commit(demand(192, 0)), Err(Shortage::Missing(demand(64, 0))));
        ledger.release(demand(128, 600));
        assert_eq!(ledger.committed(), demand(0, 0));
    }

    #[test]
    fn what_can_never_fit_is_told_apart() {
        let mut ledger = Ledger::new(demand(256, 1000));
        assert_eq!(ledger.commit(demand(257, 0)), Err(Shortage::Never));
        assert_eq!(ledger.commit(demand(1, 1001)), Err(Shortage::Never));
    }
}
