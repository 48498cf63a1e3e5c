//! The default policy: warm first, along a ring with bounded loads.
//!
//! Along the function's walk, nodes above the bounded load passed over, it takes the first of
//!
//! 1. a node with an idle warm slot of the revision,
//! 2. a node that is starting a container of it for which no call waits,
//! 3. a node with room for another container and the image present, idle containers of others counted as room,
//! 4. a node with room for another container,
//! 5. a node whose containers of it have fewer calls waiting than the lookahead;
//!
//! among equals one in the balancer's own zone. If only nodes above the bound offer any of it, the least loaded of
//! these. Otherwise the call waits at the balancer. A fleet of one node has nothing to choose: its queue takes the call.
//! Bounded loads: Mirrokni et al., arXiv 1608.01350.

use super::super::index::{SlotPlace, on};
use super::super::placement::{Ask, Decision, NoPlace, PlacementPolicy};
use super::super::ring::NodeIndex;
use super::super::slots::Slots;
use super::super::view::{Member, View};
use super::{
    Offer, Policy, decide_with_queue, has_room, has_short_queue, is_above_bound, is_eligible, no_node,
};

/// Warm first, along a ring with bounded loads.
#[derive(Debug, Clone, Copy)]
pub struct WarmCh<'a>(pub &'a PlacementPolicy);

impl Policy for WarmCh<'_> {
    fn choose(&self, view: &View, ask: &Ask<'_>) -> Result<Decision, NoPlace> {
        if let [member] = view.members() {
            return on_only_node(view, member, ask);
        }
        let places = view.places(ask.demand);
        let mut search =
            Search { view, ask, policy: self.0, places, asked: 0, overflow: Overflow::default() };
        if !places.is_empty()
            && let Some(decision) = search.warm()
        {
            return Ok(decision);
        }
        search.room()
    }
}

/// With one node there is nothing to compare: no ring, no bound, no waiting here.
fn on_only_node(view: &View, member: &Member, ask: &Ask<'_>) -> Result<Decision, NoPlace> {
    if !is_eligible(member.node(), ask.demand, ask.tried) {
        let fits = member.node().could_ever_fit(ask.demand);
        return Err(if fits { NoPlace::NoNode } else { NoPlace::TooLarge });
    }
    Ok(decide_with_queue(view, NodeIndex::new(0), ask, 1))
}

#[derive(Debug, Clone, Copy)]
struct Found {
    node: NodeIndex,
    is_home: bool,
}

/// The first of equals, and the first of them that is near.
#[derive(Debug, Clone, Copy, Default)]
struct Pick {
    first: Option<Found>,
    near: Option<Found>,
}

impl Pick {
    fn add(&mut self, found: Found, member: &Member) {
        self.first.get_or_insert(found);
        if member.is_near() {
            self.near.get_or_insert(found);
        }
    }

    fn best(self) -> Option<Found> {
        self.near.or(self.first)
    }
}

/// The least loaded for its weight of the nodes above the bound that could take the call.
#[derive(Debug, Clone, Copy, Default)]
struct Overflow {
    least: Option<(Found, Offer, f64)>,
}

impl Overflow {
    fn compare(&mut self, found: Found, offer: Offer, member: &Member) {
        let load = f64::from(member.node().load()) / f64::from(member.weight().points());
        if self.least.is_none_or(|(_, _, least)| load < least) {
            self.least = Some((found, offer, load));
        }
    }
}

struct Search<'a> {
    view: &'a View,
    ask: &'a Ask<'a>,
    policy: &'a PlacementPolicy,
    places: &'a [SlotPlace],
    asked: u32,
    overflow: Overflow,
}

impl Search<'_> {
    fn decide(&self, found: Found, offer: Offer) -> Decision {
        let reason = offer.reason(found.is_home);
        Decision { node: found.node, reason, asked: self.asked, is_above_bound: false }
    }

    /// Looks for a slot that is free or soon will be: along the walk, then among the other nodes that have the function.
    fn warm(&mut self) -> Option<Decision> {
        let (mut warm, mut soon) = (Pick::default(), Pick::default());
        let mut left = self.places.len();
        let walk =
            self.view.ring().walk(self.ask.demand.key).take(self.policy.warm_search_nodes_max as usize);
        for (rank, node) in walk.enumerate() {
            let Some(slots) = on(self.places, self.view.serial(node)) else { continue };
            left -= 1;
            self.look(Found { node, is_home: rank == 0 }, slots, &mut warm, &mut soon);
            if warm.near.is_some() || left == 0 {
                break;
            }
        }
        if warm.first.is_none() && left > 0 {
            // Beyond the walk, from a place that the key decides, so that functions do not all meet at the same nodes.
            let start = self.ask.demand.key.spread(self.places.len());
            let others = self.places[start..].iter().chain(&self.places[..start]);
            for place in others.take(self.policy.warm_search_nodes_max as usize) {
                let Some(node) = self.view.index_of(place.node) else { continue };
                self.look(Found { node, is_home: false }, &place.value, &mut warm, &mut soon);
                if warm.near.is_some() {
                    break;
                }
            }
        }
        let warm = warm.best().map(|found| self.decide(found, Offer::Warm));
        warm.or_else(|| soon.best().map(|found| self.decide(found, Offer::Soon)))
    }

    fn look(&mut self, found: Found, slots: &Slots, warm: &mut Pick, soon: &mut Pick) {
        let (is_warm, is_soon) = (slots.idle() > 0, slots.soon_idle() > 0);
        if !is_warm && !is_soon {
            return;
        }
        self.asked += 1;
        let member = self.view.member(found.node);
        if !is_eligible(member.node(), self.ask.demand, self.ask.tried) {
            return;
        }
        if is_above_bound(self.view, member, self.policy, self.ask.now) {
            let offer = if is_warm { Offer::Warm } else { Offer::Soon };
            self.overflow.compare(found, offer, member);
        } else if is_warm {
            warm.add(found, member);
        } else {
            soon.add(found, member);
        }
    }

    /// Looks along the walk for room, or for a short queue.
    fn room(mut self) -> Result<Decision, NoPlace> {
        let (view, ask) = (self.view, self.ask);
        let with_image = view.images(ask.demand.image);
        let (mut ready, mut room, mut queue) = (Pick::default(), Pick::default(), Pick::default());
        let (mut is_any_up, mut within_bound) = (false, 0);
        for (rank, node) in view.ring().walk(ask.demand.key).enumerate() {
            let member = view.member(node);
            if !is_eligible(member.node(), ask.demand, ask.tried) {
                continue;
            }
            is_any_up = true;
            self.asked += 1;
            let found = Found { node, is_home: rank == 0 };
            let is_busy = member.node().is_busy(ask.now);
            let has_room = !is_busy && has_room(member.node(), ask.demand);
            let may_queue = !has_room && !is_busy && self.has_short_queue(node);
            if is_above_bound(view, member, self.policy, ask.now) {
                if has_room || may_queue {
                    self.overflow.compare(found, if has_room { Offer::Room } else { Offer::Queue }, member);
                }
                continue;
            }
            within_bound += 1;
            if has_room {
                let has_image = with_image.is_empty() || on(with_image, member.node().serial()).is_some();
                if has_image { &mut ready } else { &mut room }.add(found, member);
            } else if may_queue {
                queue.add(found, member);
            }
            let enough_for_image =
                room.first.or(ready.first).is_some() && within_bound >= self.policy.image_search_nodes_max;
            if ready.near.is_some() || enough_for_image || within_bound >= self.policy.room_search_nodes_max {
                break;
            }
        }
        if let Some(found) = ready.best().or_else(|| room.best()) {
            return Ok(self.decide(found, Offer::Room));
        }
        if let Some(found) = queue.best() {
            return Ok(self.decide(found, Offer::Queue));
        }
        match self.overflow.least {
            Some((found, offer, _load)) => Ok(Decision { is_above_bound: true, ..self.decide(found, offer) }),
            None if is_any_up => Err(NoPlace::Full),
            None => Err(no_node(view, ask.demand)),
        }
    }

    /// True if few calls wait for the node's containers of the function.
    fn has_short_queue(&self, node: NodeIndex) -> bool {
        on(self.places, self.view.serial(node)).is_some_and(|slots| has_short_queue(slots, self.policy))
    }
}
