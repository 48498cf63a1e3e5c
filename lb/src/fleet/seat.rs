//! A call's place on a node, counted from the decision to the end of the answer.
//!
//! Owns the release of what placement took. Invariant: whatever ends the call, its counts are given back once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_shared::call::Refusal;

use super::concurrency::Running;
use super::demand::Demand;
use super::node::{Node, NodeSerial};
use super::placement::{Decision, Reason};
use super::slots::Slots;
use super::standing::Standing;

/// How long a node that refused for want of room is asked for no container, unless it reports earlier.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// How long a node that is going away or could not be reached gets no calls.
const AWAY_PAUSE: Duration = Duration::from_secs(1);

/// A call's place on a node. Keep it until the answer's last byte is sent; dropping it takes the call off the
/// node's count and gives its warm slot back.
#[derive(Debug)]
#[must_use = "dropping a seat takes the call off the node's count"]
pub struct Seat {
    node: Arc<Node>,
    /// The containers that the node had of the revision when the seat was taken.
    slots: Option<Arc<Slots>>,
    reason: Reason,
    asked: u32,
    /// Calls that the node had, this one not included.
    load: u32,
    /// Memory of the container that serves the call, if one was claimed for it.
    memory_mib: u64,
    /// The call's place under its function's own limit.
    running: Option<Running>,
    is_given_back: bool,
}

impl Seat {
    pub(crate) fn new(
        node: Arc<Node>,
        slots: Option<Arc<Slots>>,
        decision: Decision,
        demand: &Demand,
    ) -> Self {
        let Decision { reason, asked, .. } = decision;
        let load = node.load();
        node.enter();
        if let Some(slots) = &slots {
            slots.enter();
        }
        let claims_container = reason.starts_container() || reason.is_warm();
        if reason.starts_container() {
            node.start(demand);
        } else if claims_container {
            node.occupy(demand.memory_mib);
        }
        let memory_mib = if claims_container { demand.memory_mib } else { 0 };
        Self { node, slots, reason, asked, load, memory_mib, running: None, is_given_back: false }
    }

    /// Where the call goes.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Why there.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Nodes that were looked at to choose it.
    pub fn asked(&self) -> u32 {
        self.asked
    }

    /// Calls that the node had when it was chosen.
    pub fn load(&self) -> u32 {
        self.load
    }

    /// Gives the place back; where it was, so that a call that waits can have it.
    pub(crate) fn give_back(mut self) -> (NodeSerial, Option<Arc<Slots>>) {
        self.leave();
        (self.node.serial(), self.slots.take())
    }

    fn leave(&mut self) {
        if std::mem::replace(&mut self.is_given_back, true) {
            return;
        }
        self.node.leave();
        if let Some(slots) = &self.slots {
            slots.leave();
        }
        if self.memory_mib > 0 {
            self.node.vacate(self.memory_mib);
        }
    }

    /// Keeps the call's place under its function's limit as long as the seat.
    #[must_use = "dropping a seat takes the call off the node's count"]
    pub fn with_running(mut self, running: Option<Running>) -> Self {
        self.running = running;
        self
    }

    /// The node answered, whatever its function said: nothing speaks against it.
    pub fn answered(&self) {
        self.node.health().answered();
    }

    /// The node was lost with the call: evidence against it.
    pub fn lost(&self) {
        self.node.health().lost();
    }

    /// The node refused the call. What the refusal says of the node holds until its next report, or for a
    /// second where a report could be older than the refusal. Give the seat back after it.
    pub fn refuse(&self, reason: Refusal, now: Instant) {
        match reason {
            Refusal::Busy => self.node.set_busy(now, BUSY_PAUSE),
            Refusal::Draining => self.node.pause(Standing::RefusedDraining, now, AWAY_PAUSE),
            Refusal::Unreachable => {
                self.node.health().lost();
                self.node.pause(Standing::Unreachable, now, AWAY_PAUSE);
            }
            Refusal::UnknownFunction => {}
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
    }
}
