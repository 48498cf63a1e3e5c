//! Who is home: the own ring against the `hashring` crate, points, Maglev and rendezvous hashing.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::hint::black_box;

use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hashring::HashRing;
use kiln_benches::candidates::{Maglev, Points, Rendezvous, Target, targets};
use kiln_benches::{CpuTime, Rounds, function_ids, short, weights};
use kiln_lb::fleet::{Ring, RingKey, Weight};
use kiln_shared::ids::{FunctionId, NodeId};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Points of a node on a ring that has points.
const POINTS: u32 = 128;

/// Keys that between them are in most of the ring's sectors (all but one in 450).
const FIRST_LOOKS: usize = 400_000;

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
    let (points, maglev) = (Points::new(&targets), Maglev::new(&targets));
    let rendezvous = Rendezvous(targets);
    group.bench_function("weighted rendezvous, home", |bench| {
        bench.iter(|| rendezvous.home(key(black_box(rounds.take()))));
    });
    group.bench_function("weighted rendezvous, walk/8", |bench| {
        bench.iter(|| rendezvous.walk(key(black_box(rounds.take())), 8));
    });
    group.bench_function("points, home", |bench| bench.iter(|| points.home(key(black_box(rounds.take())))));
    group.bench_function("maglev, home", |bench| bench.iter(|| maglev.home(key(black_box(rounds.take())))));
}

fn rebuild(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("ring/build");
    group.sample_size(10);
    for nodes in [16, 256, 1000, 4096] {
        let weights = weights(nodes);
        let targets = targets(weights.keys().map(|id| (id.as_str(), POINTS)));
        group.bench_function(BenchmarkId::new("maglev", nodes), |bench| bench.iter(|| Maglev::new(&targets)));
        group.bench_function(BenchmarkId::new("points", nodes), |bench| bench.iter(|| Points::new(&targets)));
        group.bench_function(BenchmarkId::new("own", nodes), |bench| bench.iter(|| Ring::new(&weights)));
        let keys = function_ids(FIRST_LOOKS);
        group.throughput(Throughput::Elements(FIRST_LOOKS as u64));
        group.bench_function(BenchmarkId::new("own, and the first look at each sector", nodes), |bench| {
            bench.iter(|| {
                let ring = Ring::new(&weights);
                keys.iter().filter(|key| ring.home(RingKey::of(key)).is_some()).count()
            });
        });
        group.throughput(Throughput::Elements(1));
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
    ("points", |weights| {
        let points = Points::new(&targets_of(weights));
        Box::new(move |number| points.home(xxh3_64(&number.to_le_bytes())))
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
    println!("keys that the loss of one node moves, in per cent of all; the most of {KEYS} that is seen");
    for nodes in [2, 3, 4, 8, 16, 32, 100, 1000, 2000] {
        let equal = weights(nodes);
        let mixed: BTreeMap<NodeId, Weight> = (0..)
            .zip(equal.keys())
            .map(|(number, id)| (id.clone(), Weight::new(Weight::STANDARD.points() * (1 + number % 8))))
            .collect();
        for (weights, kind) in [(equal, "equal"), (mixed, "1 to 8")] {
            for (name, way) in WAYS {
                println!("{nodes:>4} nodes, {kind:>6}, {name:>10}: {}", moves(&weights, way));
            }
        }
    }
}

const KEYS: u64 = 200_000;

fn moves(weights: &BTreeMap<NodeId, Weight>, way: Way) -> String {
    let homes = |weights: &BTreeMap<NodeId, Weight>| -> Vec<NodeId> {
        let (home, ids): (_, Vec<&NodeId>) = (way(weights), weights.keys().collect());
        (0..KEYS).map(|key| ids[home(key)].clone()).collect()
    };
    let before = homes(weights);
    let mut counts: BTreeMap<&NodeId, u64> = BTreeMap::new();
    for home in &before {
        *counts.entry(home).or_default() += 1;
    }
    let total: u64 = weights.values().map(|weight| u64::from(weight.points())).sum();
    let (mut excess_most, mut over_most) = (f64::MIN, 0.0_f64);
    for (id, weight) in weights {
        let share = counts.get(id).copied().unwrap_or(0) as f64 / KEYS as f64;
        let fair = f64::from(weight.points()) / total as f64;
        excess_most = excess_most.max(share - fair);
        over_most = over_most.max(share / fair);
    }
    let others_most = weights.keys().take(2).map(|lost| {
        let after =
            homes(&weights.iter().filter(|(id, _)| *id != lost).map(|(id, w)| (id.clone(), *w)).collect());
        before.iter().zip(&after).filter(|(old, new)| old != new && *old != lost).count()
    });
    let others_most = others_most.max().unwrap_or(0) as f64 / KEYS as f64;
    format!(
        "most beyond a fair share {:5.2}, of others {:4.2}; largest share {:3.0} % of the fair one",
        100.0 * excess_most,
        100.0 * others_most,
        100.0 * over_most,
    )
}

criterion_group! { name = benches; config = short(); targets = picks, rebuild, spread }
criterion_main!(benches);
