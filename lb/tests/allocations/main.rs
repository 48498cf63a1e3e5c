//! Choosing a node, and telling it why, allocates nothing: counted by an allocator that counts.

#![allow(unsafe_code, reason = "an allocator is unsafe by its trait; this one hands on to the system's")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_lb::fleet::{
    Address, Ask, Attempts, Demand, Fleet, FleetConfig, NodeConfig, PlacementPolicy, PolicyName, TriedSet,
    place,
};
use kiln_shared::body::Body;
use kiln_shared::call::{CallKind, CallRequest};
use kiln_shared::function::{Function, FunctionSpec};
use kiln_shared::http1::HeaderBlock;
use kiln_shared::http1::buffer::WriteFraming;
use kiln_shared::http1::client::SendBody;
use kiln_shared::http1::head::{HeadLimits, parse_request};
use kiln_shared::ids::{CallId, NodeId};
use kiln_shared::link::call::{IncomingCall, request_head};
use kiln_shared::report::{FunctionReport, NodeReport, ReportScope};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is handed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const NODES: usize = 50;

fn demand(number: usize) -> Demand {
    let id = format!("{number:026}");
    let spec = FunctionSpec::with_defaults(
        id.parse().expect("26 digits are an id"),
        id.parse().expect("26 digits are an id"),
        "image:1",
    );
    Demand::of(&Function::new(spec))
}

fn report(number: usize, memory_committed_mib: u64, functions: Vec<FunctionReport>) -> NodeReport {
    NodeReport {
        node: NodeId::new(format!("node-{number:03}")),
        epoch: 1,
        sequence: 1,
        scope: ReportScope::Whole,
        draining: false,
        memory_total_mib: 8192,
        memory_committed_mib,
        memory_idle_mib: 0,
        cpu_total_millis: 4000,
        cpu_committed_millis: 0,
        calls: 9,
        functions,
        gone: Vec::new(),
        images: Some([Arc::from("image:1")].into()),
    }
}

/// Functions 0 to 99 are warm on a node each, the others nowhere; half of the nodes are full.
fn fleet(now: Instant) -> Fleet {
    let mut fleet = Fleet::new(FleetConfig::default(), now);
    let member = |number: usize| NodeConfig {
        id: NodeId::new(format!("node-{number:03}")),
        address: Address::Remote("10.0.0.1:1".into()),
        weight: None,
        zone: None,
    };
    fleet.set_members((0..NODES).map(member), now);
    let warm = |number: usize| {
        let of = demand(number);
        let (id, revision) = (of.function, of.revision);
        FunctionReport { id, revision, idle: 1, busy: 0, starting: 0, waiting: 0 }
    };
    let reports: Vec<NodeReport> = (0..NODES)
        .map(|number| report(number, 8192 * (number % 2) as u64, vec![warm(number), warm(number + NODES)]))
        .collect();
    assert_eq!(fleet.apply(&reports, now).news, NODES);
    fleet
}

#[test]
fn a_decision_of_any_policy_a_seat_and_telling_why_allocate_nothing() {
    let now = Instant::now();
    let fleet = fleet(now);
    let demands: Vec<Demand> = (0..200).map(demand).collect();
    let (view, tried, mut reader) = (fleet.view(), TriedSet::new(), fleet.reader());
    drop(reader.seat(&demands[0], &tried, now));
    let before = ALLOCATIONS.get();
    for name in PolicyName::ALL {
        let policy = PlacementPolicy { name, ..PlacementPolicy::default() };
        for (draw, demand) in (1..).zip(&demands) {
            let now = now + Duration::from_millis(draw);
            assert!(place(&view, &Ask { demand, tried: &tried, draw, now }, &policy).is_ok());
        }
    }
    for demand in &demands {
        drop(reader.seat(demand, &tried, now));
        assert!(!reader.room().is_waited_for(&demand.function));
    }
    let balancer: Arc<str> = "lb1".into();
    let before_telling = ALLOCATIONS.get();
    for demand in &demands {
        let mut attempts = Attempts::new();
        let seat = reader.seat(demand, attempts.tried(), now).expect("a node");
        attempts.seated(&seat);
        let name_of = |node| view.name_of(node);
        let told = attempts.trail().placement(Arc::clone(&balancer), Duration::ZERO, name_of);
        assert_eq!((told.tries, told.reason), (1, Some(seat.reason())));
    }
    assert_eq!(ALLOCATIONS.get() - before_telling, 0, "telling why costs nothing");
    assert_eq!(before_telling - before, 1, "the balancer's name alone");
    let before = ALLOCATIONS.get();
    drop(Vec::<u8>::with_capacity(1));
    assert_eq!(ALLOCATIONS.get() - before, 1, "the allocator counts");
}

/// Allocations of writing the head of a call and of reading it at the node.
fn head_allocations(request: &CallRequest, balancer: &Arc<str>) -> [u64; 2] {
    let begun = ALLOCATIONS.get();
    let head =
        request_head(request, "10.0.0.1:8081", WriteFraming::Fixed(0), SendBody::AtOnce).expect("a head");
    let written = ALLOCATIONS.get() - begun;
    let head = parse_request(&head, &HeadLimits::default()).expect("HTTP");
    let begun = ALLOCATIONS.get();
    let call = IncomingCall::read(head, balancer).expect("a call");
    let read = ALLOCATIONS.get() - begun;
    let call = call.into_request(Arc::clone(&request.function), Body::Empty, request.received);
    assert_eq!(call.placement, request.placement);
    [written, read]
}

#[test]
fn a_call_that_tells_why_allocates_no_more_on_the_hop_than_one_that_does_not() {
    let now = Instant::now();
    let fleet = fleet(now);
    let mut attempts = Attempts::new();
    attempts.seated(&fleet.reader().seat(&demand(1), attempts.tried(), now).expect("a node"));
    let balancer: Arc<str> = "lb1".into();
    let id = "01CQ4S2K8JNG8G00GZJ0000001";
    let spec = FunctionSpec::with_defaults(id.parse().expect("an id"), id.parse().expect("an id"), "image:1");
    let mut request = CallRequest {
        id: CallId::generate(),
        function: Arc::new(Function::new(spec)),
        kind: CallKind::Invoke,
        method: http::Method::POST,
        url: format!("http://kiln.test/invoke/{id}"),
        path: "/invoke".into(),
        headers: HeaderBlock::new(),
        body: Body::Empty,
        received: now,
        placement: None,
    };
    let silent = head_allocations(&request, &balancer);
    request.placement =
        Some(attempts.trail().placement(Arc::clone(&balancer), Duration::from_secs(30), |_| None));
    assert_eq!(head_allocations(&request, &balancer), silent);
}
