//! What happened to one call on its way to a node, for `kiln why`.
//!
//! Fixed in size and without allocation, so that every call can have one.

use std::time::Duration;

use kiln_shared::call::Refusal;

use super::node::NodeSerial;
use super::placement::Reason;
use super::seat::Seat;

/// Tries of a call that are remembered; of more the last ones are.
pub const TRIES_KEPT_MAX: usize = 8;

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
