//! Ways to find a key's node that were weighed against the ring: points, Maglev, and rendezvous for every key.
//!
//! As small as a fair measurement allows; none is used by Kiln.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// What the candidates know of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Hash of its id.
    pub seed: u64,
    /// Its weight.
    pub weight: u32,
}

/// Nodes by their ids and weights.
pub fn targets<'a>(nodes: impl IntoIterator<Item = (&'a str, u32)>) -> Vec<Target> {
    let target = |(id, weight): (&str, u32)| Target { seed: xxh3_64_with_seed(id.as_bytes(), 1), weight };
    nodes.into_iter().map(target).collect()
}

/// The cheapest mix that spreads well.
fn mix(key: u64, seed: u64) -> u64 {
    let product = u128::from(key ^ seed) * 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
    (product >> 64) as u64 ^ product as u64
}

/// The smaller, the better: -ln(u) / weight, so that shares follow weights (Schindelhauer and Schomaker, SPAA 2005).
fn cost(key: u64, target: &Target) -> f64 {
    let uniform = ((mix(key, target.seed) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -uniform.ln() / f64::from(target.weight)
}

/// Weighted rendezvous hashing: every node is asked for every key.
#[derive(Debug)]
pub struct Rendezvous(pub Vec<Target>);

impl Rendezvous {
    /// The node of a key.
    pub fn home(&self, key: u64) -> usize {
        let costs = self.0.iter().map(|target| cost(key, target)).enumerate();
        costs.min_by(|one, other| one.1.total_cmp(&other.1)).map_or(0, |(node, _)| node)
    }

    /// The first `count` nodes of a key's walk.
    pub fn walk(&self, key: u64, count: usize) -> Vec<usize> {
        let mut costs: Vec<(usize, f64)> =
            self.0.iter().map(|target| cost(key, target)).enumerate().collect();
        costs.sort_unstable_by(|one, other| one.1.total_cmp(&other.1));
        costs.into_iter().take(count).map(|(node, _)| node).collect()
    }
}

/// Maglev's table (Eisenbud et al., NSDI 2016): each node fills its favourite places in turn, as often as its weight has it.
#[derive(Debug)]
pub struct Maglev {
    table: Box<[u32]>,
}

/// A prime: places of Maglev's table.
const MAGLEV_PLACES: usize = 65_537;

impl Maglev {
    /// Fills the table.
    pub fn new(targets: &[Target]) -> Self {
        let places = MAGLEV_PLACES as u64;
        let mut next: Vec<(u64, u64)> = targets
            .iter()
            .map(|target| (mix(1, target.seed) % places, mix(2, target.seed) % (places - 1) + 1))
            .collect();
        let mut table = vec![u32::MAX; MAGLEV_PLACES];
        let weight_max = targets.iter().map(|target| target.weight).max().unwrap_or(1);
        let mut credit = vec![0; targets.len()];
        let mut filled = 0;
        while filled < MAGLEV_PLACES && !targets.is_empty() {
            for (node, target) in targets.iter().enumerate() {
                credit[node] += target.weight;
                if credit[node] < weight_max || filled == MAGLEV_PLACES {
                    continue;
                }
                credit[node] -= weight_max;
                let (place, skip) = &mut next[node];
                while table[*place as usize] != u32::MAX {
                    *place = (*place + *skip) % places;
                }
                table[*place as usize] = node as u32;
                filled += 1;
            }
        }
        Self { table: table.into() }
    }

    /// The node of a key.
    pub fn home(&self, key: u64) -> usize {
        self.table[((u128::from(key) * MAGLEV_PLACES as u128) >> 64) as usize] as usize
    }

    /// Memory in bytes.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.table)
    }
}

/// A ring of points, as many for each node as its weight is: Kiln's own before the sectors.
#[derive(Debug)]
pub struct Points(Box<[(u32, u32)]>);

impl Points {
    /// Sorts the points.
    pub fn new(targets: &[Target]) -> Self {
        let points = |(node, target): (u32, &Target)| {
            let seed = target.seed;
            (0..target.weight)
                .map(move |number| ((xxh3_64_with_seed(&number.to_le_bytes(), seed) >> 32) as u32, node))
        };
        let mut points: Box<[_]> = (0..).zip(targets).flat_map(points).collect();
        points.sort_unstable();
        Self(points)
    }

    /// The node of a key.
    pub fn home(&self, key: u64) -> usize {
        let at = self.0.partition_point(|point| point.0 < (key >> 32) as u32);
        self.0[at % self.0.len()].1 as usize
    }
}
