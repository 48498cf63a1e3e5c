//! What happens to one call on its way to a node, for `kiln why`.
//!
//! Fixed in size and without allocation, so that every call can have one. Told to the node with each try, and kept with the
//! call's record ([`kiln_shared::story`]).

use std::sync::Arc;
use std::time::Duration;

use kiln_shared::call::Refusal;
use kiln_shared::ids::NodeId;
use kiln_shared::story::{Placement, REFUSALS_TOLD_MAX, RefusedTry};

use super::node::NodeSerial;
use super::placement::Reason;
use super::seat::Seat;

/// Tries of a call that are remembered; of more the last ones are.
pub const TRIES_KEPT_MAX: usize = REFUSALS_TOLD_MAX;

/// Stands for a node that has left the fleet.
const LEFT: &str = "(left)";

/// One try of a call on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Try {
    /// The node.
    pub node: NodeSerial,
    /// What spoke for it.
    pub reason: Reason,
    /// Nodes that were looked at to choose it.
    pub asked: u32,
    /// Calls that it had.
    pub load: u32,
    /// Why it refused; `None` if it took the call.
    pub refusal: Option<Refusal>,
}

/// A call's way to a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trail {
    tries: [Option<Try>; TRIES_KEPT_MAX],
    tries_made: u32,
    waits: u32,
    waited: Duration,
}

impl Trail {
    /// The tries that are remembered, oldest first.
    pub fn tries(&self) -> impl Iterator<Item = &Try> {
        let next = self.tries_made as usize % TRIES_KEPT_MAX;
        self.tries[next..].iter().chain(&self.tries[..next]).flatten()
    }

    /// Tries that were made, remembered or not.
    pub fn tries_made(&self) -> u32 {
        self.tries_made
    }

    /// How often it waited at the balancer.
    pub fn waits(&self) -> u32 {
        self.waits
    }

    /// How long it waited at the balancer, all waits together.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// The newest try.
    pub fn last(&self) -> Option<&Try> {
        let last = self.tries_made.checked_sub(1)?;
        self.tries[last as usize % TRIES_KEPT_MAX].as_ref()
    }

    /// What the balancer of that name tells of the call, `before` after it came. `name_of` is asked for the nodes that refused;
    /// one that has left the fleet since has no name. Allocates only if a node has refused.
    pub fn placement(
        &self,
        balancer: Arc<str>,
        before: Duration,
        name_of: impl Fn(NodeSerial) -> Option<NodeId>,
    ) -> Placement {
        let last = self.last();
        let refused = self.tries().filter_map(|made| {
            let refusal = made.refusal?;
            let node = name_of(made.node).unwrap_or_else(|| NodeId::new(LEFT));
            Some(RefusedTry { node, reason: made.reason, calls: made.load, refusal })
        });
        Placement {
            balancer,
            reason: last.map(|made| made.reason),
            asked: last.map_or(0, |made| made.asked),
            calls: last.map_or(0, |made| made.load),
            tries: self.tries_made,
            refused: refused.collect(),
            waits: self.waits,
            waited: self.waited,
            before,
        }
    }

    pub(crate) fn seated(&mut self, seat: &Seat) {
        let made = Try {
            node: seat.node().serial(),
            reason: seat.reason(),
            asked: seat.asked(),
            load: seat.load(),
            refusal: None,
        };
        self.tries[self.tries_made as usize % TRIES_KEPT_MAX] = Some(made);
        self.tries_made += 1;
    }

    pub(crate) fn refused(&mut self, refusal: Refusal) {
        let last = self.tries_made.checked_sub(1).map(|made| made as usize % TRIES_KEPT_MAX);
        if let Some(last) = last.and_then(|last| self.tries[last].as_mut()) {
            last.refusal = Some(refusal);
        }
    }

    pub(crate) fn waited_for(&mut self, time: Duration) {
        self.waits += 1;
        self.waited += time;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::testing::{TestFleet, demand};

    #[test]
    fn a_call_tells_who_refused_it_and_what_spoke_for_the_node_that_has_it() {
        let fleet = TestFleet::empty(10);
        let (function, mut trail) = (demand(1), Trail::default());
        let view = fleet.fleet.view();
        let mut tried = crate::fleet::TriedSet::new();
        let mut nodes = Vec::new();
        let mut reader = fleet.fleet.reader();
        for _ in 0..TRIES_KEPT_MAX {
            let seat = reader.seat(&function, &tried, fleet.now).expect("a node");
            tried.insert(seat.node().serial());
            nodes.push(seat.node().id().clone());
            trail.seated(&seat);
            trail.refused(Refusal::Busy);
            trail.waited_for(Duration::from_millis(2));
        }
        let seat = reader.seat(&function, &crate::fleet::TriedSet::new(), fleet.now).expect("a node");
        trail.seated(&seat);
        let name_of = |serial| view.name_of(serial).filter(|name| *name != nodes[3]);
        let told = trail.placement("lb1".into(), Duration::from_millis(20), name_of);
        assert_eq!((told.tries, told.waits, told.waited), (9, 8, Duration::from_millis(16)));
        assert_eq!((told.reason, told.calls, told.before.as_millis()), (Some(seat.reason()), 0, 20));
        // The first refusal made room for the try that went well.
        let named: Vec<&str> = told.refused.iter().map(|refused| refused.node.as_str()).collect();
        let mut expected: Vec<&str> = nodes[1..].iter().map(NodeId::as_str).collect();
        expected[2] = LEFT;
        assert_eq!(named, expected);
    }
}
