//! A call's place on a node, counted from the decision to the end of the answer.
//!
//! Owns the release of what placement took. Invariant: whatever ends the call, its counts are given back once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_shared::call::Refusal;

use super::node::{Demand, Node, NodeState, Slots};
use super::placement::Reason;

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
}

impl Seat {
    pub(crate) fn new(node: Arc<Node>, slots: Option<Arc<Slots>>, reason: Reason, demand: &Demand) -> Self {
        node.enter();
        if let Some(slots) = &slots {
            slots.enter();
        }
        if reason.starts_container() {
            node.commit(demand);
        }
        Self { node, slots, reason }
    }

    /// Where the call goes.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Why there.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The node refused the call. What the refusal says of the node holds until its next report, or for a
    /// second where a report could be older than the refusal.
    pub fn refuse(self, reason: Refusal, now: Instant) {
        match reason {
            Refusal::Busy => self.node.set_busy(now, BUSY_PAUSE),
            Refusal::Draining => self.node.pause(NodeState::Draining, now + AWAY_PAUSE),
            Refusal::Unreachable => self.node.pause(NodeState::Suspect, now + AWAY_PAUSE),
            Refusal::UnknownFunction => {}
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.node.leave();
        if let Some(slots) = &self.slots {
            slots.leave();
        }
    }
}
