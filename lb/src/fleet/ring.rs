//! The consistent-hash ring: for every function an order of the nodes, the same on every balancer.
//!
//! Owns where a key's walk begins and how it goes on. Knows nothing of load, state or slots, and never changes
//! once built: another set of nodes is another ring. Invariant: the ring depends only on the ids and weights
//! of its nodes, and the points of one node depend on nothing but its own id and weight.

use std::collections::BTreeMap;

use kiln_shared::ids::{FunctionId, NodeId};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Seed of the points' hashes; node id and number of the point follow from it. Fixed, or balancers would disagree.
const POINT_SEED: u64 = 0x6b69_6c6e_2d72_696e;
/// Nodes that a walk takes from the ring itself before it goes on in index order.
const RING_NODES_MAX: usize = 16;
/// Points that a walk looks at for them, however unequal the weights are.
const RING_POINTS_MAX: u32 = 96;

/// A node's share of the keys: its number of points on the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(u32);

impl Weight {
    /// The weight of a node that nothing is known of. Shares of equal nodes differ by about 1/sqrt(128), 9 %.
    pub const STANDARD: Self = Self(128);
    /// The smallest weight.
    pub const MIN: Self = Self(8);
    /// The largest weight.
    pub const MAX: Self = Self(4096);

    /// A weight of `points`, held between [`Weight::MIN`] and [`Weight::MAX`].
    pub fn new(points: u32) -> Self {
        Self(points.clamp(Self::MIN.0, Self::MAX.0))
    }

    /// The weight of a node by the memory that its containers may commit: 8 GiB are [`Weight::STANDARD`].
    pub fn of_memory_mib(memory_mib: u64) -> Self {
        Self::new(u32::try_from(memory_mib / 64).unwrap_or(u32::MAX))
    }

    /// Points on the ring.
    pub fn points(self) -> u32 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self::STANDARD
    }
}

/// Position of a node in the order of the ids from which a ring was built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeIndex(u32);

impl NodeIndex {
    pub(crate) fn new(position: usize) -> Self {
        Self(u32::try_from(position).expect("a fleet has fewer than 2^32 nodes"))
    }

    /// The position as an index of a slice.
    pub fn get(self) -> usize {
        self.0 as usize
    }
}

/// Where on the ring a function's walk begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingKey(u64);

impl RingKey {
    /// The key of a function. O(1), about 2 ns.
    pub fn of(function: &FunctionId) -> Self {
        Self(xxh3_64(function.as_bytes()))
    }

    /// The key of a function's calls that show one `affinity`.
    pub fn with_affinity(function: &FunctionId, affinity: &[u8]) -> Self {
        Self(xxh3_64_with_seed(affinity, xxh3_64(function.as_bytes())))
    }

    /// A place on the ring that no function chose.
    pub(crate) fn drawn(draw: u64) -> Self {
        Self(draw)
    }

    /// One of `count` positions, the same for one key every time; 0 if there are none.
    pub(crate) fn spread(self, count: usize) -> usize {
        ((u64::from(self.0 as u32) * count as u64) >> 32) as usize
    }

    fn position(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    position: u32,
    node: u32,
}

/// The ring. Memory: 8 bytes per point and 4 to 8 bytes of index; 12 to 16 per point in all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ring {
    /// Ascending; points at one position are in the order of their nodes' ids.
    points: Box<[Point]>,
    /// By a position's top bits: the first point that is not before them.
    starts: Box<[u32]>,
    /// Bits of a position that `starts` leaves out.
    shift: u32,
    nodes: u32,
}

impl Ring {
    /// Builds the ring of `weights`; a node's [`NodeIndex`] is its place in the map.
    /// O(points x log points): microseconds for a few nodes, about 30 ms for 4096 of standard weight.
    pub fn new(weights: &BTreeMap<NodeId, Weight>) -> Self {
        let mut points = Vec::with_capacity(weights.values().map(|weight| weight.0 as usize).sum());
        for (node, (id, weight)) in (0..).zip(weights) {
            let seed = xxh3_64_with_seed(id.as_str().as_bytes(), POINT_SEED);
            points.extend((0..weight.0).map(|number| {
                let hash = xxh3_64_with_seed(&number.to_le_bytes(), seed);
                Point { position: (hash >> 32) as u32, node }
            }));
        }
        points.sort_unstable();
        let bits = points.len().next_power_of_two().trailing_zeros().max(1);
        let shift = u32::BITS - bits;
        let mut starts = Vec::with_capacity(1 << bits);
        let mut first = 0;
        for top in 0..1_u32 << bits {
            while points.get(first).is_some_and(|point: &Point| point.position >> shift < top) {
                first += 1;
            }
            starts.push(u32::try_from(first).expect("a ring has fewer than 2^32 points"));
        }
        let nodes = u32::try_from(weights.len()).expect("a fleet has fewer than 2^32 nodes");
        Self { points: points.into(), starts: starts.into(), shift, nodes }
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.nodes as usize
    }

    /// True if there is no node.
    pub fn is_empty(&self) -> bool {
        self.nodes == 0
    }

    /// The first node of a key's walk. O(1): one look into the index and on average less than one step.
    pub fn home(&self, key: RingKey) -> Option<NodeIndex> {
        self.points.get(self.first_point(key)).map(|point| NodeIndex(point.node))
    }

    /// Every node once, home first. Allocates nothing.
    ///
    /// The first nodes (16, or fewer where weights are very unequal) come in the order of the ring, so that
    /// neighbours of a lost home share its keys; the others follow in the order of their index from a place
    /// that the key decides. A whole walk is O(nodes); a step along the ring is about 10 ns.
    pub fn walk(&self, key: RingKey) -> Walk<'_> {
        Walk {
            ring: self,
            point: self.first_point(key),
            points_left: RING_POINTS_MAX.min(self.points.len() as u32),
            seen: [0; RING_NODES_MAX],
            seen_count: 0,
            next_rest: ((u64::from(key.0 as u32) * u64::from(self.nodes)) >> 32) as u32,
            rest_left: self.nodes,
        }
    }

    /// The first point at or after the key's position, going round at the end.
    fn first_point(&self, key: RingKey) -> usize {
        let position = key.position();
        let mut first = self.starts[(position >> self.shift) as usize] as usize;
        while self.points.get(first).is_some_and(|point| point.position < position) {
            first += 1;
        }
        if first == self.points.len() { 0 } else { first }
    }
}

/// One key's order of the nodes; see [`Ring::walk`].
#[derive(Debug, Clone)]
pub struct Walk<'a> {
    ring: &'a Ring,
    point: usize,
    points_left: u32,
    seen: [u32; RING_NODES_MAX],
    seen_count: usize,
    next_rest: u32,
    rest_left: u32,
}

impl Walk<'_> {
    fn has_seen(&self, node: u32) -> bool {
        self.seen[..self.seen_count].contains(&node)
    }

    fn next_on_ring(&mut self) -> Option<u32> {
        let nodes_max = RING_NODES_MAX.min(self.ring.len());
        while self.points_left > 0 && self.seen_count < nodes_max {
            let node = self.ring.points[self.point].node;
            self.points_left -= 1;
            self.point = if self.point + 1 == self.ring.points.len() { 0 } else { self.point + 1 };
            if !self.has_seen(node) {
                self.seen[self.seen_count] = node;
                self.seen_count += 1;
                return Some(node);
            }
        }
        None
    }

    fn next_in_rest(&mut self) -> Option<u32> {
        while self.rest_left > 0 {
            let node = self.next_rest;
            self.rest_left -= 1;
            self.next_rest = if node + 1 == self.ring.nodes { 0 } else { node + 1 };
            if !self.has_seen(node) {
                return Some(node);
            }
        }
        None
    }
}

impl Iterator for Walk<'_> {
    type Item = NodeIndex;

    fn next(&mut self) -> Option<NodeIndex> {
        self.next_on_ring().or_else(|| self.next_in_rest()).map(NodeIndex)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use proptest::prelude::*;

    use super::*;

    fn key(number: u64) -> RingKey {
        RingKey(xxh3_64(&number.to_le_bytes()))
    }

    fn fleet(points: &[u32]) -> BTreeMap<NodeId, Weight> {
        points.iter().enumerate().map(|(i, &p)| (NodeId::new(format!("node-{i}")), Weight::new(p))).collect()
    }

    fn id_at(weights: &BTreeMap<NodeId, Weight>, node: NodeIndex) -> &NodeId {
        weights.keys().nth(node.get()).unwrap()
    }

    fn homes(weights: &BTreeMap<NodeId, Weight>, keys: u64) -> Vec<NodeId> {
        let ring = Ring::new(weights);
        let ids: Vec<&NodeId> = weights.keys().collect();
        (0..keys).map(|n| ids[ring.home(key(n)).unwrap().get()].clone()).collect()
    }

    fn counts(homes: &[NodeId]) -> HashMap<&NodeId, u32> {
        homes.iter().fold(HashMap::new(), |mut counts, id| {
            *counts.entry(id).or_default() += 1;
            counts
        })
    }

    #[test]
    fn an_empty_ring_has_no_home_and_an_empty_walk() {
        let ring = Ring::new(&BTreeMap::new());
        assert!(ring.is_empty());
        assert_eq!(ring.home(key(1)), None);
        assert_eq!(ring.walk(key(1)).next(), None);
    }

    #[test]
    fn equal_nodes_get_equal_shares_within_a_third() {
        let weights = fleet(&[128; 32]);
        let homes = homes(&weights, 64_000);
        let counts = counts(&homes);
        for id in weights.keys() {
            let share = f64::from(counts[id]) / 2000.0;
            assert!((0.67..1.33).contains(&share), "{id} has {share:.2} of its share");
        }
    }

    #[test]
    fn a_node_of_twice_the_weight_gets_twice_the_keys() {
        let weights = fleet(&[256, 512, 256, 512, 256, 512]);
        let homes = homes(&weights, 100_000);
        let counts = counts(&homes);
        let of = |weight: u32| -> u32 {
            weights.iter().filter(|(_, w)| w.points() == weight).map(|(id, _)| counts[id]).sum()
        };
        let ratio = f64::from(of(512)) / f64::from(of(256));
        assert!((1.7..2.3).contains(&ratio), "ratio {ratio:.2}");
    }

    #[test]
    fn the_index_finds_what_a_plain_search_finds() {
        let ring = Ring::new(&fleet(&[8, 4096, 100, 1000]));
        for number in 0..100_000 {
            let key = key(number);
            let plain = ring.points.partition_point(|point| point.position < key.position());
            assert_eq!(ring.first_point(key), plain % ring.points.len());
        }
    }

    /// Balancers of different versions must agree, so the hash is part of the protocol between them.
    #[test]
    fn the_order_of_a_known_function_never_changes() {
        let weights = fleet(&[128; 5]);
        let ring = Ring::new(&weights);
        let function: FunctionId = "01CQ4S2K8JNG8G00GZJ0000001".parse().unwrap();
        let order: Vec<usize> = ring.walk(RingKey::of(&function)).map(NodeIndex::get).collect();
        assert_eq!(order, GOLDEN_ORDER);
    }

    const GOLDEN_ORDER: [usize; 5] = [3, 1, 4, 0, 2];

    proptest! {
        #[test]
        fn a_walk_visits_every_node_once_home_first(points in prop::collection::vec(8_u32..600, 1..80), n: u64) {
            let ring = Ring::new(&fleet(&points));
            let walk: Vec<NodeIndex> = ring.walk(key(n)).collect();
            prop_assert_eq!(walk.len(), points.len());
            prop_assert_eq!(walk.iter().collect::<BTreeSet<_>>().len(), points.len());
            prop_assert_eq!(Some(walk[0]), ring.home(key(n)));
        }

        #[test]
        fn removing_a_node_moves_only_its_own_keys(points in prop::collection::vec(8_u32..300, 2..24), gone: prop::sample::Index) {
            let before = fleet(&points);
            let gone = before.keys().nth(gone.index(before.len())).unwrap().clone();
            let mut after = before.clone();
            after.remove(&gone);
            for (old, new) in homes(&before, 2000).into_iter().zip(homes(&after, 2000)) {
                prop_assert!(old == gone || old == new);
            }
        }

        /// From 32 equal nodes on. Fewer have larger shares with larger spread, 9 % of a share: of four nodes one
        /// may have 27 % of the keys (docs/adr/0005-ring.md).
        #[test]
        fn losing_a_node_moves_no_more_than_its_share_and_a_hundredth(nodes in 32_usize..120, gone: prop::sample::Index) {
            const KEYS: u64 = 20_000;
            let before = fleet(&vec![Weight::STANDARD.points(); nodes]);
            let gone = before.keys().nth(gone.index(nodes)).unwrap().clone();
            let mut after = before.clone();
            after.remove(&gone);
            let moved = homes(&before, KEYS).into_iter().zip(homes(&after, KEYS)).filter(|(old, new)| old != new);
            prop_assert!(moved.count() as f64 / KEYS as f64 <= 1.0 / nodes as f64 + 0.01);
        }

        #[test]
        fn a_lost_home_is_followed_by_the_first_spill(points in prop::collection::vec(64_u32..300, 2..16), n: u64) {
            let before = fleet(&points);
            let mut walk = Ring::new(&before).walk(key(n)).map(|node| id_at(&before, node).clone()).collect::<Vec<_>>().into_iter();
            let mut after = before.clone();
            after.remove(&walk.next().unwrap());
            let home = Ring::new(&after).home(key(n)).unwrap();
            prop_assert_eq!(id_at(&after, home), &walk.next().unwrap());
        }

        #[test]
        fn the_order_in_which_nodes_joined_does_not_matter(points in prop::collection::vec(8_u32..300, 1..40), seed: u64, n: u64) {
            let sorted = fleet(&points);
            let mut joined: Vec<_> = sorted.clone().into_iter().collect();
            joined.sort_by_key(|(id, _)| xxh3_64_with_seed(id.as_str().as_bytes(), seed));
            let ring = Ring::new(&joined.into_iter().collect());
            prop_assert_eq!(&ring, &Ring::new(&sorted));
            prop_assert!(ring.walk(key(n)).eq(Ring::new(&sorted).walk(key(n))));
        }
    }
}
