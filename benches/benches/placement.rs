//! Choosing a node for a call, in fleets of 1, 16 and 1000 nodes with 100,000 functions.
//!
//! One hot function has all of its data in the cache; all functions in turn have it in none, the list of functions that
//! the benchmark goes through included.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use kiln_benches::{CpuTime, Rounds, demand, fleet, function_ids, report, short};
use kiln_lb::fleet::demand::ImageKey;
use kiln_lb::fleet::{Ask, Demand, Fleet, PlacementPolicy, PolicyName, TriedSet, place};
use kiln_shared::report::{FunctionReport, NodeReport, ReportScope};

/// A prime, and no more than one node may have.
const FUNCTIONS: usize = 99_991;

fn decisions(criterion: &mut Criterion<CpuTime>) {
    let policy = PlacementPolicy::default();
    let now = Instant::now();
    let demands: Vec<Demand> = function_ids(2 * FUNCTIONS).into_iter().map(demand).collect();
    let (warm, cold) = demands.split_at(FUNCTIONS);
    let without_image: Vec<Demand> =
        cold.iter().map(|demand| Demand { image: ImageKey::of("nowhere:1"), ..*demand }).collect();
    for nodes in [1, 16, 1000] {
        let mut group = criterion.benchmark_group(format!("placement/{nodes}"));
        let mut fleet = fleet(nodes, warm, now);
        let mut measure = |name: &str, fleet: &Fleet, demands: &[Demand]| {
            let view = fleet.view();
            let mut rounds = Rounds::of(demands);
            let tried = TriedSet::new();
            group.bench_function(name, |bench| {
                bench.iter(|| {
                    let ask = Ask { demand: black_box(rounds.take()), tried: &tried, draw: 0, now };
                    place(&view, &ask, &policy)
                });
            });
        };
        measure("one hot function, warm at home", &fleet, &warm[..1]);
        measure("all functions, warm at home", &fleet, warm);
        measure("functions by Zipf's law, warm at home", &fleet, &by_zipf(warm));
        measure("no container anywhere, images everywhere", &fleet, cold);
        measure("neither container nor image anywhere", &fleet, &without_image);
        fleet.apply(&full(nodes), now);
        measure("no room anywhere", &fleet, cold);
        group.finish();
    }
}

/// A thousand times a hundred calls, each of a function as often as its rank has it (exponent 0.99), in no order.
fn by_zipf(functions: &[Demand]) -> Vec<Demand> {
    let weights = (1..=functions.len()).map(|rank| (rank as f64).powf(-0.99));
    let sums: Vec<f64> = weights
        .scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        })
        .collect();
    let total = sums.last().copied().unwrap_or(1.0);
    let mut draw = 0_u64;
    let calls = (0..FUNCTIONS).map(|_| {
        draw = draw.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let at = (draw >> 11) as f64 / (1_u64 << 53) as f64 * total;
        functions[sums.partition_point(|&sum| sum < at).min(functions.len() - 1)]
    });
    calls.collect()
}

fn policies(criterion: &mut Criterion<CpuTime>) {
    let now = Instant::now();
    let warm: Vec<Demand> = function_ids(FUNCTIONS).into_iter().map(demand).collect();
    let view = fleet(1000, &warm, now).view();
    let tried = TriedSet::new();
    let mut group = criterion.benchmark_group("policy/1000");
    for name in PolicyName::ALL {
        let policy = PlacementPolicy { name, ..PlacementPolicy::default() };
        let mut rounds = Rounds::of(&warm);
        let mut draw = 0_u64;
        group.bench_function(name.as_str(), |bench| {
            bench.iter(|| {
                draw = draw.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let ask = Ask { demand: black_box(rounds.take()), tried: &tried, draw, now };
                place(&view, &ask, &policy)
            });
        });
    }
    group.finish();
}

/// Reports of nodes without room that serve many calls, all the same number.
fn full(nodes: usize) -> Vec<NodeReport> {
    let busy = |number| NodeReport { sequence: 2, calls: 1000, memory_idle_mib: 0, ..report(number) };
    (0..nodes).map(|number| NodeReport { memory_committed_mib: 65_536, ..busy(number) }).collect()
}

fn seats(criterion: &mut Criterion<CpuTime>) {
    let now = Instant::now();
    let demands: Vec<Demand> = function_ids(FUNCTIONS).into_iter().map(demand).collect();
    let mut group = criterion.benchmark_group("seat");
    for nodes in [1, 16, 1000] {
        let mut reader = fleet(nodes, &demands, now).reader();
        group.bench_function(format!("hot function, {nodes} nodes: choose, count, release"), |bench| {
            bench.iter(|| reader.seat(black_box(&demands[0]), &TriedSet::new(), now).map(drop));
        });
    }
    group.finish();
}

fn container(demand: &Demand) -> FunctionReport {
    FunctionReport {
        id: demand.function,
        revision: demand.revision,
        idle: 1,
        busy: 0,
        starting: 0,
        waiting: 0,
    }
}

fn reports(criterion: &mut Criterion<CpuTime>) {
    let now = Instant::now();
    let demands: Vec<Demand> = function_ids(FUNCTIONS).into_iter().map(demand).collect();
    let mut group = criterion.benchmark_group("report");
    let mut fleet = fleet(1000, &demands, now);
    let mut sequence = 1;
    group.bench_function("numbers of one of 1000 nodes", |bench| {
        bench.iter(|| {
            sequence += 1;
            fleet.apply([&NodeReport { sequence, ..report(7) }], now)
        });
    });
    group.bench_function("changes of one function on one of 1000 nodes", |bench| {
        let known = demands[0];
        bench.iter(|| {
            sequence += 1;
            let functions = vec![container(&known)];
            let scope = ReportScope::Changes { since: sequence - 1 };
            fleet.apply([&NodeReport { sequence, scope, functions, images: None, ..report(7) }], now)
        });
    });
    group.bench_function("a new function on one of 1000 nodes, and the next view", |bench| {
        bench.iter(|| {
            sequence += 1;
            let functions = vec![container(&demands[(sequence % 1000) as usize])];
            fleet.apply([&NodeReport { sequence, functions, ..report(7) }], now + Duration::from_millis(1))
        });
    });
    group.finish();
}

criterion_group! { name = benches; config = short(); targets = decisions, policies, seats, reports }
criterion_main!(benches);
