//! Policies to compare the default with. None waits at the balancer: the node that is chosen queues the call.

use super::super::placement::{Ask, Decision, NoPlace, PlacementPolicy};
use super::super::ring::{NodeIndex, RingKey};
use super::super::view::{Member, View};
use super::{Policy, decide_with_queue, is_above_bound, is_eligible, no_node};

/// Consistent hashing with bounded loads (Mirrokni et al., arXiv 1608.01350) and nothing else: the first node of the
/// walk below the bound, and if there is none the least loaded.
#[derive(Debug, Clone, Copy)]
pub struct ChBl<'a>(pub &'a PlacementPolicy);

impl Policy for ChBl<'_> {
    fn choose(&self, view: &View, ask: &Ask<'_>) -> Result<Decision, NoPlace> {
        let mut least = Least::default();
        let mut asked = 0;
        for node in view.ring().walk(ask.demand.key) {
            let member = view.member(node);
            asked += 1;
            if !is_eligible(member.node(), ask.demand, ask.tried) {
                continue;
            }
            if !is_above_bound(view, member, self.0, ask.now) {
                return Ok(decide_with_queue(view, node, ask, asked));
            }
            least.compare(node, member);
        }
        least.decide(view, ask, asked)
    }
}

/// The node with the fewest calls for its weight. O(nodes).
#[derive(Debug, Clone, Copy)]
pub struct LeastLoaded;

impl Policy for LeastLoaded {
    fn choose(&self, view: &View, ask: &Ask<'_>) -> Result<Decision, NoPlace> {
        let mut least = Least::default();
        for (at, member) in view.members().iter().enumerate() {
            if is_eligible(member.node(), ask.demand, ask.tried) {
                least.compare(NodeIndex::new(at), member);
            }
        }
        least.decide(view, ask, view.members().len() as u32)
    }
}

/// The less loaded for its weight of two nodes drawn by weight (Mitzenmacher, IEEE TPDS 2001).
#[derive(Debug, Clone, Copy)]
pub struct P2c;

impl Policy for P2c {
    fn choose(&self, view: &View, ask: &Ask<'_>) -> Result<Decision, NoPlace> {
        let mut least = Least::default();
        let mut asked = 0;
        for draw in [ask.draw, ask.draw.rotate_left(32) ^ 0x9e37_79b9_7f4a_7c15] {
            if let Some((node, steps)) = draw_node(view, ask, draw) {
                least.compare(node, view.member(node));
                asked += steps;
            }
        }
        least.decide(view, ask, asked)
    }
}

/// A node drawn by weight.
#[derive(Debug, Clone, Copy)]
pub struct Random;

impl Policy for Random {
    fn choose(&self, view: &View, ask: &Ask<'_>) -> Result<Decision, NoPlace> {
        match draw_node(view, ask, ask.draw) {
            Some((node, asked)) => Ok(decide_with_queue(view, node, ask, asked)),
            None => Err(no_node(view, ask.demand)),
        }
    }
}

/// The first node that may be asked, from a place on the ring that is drawn, and the nodes looked at.
fn draw_node(view: &View, ask: &Ask<'_>, draw: u64) -> Option<(NodeIndex, u32)> {
    let walk = view.ring().walk(RingKey::drawn(draw));
    let mut asked = 0;
    walk.inspect(|_| asked += 1)
        .find(|&node| is_eligible(view.member(node).node(), ask.demand, ask.tried))
        .map(|node| (node, asked))
}

/// The least loaded for its weight of some nodes, the first of equals.
#[derive(Clone, Copy, Default)]
struct Least {
    node: Option<(NodeIndex, f64)>,
}

impl Least {
    fn compare(&mut self, node: NodeIndex, member: &Member) {
        let load = f64::from(member.node().load()) / f64::from(member.weight().points());
        if self.node.is_none_or(|(_, least)| load < least) {
            self.node = Some((node, load));
        }
    }

    fn decide(self, view: &View, ask: &Ask<'_>, asked: u32) -> Result<Decision, NoPlace> {
        match self.node {
            Some((node, _load)) => Ok(decide_with_queue(view, node, ask, asked)),
            None => Err(no_node(view, ask.demand)),
        }
    }
}
