//! Shares, moves and agreement of rings.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn key(number: u64) -> RingKey {
    RingKey(xxh3_64(&number.to_le_bytes()))
}

fn fleet(points: &[u32]) -> BTreeMap<NodeId, Weight> {
    points.iter().enumerate().map(|(i, &p)| (NodeId::new(format!("node-{i}")), Weight::new(p))).collect()
}

fn without(weights: &BTreeMap<NodeId, Weight>, gone: &NodeId) -> BTreeMap<NodeId, Weight> {
    let mut after = weights.clone();
    after.remove(gone);
    after
}

fn walk(weights: &BTreeMap<NodeId, Weight>, key: RingKey) -> Vec<NodeId> {
    let ids: Vec<&NodeId> = weights.keys().collect();
    Ring::new(weights).walk(key).map(|node| ids[node.get()].clone()).collect()
}

/// As much of the walk as follows the sector.
fn first<'a>(ring: &Ring, weights: &'a BTreeMap<NodeId, Weight>, key: RingKey) -> Vec<&'a NodeId> {
    let ids: Vec<&NodeId> = weights.keys().collect();
    ring.walk(key).take(FIRST_MAX).map(|node| ids[node.get()]).collect()
}

/// The home of each sector: what a share is of.
fn homes(weights: &BTreeMap<NodeId, Weight>) -> Vec<&NodeId> {
    let (ring, ids): (_, Vec<&NodeId>) = (Ring::new(weights), weights.keys().collect());
    let key = |sector: u64| RingKey(sector << (u64::BITS - SECTOR_BITS));
    (0..1 << SECTOR_BITS).map(|sector| ids[ring.home(key(sector)).unwrap().get()]).collect()
}

/// Each node's share of the sectors, and what its weight asks for.
fn shares(weights: &BTreeMap<NodeId, Weight>) -> Vec<(f64, f64)> {
    let (homes, ids): (_, Vec<&NodeId>) = (homes(weights), weights.keys().collect());
    let mut counts = vec![0_u32; ids.len()];
    for home in &homes {
        counts[ids.binary_search(home).unwrap()] += 1;
    }
    let total: u32 = weights.values().map(|weight| weight.points()).sum();
    let share = |count| f64::from(count) / homes.len() as f64;
    let wanted = |weight: &Weight| f64::from(weight.points()) / f64::from(total);
    counts.into_iter().zip(weights.values()).map(|(count, weight)| (share(count), wanted(weight))).collect()
}

#[test]
fn an_empty_ring_has_no_home_and_an_empty_walk() {
    let ring = Ring::new(&BTreeMap::new());
    assert!(ring.is_empty());
    assert_eq!(ring.home(key(1)), None);
    assert_eq!(ring.walk(key(1)).next(), None);
}

#[test]
fn a_single_node_is_everybodys_home() {
    let ring = Ring::new(&fleet(&[8]));
    assert!(ring.walk(key(1)).eq([NodeIndex(0)]));
}

/// Keys move when their home goes, and only then, so a node's share is what its loss moves.
#[test]
fn losing_a_node_moves_no_more_than_its_share_and_a_hundredth_in_a_fleet_of_any_size() {
    for nodes in (2..=10).chain([16, 32, 64]) {
        let mixed = |node| Weight::STANDARD.points() * (1 + node as u32 % 8);
        for weights in [fleet(&vec![128; nodes]), fleet(&(0..nodes).map(mixed).collect::<Vec<_>>())] {
            for (share, wanted) in shares(&weights) {
                assert!(share <= wanted + 0.01, "{share:.4} of the keys for {wanted:.4}, {nodes} nodes");
            }
        }
    }
}

/// Balancers of different versions must agree, so the hash is part of the protocol between them.
#[test]
fn the_order_of_a_known_function_never_changes() {
    let weights = fleet(&[128, 64, 512, 128, 128]);
    let ring = Ring::new(&weights);
    let function: FunctionId = "01CQ4S2K8JNG8G00GZJ0000001".parse().unwrap();
    let order: Vec<usize> = ring.walk(RingKey::of(&function)).map(NodeIndex::get).collect();
    assert_eq!(order, GOLDEN_ORDER);
}

const GOLDEN_ORDER: [usize; 5] = [4, 0, 2, 3, 1];

#[test]
fn what_one_thread_has_found_is_found_by_another() {
    let weights = fleet(&[100; 20]);
    let ring = Ring::new(&weights);
    let walks = || (0..2000).map(|n| ring.walk(key(n)).collect()).collect::<Vec<Vec<NodeIndex>>>();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(walks)).collect();
        let found: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(found.iter().all(|found| *found == walks()));
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// Six times the spread that chance allows.
    #[test]
    fn shares_follow_weights(points in prop::collection::vec(8_u32..4097, 2..16)) {
        for (share, wanted) in shares(&fleet(&points)) {
            let spread = (wanted * (1.0 - wanted) / f64::from(1 << SECTOR_BITS)).sqrt();
            prop_assert!((share - wanted).abs() <= 6.0 * spread + 1e-4, "{share} for {wanted}");
        }
    }
}

proptest! {
    #[test]
    fn a_walk_visits_every_node_once_home_first(points in prop::collection::vec(8_u32..600, 1..80), n: u64) {
        let ring = Ring::new(&fleet(&points));
        let walk: Vec<NodeIndex> = ring.walk(key(n)).collect();
        prop_assert_eq!(walk.len(), points.len());
        prop_assert_eq!(walk.iter().collect::<BTreeSet<_>>().len(), points.len());
        prop_assert_eq!(Some(walk[0]), ring.home(key(n)));
    }

    /// The others keep their order, so only the keys of the lost node move, and each to the node that was next.
    #[test]
    fn removing_a_node_moves_only_its_own_keys(
        points in prop::collection::vec(8_u32..4097, 2..24),
        gone: prop::sample::Index,
        n: u64,
    ) {
        let before = fleet(&points);
        let gone = before.keys().nth(gone.index(before.len())).unwrap();
        let after = without(&before, gone);
        let (ring_before, ring_after) = (Ring::new(&before), Ring::new(&after));
        for number in n..n.saturating_add(20) {
            let old = first(&ring_before, &before, key(number));
            let new = first(&ring_after, &after, key(number));
            let stay = old.into_iter().filter(|id| *id != gone);
            prop_assert!(new.into_iter().zip(stay).all(|(new, old)| new == old));
        }
    }

    #[test]
    fn a_heavier_node_moves_up_and_the_others_keep_their_order(
        points in prop::collection::vec(8_u32..4096, 2..FIRST_MAX),
        heavier: prop::sample::Index,
        n: u64,
    ) {
        let before = fleet(&points);
        let heavier = before.keys().nth(heavier.index(before.len())).unwrap();
        let mut after = before.clone();
        after.insert(heavier.clone(), Weight::MAX);
        let (old, new) = (walk(&before, key(n)), walk(&after, key(n)));
        let place = |walk: &[NodeId]| walk.iter().position(|id| id == heavier);
        prop_assert!(place(&new) <= place(&old));
        let others = |walk: Vec<NodeId>| walk.into_iter().filter(|id| id != heavier).collect::<Vec<_>>();
        prop_assert_eq!(others(old), others(new));
    }

    #[test]
    fn the_order_in_which_nodes_joined_does_not_matter(points in prop::collection::vec(8_u32..300, 1..40), seed: u64, n: u64) {
        let sorted = fleet(&points);
        let mut joined: Vec<_> = sorted.clone().into_iter().collect();
        joined.sort_by_key(|(id, _)| xxh3_64_with_seed(id.as_str().as_bytes(), seed));
        prop_assert_eq!(walk(&joined.into_iter().collect(), key(n)), walk(&sorted, key(n)));
    }
}
