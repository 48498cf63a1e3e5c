//! A balancer and its nodes in virtual time: real fleet, view, placement and waiting room; simple nodes and network.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_lb::fleet::{
    Address, Demand, Fleet, FleetConfig, FleetReader, Heard, NodeConfig, PlacementPolicy, Seat, TriedSet,
    Waiting,
};
use kiln_shared::function::{Function, FunctionSpec, Revision};
use kiln_shared::ids::{FunctionId, NodeId};
use kiln_shared::report::{FunctionReport, NodeReport, ReportScope};

/// A call's way from balancer to node, or an answer's way back.
pub(crate) const ONE_WAY: Duration = Duration::from_micros(100);
/// Reports of a node are at least so far apart, as an agent's are.
const REPORT_PAUSE: Duration = Duration::from_millis(10);
/// As an agent's `fairness_after`.
const FAIRNESS_AFTER: Duration = Duration::from_millis(200);
const TICK: Duration = Duration::from_millis(100);
/// A run that takes longer has hung.
const RUN_MAX: Duration = Duration::from_mins(10);

/// What the nodes are and how they behave.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NodeModel {
    pub(crate) memory_mib: u64,
    pub(crate) cores: u32,
    pub(crate) start: Duration,
}

/// One call of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    pub(crate) function: usize,
    pub(crate) at: Duration,
    pub(crate) runs: Duration,
}

/// What a run came to.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Of each call, from its arrival to its answer; `None` if it got none.
    pub(crate) took: Vec<Option<Duration>>,
    pub(crate) containers_started: usize,
    /// Most calls that waited at the balancer at a time.
    pub(crate) waiting_max: usize,
    /// Most containers that a node was starting at a time.
    pub(crate) starting_max: usize,
    /// From the first arrival to the last answer.
    pub(crate) lasted: Duration,
}

impl Outcome {
    pub(crate) fn unanswered(&self) -> usize {
        self.took.iter().filter(|took| took.is_none()).count()
    }

    pub(crate) fn longest(&self) -> Duration {
        self.took.iter().flatten().max().copied().unwrap_or_default()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives { call: usize },
    AtNode { call: usize },
    Started { node: usize, function: usize },
    Ends { node: usize, call: usize },
    Answered { call: usize },
    Report { node: usize },
    Tick,
}

#[derive(Debug, Default)]
struct Pool {
    idle: u32,
    busy: u32,
    starting: u32,
    /// Calls that wait, and since when.
    queue: VecDeque<(usize, Instant)>,
}

#[derive(Debug)]
struct SimNode {
    model: NodeModel,
    pools: BTreeMap<usize, Pool>,
    sequence: u64,
    report_due: bool,
}

impl SimNode {
    fn committed_mib(&self, count: impl Fn(&Pool) -> u32) -> u64 {
        self.pools.values().map(|pool| u64::from(count(pool)) * CONTAINER_MIB).sum()
    }
}

const CONTAINER_MIB: u64 = 128;

/// A balancer and its nodes.
pub(crate) struct Simulation {
    start: Instant,
    now: Instant,
    fleet: Fleet,
    reader: FleetReader,
    nodes: Vec<SimNode>,
    demands: Vec<Demand>,
    calls: Vec<Call>,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    next_event: u64,
    seats: BTreeMap<usize, Seat>,
    waiting: Vec<(usize, Waiting)>,
    outcome: Outcome,
}

fn node_id(number: usize) -> NodeId {
    NodeId::new(format!("node-{number:03}"))
}

fn demand(number: usize) -> Demand {
    let id: FunctionId = format!("{number:026}").parse().expect("26 digits are an id");
    let app = format!("{number:026}").parse().expect("26 digits are an id");
    let spec = FunctionSpec { memory_mib: CONTAINER_MIB, ..FunctionSpec::with_defaults(id, app, "image:1") };
    Demand::of(&Function::new(spec))
}

impl Simulation {
    pub(crate) fn new(nodes: usize, model: NodeModel, functions: usize, placement: PlacementPolicy) -> Self {
        let start = Instant::now();
        let mut fleet = Fleet::new(FleetConfig { placement, ..FleetConfig::default() }, start);
        let member = |number| NodeConfig {
            id: node_id(number),
            address: Address::Remote(format!("10.0.0.{number}:1").into()),
            weight: None,
            zone: None,
        };
        fleet.set_members((0..nodes).map(member), start);
        let sim_node = |_| SimNode { model, pools: BTreeMap::new(), sequence: 0, report_due: false };
        let mut simulation = Self {
            start,
            now: start,
            reader: fleet.reader(),
            fleet,
            nodes: (0..nodes).map(sim_node).collect(),
            demands: (0..functions).map(demand).collect(),
            calls: Vec::new(),
            events: BinaryHeap::new(),
            next_event: 0,
            seats: BTreeMap::new(),
            waiting: Vec::new(),
            outcome: Outcome::default(),
        };
        (0..nodes).for_each(|node| simulation.report(node));
        simulation
    }

    /// Gives a node warm containers before the run.
    pub(crate) fn warm(&mut self, node: usize, function: usize, containers: u32) {
        self.nodes[node].pools.entry(function).or_default().idle = containers;
        self.report(node);
    }

    /// Runs until every call has its answer, or nothing happens any more.
    pub(crate) fn run(mut self, calls: Vec<Call>) -> Outcome {
        self.outcome.took = vec![None; calls.len()];
        for (number, call) in calls.iter().enumerate() {
            self.at(call.at, Event::Arrives { call: number });
        }
        self.calls = calls;
        self.at(TICK, Event::Tick);
        while let Some(Reverse((at, _, event))) = self.events.pop() {
            self.now = at;
            self.happen(event);
            self.let_in();
            let open = self.outcome.unanswered();
            assert!(at < self.start + RUN_MAX, "{open} calls are still open");
            if open == 0 {
                break;
            }
        }
        self.outcome.lasted = self.now - self.start;
        self.outcome
    }

    fn at(&mut self, after: Duration, event: Event) {
        self.next_event += 1;
        self.events.push(Reverse((self.now + after, self.next_event, event)));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrives { call } => self.arrives(call),
            Event::AtNode { call } => self.at_node(call),
            Event::Started { node, function } => {
                self.outcome.containers_started += 1;
                let pool = self.nodes[node].pools.entry(function).or_default();
                pool.starting -= 1;
                pool.idle += 1;
                self.take_next(node, function);
                self.changed(node);
            }
            Event::Ends { node, call } => {
                let function = self.calls[call].function;
                let pool = self.nodes[node].pools.entry(function).or_default();
                pool.busy -= 1;
                pool.idle += 1;
                self.at(ONE_WAY, Event::Answered { call });
                match self.passed_over(node, function) {
                    Some(other) => self.start_one(node, other),
                    None => self.take_next(node, function),
                }
                self.changed(node);
            }
            Event::Answered { call } => {
                self.outcome.took[call] = Some(self.now - (self.start + self.calls[call].at));
                let seat = self.seats.remove(&call).expect("the call had a seat");
                self.fleet.room().give_back(seat, self.now);
            }
            Event::Report { node } => self.report(node),
            Event::Tick => {
                for node in 0..self.nodes.len() {
                    assert_eq!(self.fleet.heard(&node_id(node), self.now), Heard::Known);
                }
                self.fleet.tick(self.now);
                self.at(TICK, Event::Tick);
            }
        }
    }

    /// As the edge does: behind those that wait, or at once, or into the room.
    fn arrives(&mut self, call: usize) {
        let demand = self.demands[self.calls[call].function];
        let room = Arc::clone(self.fleet.room());
        let seat = if room.is_waited_for(&demand.function) {
            None
        } else {
            self.reader.seat(&demand, &TriedSet::new(), self.now).ok()
        };
        if let Some(seat) = seat {
            return self.send(call, seat);
        }
        let waiting = room.enter(demand, None, self.now).expect("there is room to wait");
        self.waiting.push((call, waiting));
        self.outcome.waiting_max = self.outcome.waiting_max.max(self.waiting.len());
    }

    fn let_in(&mut self) {
        if self.waiting.len() == self.fleet.room().waiting() as usize {
            return;
        }
        let mut seated = Vec::new();
        self.waiting.retain_mut(|(call, waiting)| match waiting.try_take() {
            Some(seat) => {
                seated.push((*call, seat));
                false
            }
            None => true,
        });
        for (call, seat) in seated {
            self.send(call, seat);
        }
    }

    fn send(&mut self, call: usize, seat: Seat) {
        self.seats.insert(call, seat);
        self.at(ONE_WAY, Event::AtNode { call });
    }

    fn at_node(&mut self, call: usize) {
        let id = self.seats[&call].node().id().clone();
        let node = (0..self.nodes.len()).find(|&number| node_id(number) == id).expect("a node of the fleet");
        let function = self.calls[call].function;
        self.nodes[node].pools.entry(function).or_default().queue.push_back((call, self.now));
        self.take_next(node, function);
        self.start_one(node, function);
        self.changed(node);
    }

    fn take_next(&mut self, node: usize, function: usize) {
        let pool = self.nodes[node].pools.entry(function).or_default();
        if pool.idle > 0
            && let Some((call, _since)) = pool.queue.pop_front()
        {
            pool.idle -= 1;
            pool.busy += 1;
            self.at(self.calls[call].runs, Event::Ends { node, call });
        }
    }

    /// A function whose calls have waited long enough for an agent to let the container of another give way.
    fn passed_over(&self, node: usize, function: usize) -> Option<usize> {
        let waits_long = |pool: &Pool| {
            let since = pool.queue.front().map(|&(_, since)| since);
            pool.starting == 0 && since.is_some_and(|since| self.now - since >= FAIRNESS_AFTER)
        };
        let others = self.nodes[node].pools.iter().filter(|(other, _)| **other != function);
        others.into_iter().find(|(_, pool)| waits_long(pool)).map(|(other, _)| *other)
    }

    /// A container for each call that waits, while there is memory; an idle one of another function gives way.
    fn start_one(&mut self, node: usize, function: usize) {
        let sim = &mut self.nodes[node];
        let pool = sim.pools.entry(function).or_default();
        if pool.queue.len() <= pool.starting as usize {
            return;
        }
        let committed = sim.committed_mib(|pool| pool.idle + pool.busy + pool.starting);
        if committed + CONTAINER_MIB > sim.model.memory_mib {
            let gives_way = sim.pools.iter_mut().find(|(other, pool)| **other != function && pool.idle > 0);
            let Some((_, other)) = gives_way else { return };
            other.idle -= 1;
        }
        sim.pools.entry(function).or_default().starting += 1;
        let starting = sim.pools.values().map(|pool| pool.starting as usize).sum();
        let takes = sim.model.start;
        self.outcome.starting_max = self.outcome.starting_max.max(starting);
        self.at(takes, Event::Started { node, function });
    }

    fn changed(&mut self, node: usize) {
        if !std::mem::replace(&mut self.nodes[node].report_due, true) {
            self.at(REPORT_PAUSE, Event::Report { node });
        }
    }

    fn report(&mut self, node: usize) {
        let sim = &mut self.nodes[node];
        sim.report_due = false;
        sim.sequence += 1;
        let function = |(function, pool): (&usize, &Pool)| FunctionReport {
            id: self.demands[*function].function,
            revision: Revision(self.demands[*function].revision.0),
            idle: pool.idle,
            busy: pool.busy,
            starting: pool.starting,
            waiting: pool.queue.len() as u32,
        };
        let report = NodeReport {
            node: node_id(node),
            epoch: 1,
            sequence: sim.sequence,
            scope: ReportScope::Whole,
            draining: false,
            memory_total_mib: sim.model.memory_mib,
            memory_committed_mib: sim.committed_mib(|pool| pool.idle + pool.busy + pool.starting),
            memory_idle_mib: sim.committed_mib(|pool| pool.idle),
            cpu_total_millis: sim.model.cores * 1000,
            cpu_committed_millis: 0,
            calls: sim.pools.values().map(|pool| pool.busy + pool.queue.len() as u32).sum(),
            functions: sim.pools.iter().map(function).collect(),
            gone: Vec::new(),
            images: Some([Arc::from("image:1")].into()),
        };
        let applied = self.fleet.apply([&report], self.now);
        assert_eq!(applied.news, 1, "{applied:?}");
    }
}
