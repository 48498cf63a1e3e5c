//! What choosing a node is: what is asked, what may come of it, and which policy answers.
//!
//! Reads a view, changes nothing, reads no clock, allocates nothing. How nodes are compared is in
//! [`policy`](super::policy).

use std::time::Instant;

pub use kiln_shared::story::Reason;

use super::demand::Demand;
use super::node::NodeSerial;
use super::policy::{ChBl, LeastLoaded, P2c, Policy, PolicyName, Random, WarmCh};
use super::ring::NodeIndex;
use super::view::View;

/// Nodes that a call may be tried on before it waits.
pub const TRIES_MAX: usize = 8;

/// How calls are spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlacementPolicy {
    /// Which policy chooses.
    pub name: PolicyName,
    /// A node with more than this multiple of the mean load for its weight is passed over, once it has a call
    /// for each of its cores. At least 1.
    pub load_factor: f64,
    /// Nodes along the walk that are asked for a warm slot, and as many of the others that have the function.
    pub warm_search_nodes_max: u32,
    /// Nodes within the bound that are asked for the image before a call goes to one with room alone.
    pub image_search_nodes_max: u32,
    /// Nodes within the bound that are asked for room before a call waits. Keeps choosing cheap in a large
    /// fleet that is full, where most calls find no room.
    pub room_search_nodes_max: u32,
    /// Calls of one function that a node may have beyond its containers of it, whatever their number, so that none is
    /// idle while the next call is on its way. The rest waits at the balancer.
    pub lookahead_calls_min: u32,
    /// More of them for a node with many containers: this share of its ready ones. On average
    /// `containers x round trip / duration of a call` are needed: with calls of 1 ms and 0.2 ms there and back, a
    /// quarter keeps 16 containers at work 98 % of the time, two calls alone 93 % and none 83 % (`lb/tests/fleet`).
    pub lookahead_share: f64,
}

impl Default for PlacementPolicy {
    fn default() -> Self {
        Self {
            name: PolicyName::default(),
            load_factor: 1.25,
            warm_search_nodes_max: 32,
            image_search_nodes_max: 16,
            room_search_nodes_max: 128,
            lookahead_calls_min: 2,
            lookahead_share: 0.25,
        }
    }
}

/// Nodes that were tried for one call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TriedSet {
    nodes: [u32; TRIES_MAX],
    len: u8,
}

impl TriedSet {
    /// No node yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a node. The set holds [`TRIES_MAX`]; further ones are not remembered, so end the tries before.
    pub fn insert(&mut self, node: NodeSerial) {
        if !self.contains(node) && self.len() < TRIES_MAX {
            self.nodes[self.len()] = node.get();
            self.len += 1;
        }
    }

    /// True if the node was tried.
    pub fn contains(&self, node: NodeSerial) -> bool {
        self.nodes[..self.len()].contains(&node.get())
    }

    /// Number of nodes that were tried.
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// True before the first try.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// What is asked of a view.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// What the call needs.
    pub demand: &'a Demand,
    /// Nodes that are not to be tried again.
    pub tried: &'a TriedSet,
    /// A number that looks random, for policies that draw.
    pub draw: u64,
    /// The time.
    pub now: Instant,
}

/// A node for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// The node, in the view that was asked.
    pub node: NodeIndex,
    /// What spoke for it.
    pub reason: Reason,
    /// Nodes that were looked at, this one included.
    pub asked: u32,
    /// Every node that could take the call is above the bound on loads; this one is the least loaded.
    pub is_above_bound: bool,
}

/// Why there is no node for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    /// None is up that was not tried; one may come up.
    #[error("no node is left to try")]
    NoNode,
    /// Nodes are up, and none of those that were asked has a slot, room, or a short queue.
    #[error("every node is full")]
    Full,
    /// Each node of the fleet is smaller than one container of the function.
    #[error("no node is large enough for the function")]
    TooLarge,
}

/// Chooses a node by the policy of that name.
///
/// With the default, tens of nanoseconds if home has an idle slot and its data is in the cache, and for each further
/// node that is asked up to about 0.1 us of waiting for memory (`benches/placement`). The policy bounds how many are.
///
/// # Errors
/// No node may be tried, none has room, or none is large enough.
pub fn place(view: &View, ask: &Ask<'_>, policy: &PlacementPolicy) -> Result<Decision, NoPlace> {
    match policy.name {
        PolicyName::WarmCh => WarmCh(policy).choose(view, ask),
        PolicyName::ChBl => ChBl(policy).choose(view, ask),
        PolicyName::LeastLoaded => LeastLoaded.choose(view, ask),
        PolicyName::P2c => P2c.choose(view, ask),
        PolicyName::Random => Random.choose(view, ask),
    }
}
