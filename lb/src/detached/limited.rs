//! Detached calls of functions with a limit (`kiln.dev/concurrency-max`): no more of them are given to nodes than may run
//! beside those that somebody waits for.
//!
//! A message that is given out has a place under its function's limit, as a call at the edge has, until its end is told or
//! its lease is over. Those that find no place go back, and their function counts as crowded: from then on it is asked for
//! alone, for as many messages as there are places, until there are no more of it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use kiln_shared::function::Function;
use kiln_shared::ids::{CallId, FunctionId};
use kiln_shared::queue::Receipt;
use tokio::time::Instant;

use crate::fleet::concurrency::{LimitReached, Running, enter};
use crate::fleet::{Demand, FleetReader, Limits};

/// Counts calls against the limits of their functions, together with the edge. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Concurrency {
    limits: Arc<Limits>,
    fleet: FleetReader,
}

impl Concurrency {
    /// Counts with the edge that has the same `limits`, and what `fleet` knows of other balancers' calls.
    pub fn new(limits: Arc<Limits>, fleet: FleetReader) -> Self {
        Self { limits, fleet }
    }

    /// A place for one call, if the function has a limit.
    pub(super) fn enter(&self, function: &Function) -> Result<Option<Running>, LimitReached> {
        let demand = Demand::of(function);
        let limit =
            function.spec.concurrency_max.map(|calls_max| self.limits.of(&demand.function, calls_max));
        if limit.is_some() && self.is_waited_for(function) {
            return Err(LimitReached);
        }
        enter(limit.as_ref(), || self.fleet.clone().view().calls_of(&demand))
    }

    /// How many more calls may run now; `None` if the function has no limit.
    pub(super) fn free(&self, function: &Function) -> Option<u32> {
        let demand = Demand::of(function);
        let limit = self.limits.of(&demand.function, function.spec.concurrency_max?);
        if self.is_waited_for(function) {
            return Some(0);
        }
        Some(limit.free(self.fleet.clone().view().calls_of(&demand)))
    }

    /// Callers come before what is queued.
    fn is_waited_for(&self, function: &Function) -> bool {
        self.fleet.room().is_waited_for(&function.spec.id)
    }
}

/// What was given out of functions with a limit, and which of them are crowded.
#[derive(Debug, Default)]
pub(super) struct Limited {
    given: HashMap<CallId, Given>,
    crowded: HashSet<FunctionId>,
}

#[derive(Debug)]
struct Given {
    lease: u64,
    function: FunctionId,
    leased_until: Instant,
    _running: Running,
}

impl Limited {
    /// A message is given out, in this place.
    pub(super) fn give(
        &mut self,
        receipt: Receipt,
        function: FunctionId,
        leased_until: Instant,
        running: Running,
    ) {
        let given = Given { lease: receipt.lease, function, leased_until, _running: running };
        self.given.insert(receipt.id, given);
    }

    /// The lease of a message is longer.
    pub(super) fn renewed(&mut self, receipt: Receipt, leased_until: Instant) {
        if let Some(given) = self.given.get_mut(&receipt.id).filter(|given| given.lease == receipt.lease) {
            given.leased_until = leased_until;
        }
    }

    /// A message has ended or its lease is lost. True if others of its function wait for a place.
    pub(super) fn ended(&mut self, receipt: Receipt) -> bool {
        if self.given.get(&receipt.id).is_none_or(|given| given.lease != receipt.lease) {
            return false;
        }
        let given = self.given.remove(&receipt.id);
        given.is_some_and(|given| self.crowded.contains(&given.function))
    }

    /// Forgets what was given to nodes that are gone.
    pub(super) fn expire(&mut self, now: Instant) {
        self.given.retain(|_, given| now < given.leased_until);
    }

    /// A message of the function found no place.
    pub(super) fn is_crowded(&mut self, function: FunctionId) {
        self.crowded.insert(function);
    }

    /// Nothing of the function waits any more.
    pub(super) fn is_through(&mut self, function: FunctionId) {
        self.crowded.remove(&function);
    }

    /// Functions that are not to be asked for together with others.
    pub(super) fn crowded(&self) -> impl Iterator<Item = FunctionId> {
        self.crowded.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_place_is_free_when_its_message_ends_or_its_lease_does() {
        let (limits, function, now) = (Limits::default(), FunctionId::generate(), Instant::now());
        let limit = limits.of(&function, 2);
        let mut limited = Limited::default();
        let receipts: Vec<_> = (0..2).map(|_| Receipt { id: CallId::generate(), lease: 1 }).collect();
        for receipt in &receipts {
            let running = limit.enter(0).expect("a place");
            limited.give(*receipt, function, now + Duration::from_secs(30), running);
        }
        assert_eq!(limit.free(0), 0);
        assert!(!limited.ended(Receipt { lease: 2, ..receipts[0] }), "of another lease");
        assert!(!limited.ended(receipts[0]), "nobody waits");
        assert_eq!((limit.free(0), limit.free(2)), (1, 0));
        limited.renewed(receipts[1], now + Duration::from_mins(1));
        limited.expire(now + Duration::from_secs(30));
        assert_eq!(limit.free(0), 1);
        limited.expire(now + Duration::from_mins(1));
        assert_eq!(limit.free(0), 2);
    }

    #[test]
    fn who_waits_for_a_place_hears_of_one() {
        let (limits, function) = (Limits::default(), FunctionId::generate());
        let receipt = Receipt { id: CallId::generate(), lease: 1 };
        let mut limited = Limited::default();
        let running = limits.of(&function, 1).enter(0).expect("a place");
        limited.give(receipt, function, Instant::now() + Duration::from_secs(30), running);
        limited.is_crowded(function);
        assert_eq!(limited.crowded().collect::<Vec<_>>(), [function]);
        assert!(limited.ended(receipt) && !limited.ended(receipt));
        limited.is_through(function);
        assert_eq!(limited.crowded().count(), 0);
    }
}
