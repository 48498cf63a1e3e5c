//! The consistent-hash ring: for every function an order of the nodes, the same on every balancer.
//!
//! Owns where a key's walk begins and how it goes on. Knows nothing of load, state or slots. The ring is cut into
//! sectors, and each has an order of its own by weighted rendezvous (`rendezvous.rs`), worked out when it is first asked
//! for. Invariant: the order depends only on the ids and weights of the nodes, and of two nodes it puts the same one
//! first whatever others there are.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use kiln_shared::ids::{FunctionId, NodeId};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::rendezvous::{Contender, FIRST_MAX, first_nodes};

/// Sectors of the ring as a power of two. A share of p has a spread of sqrt(p (1 - p) / sectors) whatever the number
/// of nodes: 0.2 % of all keys at most, where a hundredth is allowed. Fixed, or balancers would disagree.
const SECTOR_BITS: u32 = 16;
/// Seed of the sectors' hashes. Fixed, or balancers would disagree.
const SECTOR_SEED: u64 = 0x6b69_6c6e_2d73_6563;
/// Bits of a node in a sector's order.
const NODE_BITS: usize = 16;
/// Nodes in one word of a sector's order.
const WORD_NODES: usize = u64::BITS as usize / NODE_BITS;
/// Words of a sector's order.
const WORDS: usize = FIRST_MAX / WORD_NODES;

/// A node's share of the keys: it has as many as its weight is of the sum of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(u32);

impl Weight {
    /// The weight of a node that nothing is known of.
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

    /// The weight as a number.
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

    fn sector(self) -> usize {
        (self.0 >> (u64::BITS - SECTOR_BITS)) as usize
    }
}

/// The first nodes of a sector's walk, four to a word, each as its index and one; 0 is none. A word that is 0 where
/// there should be nodes is not known yet. Whoever works it out writes the same, so no order of the writes is needed.
type Sector = [AtomicU64; WORDS];

/// The ring. Memory: 16 bytes a sector, 1 MiB in all, and 24 bytes a node; next to nothing for a single node.
#[derive(Debug)]
pub struct Ring {
    /// None if the only order is that of the index: there is one node, or none.
    sectors: Box<[Sector]>,
    contenders: Box<[Contender]>,
}

impl Ring {
    /// The ring of `weights`; a node's [`NodeIndex`] is its place in the map. O(nodes), 15 us for 1000 nodes.
    ///
    /// Nodes from the 65,536th on are nobody's first choice.
    pub fn new(weights: &BTreeMap<NodeId, Weight>) -> Self {
        let contender = |(id, weight): (&NodeId, &Weight)| Contender::new(id.as_str(), weight.0);
        let contenders: Box<[_]> = weights.iter().map(contender).collect();
        let sectors = if contenders.len() < 2 { 0 } else { 1_usize << SECTOR_BITS };
        Self { sectors: (0..sectors).map(|_| Sector::default()).collect(), contenders }
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.contenders.len()
    }

    /// True if there is no node.
    pub fn is_empty(&self) -> bool {
        self.contenders.is_empty()
    }

    /// The first node of a key's walk. O(1), but see [`Self::walk`].
    pub fn home(&self, key: RingKey) -> Option<NodeIndex> {
        self.walk(key).next()
    }

    /// Every node once, home first. Allocates nothing.
    ///
    /// The first eight nodes come in the order of the sector, so that neighbours of a lost home share its keys; the
    /// others follow in the order of their index from a place that the key decides. Finding the order is one wait for
    /// memory, but O(nodes) for the first who asks for one of the sector's keys: some 5 us with 1000 nodes.
    pub fn walk(&self, key: RingKey) -> Walk<'_> {
        let nodes = self.len() as u64;
        Walk {
            ring: self,
            first: self.first(key),
            taken: 0,
            next_rest: ((u64::from(key.0 as u32) * nodes) >> 32) as u32,
            rest_left: nodes as u32,
        }
    }

    fn first(&self, key: RingKey) -> [u64; WORDS] {
        let at = key.sector();
        let Some(sector) = self.sectors.get(at) else { return [0; WORDS] };
        let words = sector.each_ref().map(|word| word.load(Relaxed));
        let words_used = self.len().div_ceil(WORD_NODES).min(WORDS);
        if words[..words_used].contains(&0) { self.find(at, sector) } else { words }
    }

    #[cold]
    fn find(&self, at: usize, sector: &Sector) -> [u64; WORDS] {
        let key = xxh3_64_with_seed(&(at as u64).to_le_bytes(), SECTOR_SEED);
        let nodes = first_nodes(key, &self.contenders);
        let mut words = [0; WORDS];
        for (place, node) in nodes.iter().enumerate().take(self.len()) {
            words[place / WORD_NODES] |= (u64::from(*node) + 1) << (place % WORD_NODES * NODE_BITS);
        }
        sector.iter().zip(words).for_each(|(known, word)| known.store(word, Relaxed));
        words
    }
}

/// One key's order of the nodes; see [`Ring::walk`].
#[derive(Debug, Clone)]
pub struct Walk<'a> {
    ring: &'a Ring,
    first: [u64; WORDS],
    taken: usize,
    next_rest: u32,
    rest_left: u32,
}

impl Walk<'_> {
    /// The node at a place of the sector's order.
    fn first_at(&self, place: usize) -> Option<u32> {
        let word = self.first.get(place / WORD_NODES)?;
        u32::from((word >> (place % WORD_NODES * NODE_BITS)) as u16).checked_sub(1)
    }

    fn next_in_rest(&mut self) -> Option<u32> {
        while self.rest_left > 0 {
            let node = self.next_rest;
            self.rest_left -= 1;
            self.next_rest = if node as usize + 1 == self.ring.len() { 0 } else { node + 1 };
            if !(0..self.taken).any(|place| self.first_at(place) == Some(node)) {
                return Some(node);
            }
        }
        None
    }
}

impl Iterator for Walk<'_> {
    type Item = NodeIndex;

    #[inline]
    fn next(&mut self) -> Option<NodeIndex> {
        if let Some(node) = self.first_at(self.taken) {
            self.taken += 1;
            return Some(NodeIndex(node));
        }
        self.next_in_rest().map(NodeIndex)
    }
}

#[cfg(test)]
mod tests;
