//! How nodes are compared: one small trait, the default policy and others to compare it with.
//!
//! All are pure. What they share is here: which nodes may be asked at all, and what a node offers a call.

mod others;
mod warm_ch;

use std::fmt;
use std::str::FromStr;
use std::time::Instant;

pub use others::{ChBl, LeastLoaded, P2c, Random};
pub use warm_ch::WarmCh;

use super::demand::Demand;
use super::node::Node;
use super::placement::{Ask, Decision, NoPlace, PlacementPolicy, Reason, TriedSet};
use super::ring::NodeIndex;
use super::slots::Slots;
use super::view::{Member, View};

/// Chooses a node for one call.
pub trait Policy {
    /// Chooses. Allocates nothing.
    ///
    /// # Errors
    /// No node may be tried, none has room, or none is large enough.
    fn choose(&self, view: &View, ask: &Ask<'_>) -> Result<Decision, NoPlace>;
}

/// The policies by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PolicyName {
    /// Along the function's walk, with bounded loads, the warmest node; waits at the balancer if there is none.
    #[default]
    WarmCh,
    /// Consistent hashing with bounded loads alone.
    ChBl,
    /// The node with the fewest calls for its weight.
    LeastLoaded,
    /// The better of two nodes drawn by weight.
    P2c,
    /// A node drawn by weight.
    Random,
}

impl PolicyName {
    /// Every policy.
    pub const ALL: [Self; 5] = [Self::WarmCh, Self::ChBl, Self::LeastLoaded, Self::P2c, Self::Random];

    /// The name that options use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WarmCh => "warm-ch",
            Self::ChBl => "ch-bl",
            Self::LeastLoaded => "least-loaded",
            Self::P2c => "p2c",
            Self::Random => "random",
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A name of no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no such placement; use warm-ch, ch-bl, least-loaded, p2c or random")]
pub struct UnknownPolicy;

impl FromStr for PolicyName {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        Self::ALL.into_iter().find(|name| name.as_str() == text).ok_or(UnknownPolicy)
    }
}

/// True if a call may go there at all.
pub(crate) fn is_eligible(node: &Node, demand: &Demand, tried: &TriedSet) -> bool {
    node.takes_calls() && !tried.contains(node.serial()) && node.could_ever_fit(demand)
}

/// True if the node has more calls than the bound on loads lets it have.
pub(crate) fn is_above_bound(view: &View, member: &Member, policy: &PlacementPolicy, now: Instant) -> bool {
    let (load, floor, share) = (member.node.load(), member.node.calls_floor(), member.node.share(now));
    let floor = if share < 1.0 { (f64::from(floor) * share) as u32 } else { floor };
    load >= floor.max(1) && load >= bound(view, member, policy, now)
}

/// Calls that the bound on loads lets a node have.
pub(crate) fn bound(view: &View, member: &Member, policy: &PlacementPolicy, now: Instant) -> u32 {
    let fair = view.mean_load(now) * f64::from(member.weight.points()) * member.node.share(now);
    (policy.load_factor * fair).ceil() as u32
}

/// What a node offers a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Offer {
    /// An idle slot.
    Warm,
    /// A container that is being started, for which no call waits.
    Soon,
    /// Room for a container.
    Room,
    /// A place behind other calls.
    Queue,
}

impl Offer {
    pub(crate) fn reason(self, is_home: bool) -> Reason {
        match (self, is_home) {
            (Self::Warm, true) => Reason::WarmHome,
            (Self::Warm, false) => Reason::WarmSpill,
            (Self::Soon, true) => Reason::SoonHome,
            (Self::Soon, false) => Reason::SoonSpill,
            (Self::Room, true) => Reason::RoomHome,
            (Self::Room, false) => Reason::RoomSpill,
            (Self::Queue, true) => Reason::QueueHome,
            (Self::Queue, false) => Reason::QueueSpill,
        }
    }
}

/// What one node offers a call that has waited: the bound on loads does not keep it waiting longer.
pub(crate) fn offer_of(
    view: &View,
    node: NodeIndex,
    demand: &Demand,
    policy: &PlacementPolicy,
    now: Instant,
) -> Option<Offer> {
    let member = view.member(node);
    if !is_eligible(member.node(), demand, &TriedSet::new()) {
        return None;
    }
    let slots = view.slots(node, demand);
    let is = |test: fn(&Slots) -> bool| slots.is_some_and(|slots| test(slots));
    if is(|slots| slots.idle() > 0) {
        Some(Offer::Warm)
    } else if is(|slots| slots.soon_idle() > 0) {
        Some(Offer::Soon)
    } else if member.node().is_busy(now) {
        None
    } else if has_room(member.node(), demand) {
        Some(Offer::Room)
    } else {
        slots.is_some_and(|slots| has_short_queue(slots, policy)).then_some(Offer::Queue)
    }
}

/// True if few calls wait for a node's containers of a function.
pub(crate) fn has_short_queue(slots: &Slots, policy: &PlacementPolicy) -> bool {
    let lookahead = (f64::from(slots.ready()) * policy.lookahead_share) as u32;
    slots.ready() + slots.starting() > 0 && slots.queued() < lookahead.max(policy.lookahead_calls_min)
}

/// True if a container could be started there now, as far as is known.
pub(crate) fn has_room(node: &Node, demand: &Demand) -> bool {
    node.has_room(demand) && !node.starts_enough()
}

/// What a node offers where its own queue is there for whatever it cannot run at once.
fn offer_with_queue(node: &Node, slots: Option<&Slots>, ask: &Ask<'_>) -> Offer {
    if slots.is_some_and(|slots| slots.idle() > 0) {
        Offer::Warm
    } else if slots.is_some_and(|slots| slots.soon_idle() > 0) {
        Offer::Soon
    } else if !node.is_busy(ask.now) && node.has_room(ask.demand) {
        Offer::Room
    } else {
        Offer::Queue
    }
}

/// A decision for a node whose own queue takes what it cannot run at once.
fn decide_with_queue(view: &View, node: NodeIndex, ask: &Ask<'_>, asked: u32) -> Decision {
    let slots = view.slots(node, ask.demand).map(|slots| &**slots);
    let offer = offer_with_queue(view.member(node).node(), slots, ask);
    let is_home = view.ring().home(ask.demand.key) == Some(node);
    Decision { node, reason: offer.reason(is_home), asked, is_above_bound: false }
}

/// Why there is none, if nobody who may be asked was found.
fn no_node(view: &View, demand: &Demand) -> NoPlace {
    let members = view.members();
    let fits_somewhere = members.iter().any(|member| member.node().could_ever_fit(demand));
    if members.is_empty() || fits_somewhere { NoPlace::NoNode } else { NoPlace::TooLarge }
}

#[cfg(test)]
mod tests;
