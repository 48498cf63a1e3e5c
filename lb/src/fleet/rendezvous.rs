//! Weighted rendezvous hashing: every node draws a number for a key, and the smallest come first.
//!
//! Shares follow weights exactly, and a node that goes or comes changes nothing between the others (Schindelhauer and
//! Schomaker, SPAA 2005). Invariant: balancers on any machine come to the same order, so there is nothing here but integers and
//! the operations that IEEE 754 rounds in one way: no logarithm of a library.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Nodes of an order.
pub(super) const FIRST_MAX: usize = 8;
/// Seed of the nodes' hashes. Fixed, or balancers would disagree.
const NODE_SEED: u64 = 0x6b69_6c6e_2d72_696e;
/// An odd number without pattern: the golden ratio's fraction.
const MIX: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
/// Numbers that can be drawn, as a power of two: as many as leave a number's distance to 1 exact.
const DRAW_BITS: u32 = 52;
/// More than the rounding of a cost: what is skipped for a rough cost is skipped for the right one as well.
const ROUNDING: f64 = 1.0 + 1e-9;

/// A node that draws.
#[derive(Debug)]
pub(super) struct Contender {
    seed: u64,
    weight: f64,
    /// The weight and a little more.
    reach: f64,
}

impl Contender {
    pub(super) fn new(id: &str, weight: u32) -> Self {
        let weight = f64::from(weight);
        Self { seed: xxh3_64_with_seed(id.as_bytes(), NODE_SEED), weight, reach: weight * ROUNDING }
    }

    fn draw(&self, key: u64) -> f64 {
        let product = u128::from(key ^ self.seed).wrapping_mul(MIX);
        even((product >> 64) as u64 ^ product as u64)
    }
}

/// A hash as a number between 0 and 1, neither of them.
fn even(hash: u64) -> f64 {
    ((hash >> (u64::BITS - DRAW_BITS)) as f64 + 0.5) / (1_u64 << DRAW_BITS) as f64
}

/// The indexes of the [`FIRST_MAX`] contenders that come first for `key`, as far as there are so many. Of those from the
/// 65,536th on, none. O(contenders), about 5 ns each.
pub(super) fn first_nodes(key: u64, contenders: &[Contender]) -> [u16; FIRST_MAX] {
    let mut nodes = [0; FIRST_MAX];
    let mut costs = [f64::INFINITY; FIRST_MAX];
    for (node, contender) in (0..u16::MAX).zip(contenders) {
        let draw = contender.draw(key);
        // The cost is at least draw / weight; most are too large by that alone.
        if draw > costs[FIRST_MAX - 1] * contender.reach {
            continue;
        }
        let cost = exponential(draw) / contender.weight;
        let at = costs.partition_point(|other| *other <= cost);
        if at < FIRST_MAX {
            costs[at..].rotate_right(1);
            nodes[at..].rotate_right(1);
            (costs[at], nodes[at]) = (cost, node);
        }
    }
    nodes
}

/// -ln(1 - draw): of numbers that are drawn evenly, the waiting times of a steady stream. The smallest of several, each
/// divided by a weight, is the one of a node as often as the node's weight has it.
fn exponential(draw: f64) -> f64 {
    const MANTISSA_BITS: u32 = f64::MANTISSA_DIGITS - 1;
    const ONE: u64 = 1.0_f64.to_bits();
    let bits = (1.0 - draw).to_bits();
    // 1 - draw as mantissa / 2^halvings, the mantissa between sqrt(1/2) and sqrt(2).
    let mut halvings = ((ONE >> MANTISSA_BITS) - (bits >> MANTISSA_BITS)) as f64;
    let mut mantissa = f64::from_bits((bits % (1 << MANTISSA_BITS)) | ONE);
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa /= 2.0;
        halvings -= 1.0;
    }
    // ln m = 2 artanh((m - 1) / (m + 1)), by its series.
    let ratio = (1.0 - mantissa) / (1.0 + mantissa);
    let square = ratio * ratio;
    let mut sum = 0.0;
    for odd in (0..12).rev() {
        sum = sum * square + 1.0 / f64::from(2 * odd + 1);
    }
    halvings * std::f64::consts::LN_2 + 2.0 * ratio * sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn contenders(weights: &[u32]) -> Vec<Contender> {
        weights.iter().enumerate().map(|(i, &weight)| Contender::new(&format!("node-{i}"), weight)).collect()
    }

    proptest! {
        #[test]
        fn the_exponential_is_the_logarithm(hash: u64, small in 0..DRAW_BITS) {
            for hash in [hash, hash >> small, !(hash >> small)] {
                let draw = even(hash);
                let wanted = -(-draw).ln_1p();
                prop_assert!((exponential(draw) - wanted).abs() <= 1e-12 * wanted, "{draw}: {wanted}");
                prop_assert!(exponential(draw) * ROUNDING >= draw, "{draw}");
            }
        }

        #[test]
        fn what_is_skipped_would_not_have_come_first(weights in prop::collection::vec(8_u32..4097, 1..100), key: u64) {
            let contenders = contenders(&weights);
            let mut costs: Vec<(f64, u16)> = (0..)
                .zip(&contenders)
                .map(|(node, contender)| (exponential(contender.draw(key)) / contender.weight, node))
                .collect();
            costs.sort_by(|one, other| one.0.total_cmp(&other.0));
            for ((_, wanted), found) in costs.into_iter().zip(first_nodes(key, &contenders)) {
                prop_assert_eq!(found, wanted);
            }
        }
    }
}
