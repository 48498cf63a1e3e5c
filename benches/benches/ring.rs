//! Who is home: the own ring against the `hashring` crate and rendezvous hashing.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::hint::black_box;

use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};
use hashring::HashRing;
use kiln_benches::candidates::{Maglev, Rendezvous, SlotTable, Target, targets};
use kiln_benches::{CpuTime, Rounds, function_ids, short, weights};
use kiln_lb::fleet::{Ring, RingKey, Weight};
use kiln_shared::ids::{FunctionId, NodeId};
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
    for nodes in [16, 256, 1000, 4096_u32] {
        let mut group = criterion.benchmark_group(format!("ring/{nodes}"));
        own(&mut group, nodes, &keys);
        hashring_crate(&mut group, nodes, &keys);
        candidates(&mut group, nodes, &keys);
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

fn candidates(group: &mut BenchmarkGroup<'_, CpuTime>, nodes: u32, keys: &[FunctionId]) {
    let ids: Vec<String> = (0..nodes).map(|node| node.to_string()).collect();
    let targets = targets(ids.iter().map(|id| (id.as_str(), POINTS)));
    let key = |id: &FunctionId| xxh3_64(id.as_bytes());
    let mut rounds = Rounds::of(keys);
    let (maglev, slots) = (Maglev::new(&targets), SlotTable::new(&targets));
    let rendezvous = Rendezvous(targets);
    group.bench_function("weighted rendezvous, home", |bench| {
        bench.iter(|| rendezvous.home(key(black_box(rounds.take()))));
    });
    group.bench_function("weighted rendezvous, walk/8", |bench| {
        bench.iter(|| rendezvous.walk(key(black_box(rounds.take())), 8));
    });
    group.bench_function("maglev, home", |bench| bench.iter(|| maglev.home(key(black_box(rounds.take())))));
    group.bench_function("slots, home", |bench| bench.iter(|| slots.home(key(black_box(rounds.take())))));
    group.bench_function("slots, walk/8", |bench| {
        bench.iter(|| {
            slots.walk(key(black_box(rounds.take()))).iter().copied().reduce(|one, other| one ^ other)
        });
    });
}

fn rebuild(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("ring/build");
    group.sample_size(10);
    for nodes in [16, 256, 1000, 4096] {
        let weights = weights(nodes);
        let targets = targets(weights.keys().map(|id| (id.as_str(), POINTS)));
        group.bench_function(BenchmarkId::new("maglev", nodes), |bench| bench.iter(|| Maglev::new(&targets)));
        if nodes <= 256 {
            group.bench_function(BenchmarkId::new("slots", nodes), |bench| {
                bench.iter(|| SlotTable::new(&targets));
            });
        }
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

/// A way to find a key's node, made for nodes by id and weight.
type Way = fn(&BTreeMap<NodeId, Weight>) -> Box<dyn Fn(u64) -> usize>;

const WAYS: [(&str, Way); 4] = [
    ("ring", |weights| {
        let ring = Ring::new(weights);
        let key = |number: u64| RingKey::of(&format!("{number:026}").parse().expect("26 digits are an id"));
        Box::new(move |number| ring.home(key(number)).expect("there are nodes").get())
    }),
    ("maglev", |weights| {
        let table = Maglev::new(&targets_of(weights));
        Box::new(move |number| table.home(xxh3_64(&number.to_le_bytes())))
    }),
    ("slots", |weights| {
        let table = SlotTable::new(&targets_of(weights));
        Box::new(move |number| table.home(xxh3_64(&number.to_le_bytes())))
    }),
    ("rendezvous", |weights| {
        let nodes = Rendezvous(targets_of(weights));
        Box::new(move |number| nodes.home(xxh3_64(&number.to_le_bytes())))
    }),
];

fn targets_of(weights: &BTreeMap<NodeId, Weight>) -> Vec<Target> {
    targets(weights.iter().map(|(id, weight)| (id.as_str(), weight.points())))
}

/// Not a time: how evenly keys are spread, and how many move when a node goes. Printed, per cent of all keys.
fn spread(_: &mut Criterion<CpuTime>) {
    const KEYS: u64 = 200_000;
    println!(
        "keys that move when a node of equal ones is lost, in per cent of all: its share, worst of 4 losses, of others"
    );
    println!("at weights 1:2:4: the largest share of a node, in per cent of what its weight asks for");
    for nodes in [4, 12, 100, 999] {
        for (name, way) in WAYS {
            let homes = |weights: &BTreeMap<NodeId, Weight>| -> Vec<NodeId> {
                let (home, ids): (_, Vec<&NodeId>) = (way(weights), weights.keys().collect());
                (0..KEYS).map(|key| ids[home(key)].clone()).collect()
            };
            let equal = weights(nodes);
            let before = homes(&equal);
            let (mut own_worst, mut others_worst) = (0.0_f64, 0.0_f64);
            for lost in equal.keys().take(4) {
                let after = homes(
                    &equal.iter().filter(|(id, _)| *id != lost).map(|(id, w)| (id.clone(), *w)).collect(),
                );
                let own = before.iter().filter(|home| *home == lost).count();
                let moved = before.iter().zip(&after).filter(|(old, new)| old != new).count();
                own_worst = own_worst.max(own as f64);
                others_worst = others_worst.max((moved - own) as f64);
            }
            let unequal: BTreeMap<NodeId, Weight> = equal
                .keys()
                .zip([64, 128, 256].into_iter().cycle())
                .map(|(id, points)| (id.clone(), Weight::new(points)))
                .collect();
            let total: u32 = unequal.values().map(|weight| weight.points()).sum();
            let mut counts: BTreeMap<NodeId, u32> = BTreeMap::new();
            for home in homes(&unequal) {
                *counts.entry(home).or_default() += 1;
            }
            let share = |id: &NodeId| f64::from(counts.get(id).copied().unwrap_or(0)) / KEYS as f64;
            let wanted = |weight: &Weight| f64::from(weight.points()) / f64::from(total);
            let largest = unequal.iter().map(|(id, weight)| share(id) / wanted(weight)).fold(0.0, f64::max);
            let per_cent = |keys: f64| 100.0 * keys / KEYS as f64;
            println!(
                "{name:>10} of {nodes:>4}: 1/N {:5.2}, own {:5.2}, of others {:4.2}; largest share {:3.0}",
                100.0 / nodes as f64,
                per_cent(own_worst),
                per_cent(others_worst),
                100.0 * largest
            );
        }
    }
}

criterion_group! { name = benches; config = short(); targets = picks, rebuild, spread }
criterion_main!(benches);
