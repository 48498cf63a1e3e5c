//! What the benchmarks measure against: fleets of a given size, functions and calls, and a short criterion.

pub mod candidates;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::Criterion;
use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use kiln_lb::fleet::demand::ImageKey;
use kiln_lb::fleet::{Address, Demand, Fleet, LivenessPolicy, NodeConfig, RingKey, Weight};
use kiln_shared::body::Body;
use kiln_shared::call::{CallKind, CallRequest};
use kiln_shared::function::{Format, Function, FunctionSpec, Revision};
use kiln_shared::http1::HeaderBlock;
use kiln_shared::ids::{CallId, FunctionId, NodeId};
use kiln_shared::report::{FunctionReport, NodeReport, ReportScope};
use nix::time::ClockId;

/// A prime, so that stepping by it visits the elements of any list in an order that no cache foresees.
const STRIDE: usize = 7919;

/// CPU time of the measuring thread, which others on the machine disturb less than time on the wall.
#[derive(Debug, Clone, Copy)]
pub struct CpuTime;

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        ClockId::CLOCK_THREAD_CPUTIME_ID.now().expect("Linux has this clock").into()
    }

    fn end(&self, start: Duration) -> Duration {
        self.start().saturating_sub(start)
    }

    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        *one + *other
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

/// A criterion that spends about a second and a half on each figure.
pub fn short() -> Criterion<CpuTime> {
    Criterion::default()
        .with_measurement(CpuTime)
        .warm_up_time(Duration::from_millis(400))
        .measurement_time(Duration::from_secs(1))
        .sample_size(50)
}

/// Goes round a list for ever, not in its order.
#[derive(Debug)]
pub struct Rounds<'a, T> {
    items: &'a [T],
    stride: usize,
    next: usize,
}

impl<'a, T> Rounds<'a, T> {
    /// Rounds of `items`, which must not be empty.
    pub fn of(items: &'a [T]) -> Self {
        Self { items, stride: STRIDE % items.len(), next: 0 }
    }

    /// The next one.
    #[inline]
    pub fn take(&mut self) -> &'a T {
        let item = &self.items[self.next];
        self.next += self.stride;
        if self.next >= self.items.len() {
            self.next -= self.items.len();
        }
        item
    }
}

/// The ids of `count` functions.
///
/// # Panics
/// Never: numbers of 26 digits are ids.
pub fn function_ids(count: usize) -> Vec<FunctionId> {
    (0..count).map(|number| format!("{number:026}").parse().expect("26 digits are an id")).collect()
}

/// The image of every function.
pub const IMAGE: &str = "registry.example.com/team/hello:1.0.0";

/// The name of a node by its number.
pub fn node_id(number: usize) -> NodeId {
    NodeId::new(format!("node-{number:05}"))
}

/// The nodes of a ring, all of standard weight.
pub fn weights(nodes: usize) -> BTreeMap<NodeId, Weight> {
    (0..nodes).map(|number| (node_id(number), Weight::STANDARD)).collect()
}

/// What a function asks for: 128 MiB.
pub fn demand(function: FunctionId) -> Demand {
    let revision = Revision(BuildHasherDefault::<DefaultHasher>::default().hash_one(function));
    let (key, image) = (RingKey::of(&function), ImageKey::of(IMAGE));
    Demand { function, revision, key, image, memory_mib: 128, cpu_millis: 0 }
}

/// A fleet of `nodes` with room, where each of `warm` has one idle container at its home.
pub fn fleet(nodes: usize, warm: &[Demand], now: Instant) -> Fleet {
    let mut fleet = Fleet::new(LivenessPolicy::default(), now);
    let member = |number: usize| NodeConfig {
        id: node_id(number),
        address: Address::Remote(format!("10.0.0.1:{number}").into()),
        weight: Some(Weight::STANDARD),
        zone: None,
    };
    fleet.set_members((0..nodes).map(member), now);
    let mut reports: Vec<NodeReport> = (0..nodes).map(report).collect();
    let view = fleet.view();
    for demand in warm {
        let home = view.ring().home(RingKey::of(&demand.function)).expect("the fleet has nodes");
        reports[home.get()].functions.push(FunctionReport {
            id: demand.function,
            revision: demand.revision,
            idle: 1,
            busy: 0,
            starting: 0,
            waiting: 0,
        });
    }
    assert_eq!(fleet.apply(&reports, now).news, nodes, "reports are valid");
    fleet
}

/// A node of 16 cores and 64 GiB with half of its memory committed.
pub fn report(number: usize) -> NodeReport {
    NodeReport {
        node: node_id(number),
        epoch: 1,
        sequence: 1,
        scope: ReportScope::Whole,
        draining: false,
        memory_total_mib: 65_536,
        memory_committed_mib: 32_768,
        memory_idle_mib: 16_384,
        cpu_total_millis: 16_000,
        cpu_committed_millis: 0,
        calls: 0,
        functions: Vec::new(),
        gone: Vec::new(),
        images: Some([Arc::from(IMAGE)].into()),
    }
}

/// A call of a function in `format` with a body of `body_bytes`, as a command line client sends one.
pub fn call(function: &Arc<Function>, kind: CallKind, body_bytes: usize) -> CallRequest {
    let mut headers = HeaderBlock::new();
    for (name, value) in [
        ("User-Agent", "curl/8.5.0"),
        ("Accept", "*/*"),
        ("Content-Type", "application/json"),
        ("X-Request-Id", "6f1c9a52-0c1e-4a52-9a53-5a1d6ddc2c10"),
    ] {
        headers.push_valid(name.as_bytes(), value.as_bytes());
    }
    CallRequest {
        id: CallId::generate(),
        function: Arc::clone(function),
        kind,
        method: http::Method::POST,
        url: "http://kiln.example.com:8080/t/demo/hello?name=Ada".to_owned(),
        path: "/hello".into(),
        headers,
        body: Body::from(Bytes::from(vec![b'x'; body_bytes])),
        received: Instant::now(),
        placement: None,
    }
}

/// A function of 128 MiB in `format`.
///
/// # Panics
/// Never: numbers of 26 digits are ids.
pub fn function(format: Format) -> Arc<Function> {
    let id = format!("{:026}", 1);
    Arc::new(Function::new(FunctionSpec {
        name: "hello".to_owned(),
        app_name: "demo".to_owned(),
        format,
        ..FunctionSpec::with_defaults(
            id.parse().expect("26 digits are an id"),
            id.parse().expect("26 digits are an id"),
            "registry.example.com/team/hello:1.0.0",
        )
    }))
}
