//! Who is home: the own ring against the `hashring` crate and rendezvous hashing.

use std::hash::{Hash, Hasher};
use std::hint::black_box;

use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};
use hashring::HashRing;
use kiln_benches::{CpuTime, Rounds, function_ids, short, weights};
use kiln_lb::fleet::{Ring, RingKey};
use kiln_shared::ids::FunctionId;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Points of a node on `hashring`'s ring, as many as a node of standard weight has on ours.
const POINTS: u32 = 128;

#[derive(Debug, Clone, Copy)]
struct VirtualNode {
    node: u32,
    point: u32,
}

impl Hash for VirtualNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u32(self.node);
        state.write_u32(self.point);
    }
}

fn picks(criterion: &mut Criterion<CpuTime>) {
    // Few enough to stay in the first-level cache, so that the ring is measured and not the list of keys.
    let keys = function_ids(1021);
    for nodes in [16, 256, 4096_u32] {
        let mut group = criterion.benchmark_group(format!("ring/{nodes}"));
        own(&mut group, nodes, &keys);
        hashring_crate(&mut group, nodes, &keys);
        rendezvous(&mut group, nodes, &keys);
        group.finish();
    }
}

fn own(group: &mut BenchmarkGroup<'_, CpuTime>, nodes: u32, keys: &[FunctionId]) {
    let ring = Ring::new(&weights(nodes as usize));
    let mut rounds = Rounds::of(keys);
    group.bench_function("own, home", |bench| {
        bench.iter(|| ring.home(RingKey::of(black_box(rounds.take()))));
    });
    for steps in [2, 8] {
        group.bench_function(BenchmarkId::new("own, walk", steps), |bench| {
            bench.iter(|| ring.walk(RingKey::of(black_box(rounds.take()))).take(steps).last());
        });
    }
}

fn hashring_crate(group: &mut BenchmarkGroup<'_, CpuTime>, nodes: u32, keys: &[FunctionId]) {
    let mut rounds = Rounds::of(keys);
    let mut one_point = HashRing::new();
    one_point.batch_add((0..nodes).map(|node| VirtualNode { node, point: 0 }).collect());
    let mut many_points = HashRing::new();
    let points = (0..nodes).flat_map(|node| (0..POINTS).map(move |point| VirtualNode { node, point }));
    many_points.batch_add(points.collect());
    group.bench_function("hashring, get, 1 point a node", |bench| {
        bench.iter(|| one_point.get(black_box(rounds.take())).map(|it| it.node));
    });
    group.bench_function("hashring, get, 128 points a node", |bench| {
        bench.iter(|| many_points.get(black_box(rounds.take())).map(|it| it.node));
    });
    group.bench_function("hashring, get_with_replicas(2), 1 point a node", |bench| {
        bench.iter(|| one_point.get_with_replicas(black_box(rounds.take()), 2).map(|found| found.len()));
    });
}

fn rendezvous(group: &mut BenchmarkGroup<'_, CpuTime>, nodes: u32, keys: &[FunctionId]) {
    let seeds: Vec<u64> = (0..nodes).map(|node| xxh3_64(&node.to_le_bytes())).collect();
    let mut rounds = Rounds::of(keys);
    group.bench_function("rendezvous", |bench| {
        bench.iter(|| {
            let key = xxh3_64(black_box(rounds.take()).as_bytes());
            seeds.iter().enumerate().max_by_key(|&(_, &seed)| mix(key, seed)).map(|(node, _)| node)
        });
    });
}

/// The cheapest mix that spreads well.
fn mix(key: u64, seed: u64) -> u64 {
    let product = u128::from(key ^ seed) * 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
    (product >> 64) as u64 ^ product as u64
}

fn rebuild(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("ring/build");
    group.sample_size(10);
    for nodes in [16, 256, 4096] {
        let weights = weights(nodes);
        group.bench_function(BenchmarkId::new("own", nodes), |bench| bench.iter(|| Ring::new(&weights)));
        let points: Vec<u64> = (0..nodes as u64 * u64::from(POINTS))
            .map(|point| xxh3_64_with_seed(&point.to_le_bytes(), 1))
            .collect();
        group.bench_function(BenchmarkId::new("hashring, batch_add", nodes), |bench| {
            bench.iter(|| {
                let mut ring = HashRing::new();
                ring.batch_add(points.clone());
                ring
            });
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = short(); targets = picks, rebuild }
criterion_main!(benches);
