//! One node as a balancer knows it: what its agent last said, corrected by the calls this balancer sent since.
//!
//! Owns the counters that workers share. All of them are estimates that the next report puts right, so they are
//! relaxed atomics and never block; nothing but a call's [`Seat`](super::seat::Seat) and the fleet's owner
//! writes them. Invariant: this balancer's own calls are counted exactly, whatever reports say.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU32, AtomicU64};
use std::time::{Duration, Instant};

use kiln_shared::function::{Function, Revision};
use kiln_shared::ids::{FunctionId, NodeId};
use kiln_shared::report::{FunctionReport, NodeReport};

/// Calls that a node of unknown size may have before its load is compared with the others'.
const UNREPORTED_CALLS_FLOOR: u32 = 8;

/// Names a node within this process, also after it left the fleet and came back under the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeSerial(pub(crate) u32);

impl NodeSerial {
    /// The number behind the name: counts up from 0 and is never used again.
    pub fn get(self) -> u32 {
        self.0
    }
}

/// How calls get to a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// Its agent runs in this process.
    Local,
    /// `host:port` of its agent.
    Remote(Arc<str>),
}

/// Whether a node is given calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum NodeState {
    /// Takes calls.
    Up = 0,
    /// Finishes its calls and takes no more.
    Draining = 1,
    /// Silent or unreachable for a short while: gets no calls, is not forgotten.
    Suspect = 2,
    /// Silent for long: what was known of its containers is forgotten.
    Down = 3,
}

impl NodeState {
    /// The state in a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Draining => "draining",
            Self::Suspect => "suspect",
            Self::Down => "down",
        }
    }
}

/// Whether a refusal keeps calls off a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PauseState {
    None,
    Lasts,
    Over,
}

/// What a function asks of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// The function.
    pub function: FunctionId,
    /// Its revision.
    pub revision: Revision,
    /// Memory of one container in MiB, `/tmp` included.
    pub memory_mib: u64,
    /// CPU of one container in thousandths of a core; 0 commits none.
    pub cpu_millis: u32,
}

impl Demand {
    /// The demand of one more container of `function`.
    pub fn of(function: &Function) -> Self {
        let spec = &function.spec;
        Self {
            function: spec.id,
            revision: function.revision,
            memory_mib: spec.memory_mib + u64::from(spec.tmpfs_mib.unwrap_or(0)),
            cpu_millis: spec.cpu_millis.unwrap_or(0),
        }
    }

    pub(crate) fn slot_key(&self) -> SlotKey {
        SlotKey { function: self.function, revision: self.revision }
    }
}

/// Names the containers of one revision of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotKey {
    function: FunctionId,
    revision: Revision,
}

impl From<&FunctionReport> for SlotKey {
    fn from(report: &FunctionReport) -> Self {
        Self { function: report.id, revision: report.revision }
    }
}

impl Hash for SlotKey {
    /// A revision is a hash already, and of the function's id too.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.revision.0);
    }
}

/// Passes a revision on as its own hash.
#[derive(Debug, Clone, Copy, Default)]
pub struct RevisionHasher(u64);

impl Hasher for RevisionHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("only revisions are hashed");
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// A node's containers by revision of a function.
pub type SlotMap = HashMap<SlotKey, Arc<Slots>, BuildHasherDefault<RevisionHasher>>;

/// Containers of one revision on one node and the calls they have.
#[derive(Debug, Default)]
pub struct Slots {
    /// Containers that are ready, idle or busy, by the last report.
    ready: AtomicU32,
    /// Calls of others there, by the last report.
    foreign_calls: AtomicU32,
    /// Calls of this balancer there.
    own_calls: AtomicU32,
}

impl Slots {
    /// Warm slots that a call would find free; 0 if calls wait for one.
    pub fn idle(&self) -> u32 {
        let calls = self.foreign_calls.load(Relaxed).saturating_add(self.own_calls.load(Relaxed));
        self.ready.load(Relaxed).saturating_sub(calls)
    }

    pub(crate) fn enter(&self) {
        self.own_calls.fetch_add(1, Relaxed);
    }

    pub(crate) fn leave(&self) {
        self.own_calls.fetch_sub(1, Relaxed);
    }

    pub(crate) fn learn(&self, report: &FunctionReport) {
        let calls = report.busy.saturating_add(report.waiting);
        self.foreign_calls.store(calls.saturating_sub(self.own_calls.load(Relaxed)), Relaxed);
        self.ready.store(report.idle.saturating_add(report.busy), Relaxed);
    }
}

/// A node.
#[derive(Debug)]
pub struct Node {
    serial: NodeSerial,
    id: NodeId,
    address: Address,
    zone: Option<Arc<str>>,
    state: AtomicU8,
    /// Calls of this balancer there.
    own_calls: AtomicU32,
    /// Calls of others there, by the last report.
    foreign_calls: AtomicU32,
    /// Calls it may have before its load is compared with the others'.
    calls_floor: AtomicU32,
    memory_total_mib: AtomicU64,
    /// What could be committed, idle containers counted as free; less what own calls need since the report.
    memory_free_mib: AtomicI64,
    cpu_total_millis: AtomicU32,
    cpu_free_millis: AtomicI64,
    /// Zero of the two times below.
    born: Instant,
    /// Until then no container is expected to be started there.
    busy_until_micros: AtomicU64,
    /// Until then it gets no calls, whatever it reports; 0 if there is no such time.
    paused_until_micros: AtomicU64,
}

impl Node {
    pub(crate) fn new(
        serial: NodeSerial,
        id: NodeId,
        address: Address,
        zone: Option<Arc<str>>,
        now: Instant,
    ) -> Self {
        Self {
            serial,
            id,
            address,
            zone,
            state: AtomicU8::new(NodeState::Up as u8),
            own_calls: AtomicU32::new(0),
            foreign_calls: AtomicU32::new(0),
            calls_floor: AtomicU32::new(UNREPORTED_CALLS_FLOOR),
            memory_total_mib: AtomicU64::new(u64::MAX),
            memory_free_mib: AtomicI64::new(i64::MAX / 2),
            cpu_total_millis: AtomicU32::new(u32::MAX),
            cpu_free_millis: AtomicI64::new(i64::MAX / 2),
            born: now,
            busy_until_micros: AtomicU64::new(0),
            paused_until_micros: AtomicU64::new(0),
        }
    }

    /// Its name within this process; what connection pools are kept by.
    pub fn serial(&self) -> NodeSerial {
        self.serial
    }

    /// Its name in the fleet.
    pub fn id(&self) -> &NodeId {
        &self.id
    }

    /// How calls get there.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Where it stands, in the operator's words.
    pub fn zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }

    /// Whether it is given calls.
    pub fn state(&self) -> NodeState {
        match self.state.load(Relaxed) {
            0 => NodeState::Up,
            1 => NodeState::Draining,
            2 => NodeState::Suspect,
            _ => NodeState::Down,
        }
    }

    pub(crate) fn set_state(&self, state: NodeState) {
        self.state.store(state as u8, Relaxed);
    }

    /// Calls that run or wait there, those of other balancers as of the last report.
    pub fn load(&self) -> u32 {
        self.own_calls.load(Relaxed).saturating_add(self.foreign_calls.load(Relaxed))
    }

    /// Calls that this balancer has there.
    pub fn own_calls(&self) -> u32 {
        self.own_calls.load(Relaxed)
    }

    /// Calls it may have before its load is compared with the others': one for each core.
    pub fn calls_floor(&self) -> u32 {
        self.calls_floor.load(Relaxed)
    }

    /// Memory that another container could have, in MiB, if idle ones give way; below 0 if overcommitted.
    pub fn memory_free_mib(&self) -> i64 {
        self.memory_free_mib.load(Relaxed)
    }

    /// Memory for containers in MiB; `None` before the first report.
    pub fn memory_total_mib(&self) -> Option<u64> {
        Some(self.memory_total_mib.load(Relaxed)).filter(|&total| total != u64::MAX)
    }

    /// False if a container of this size is larger than the whole node.
    pub fn could_ever_fit(&self, demand: &Demand) -> bool {
        demand.memory_mib <= self.memory_total_mib.load(Relaxed)
            && demand.cpu_millis <= self.cpu_total_millis.load(Relaxed)
    }

    /// True if a container of this size could be started now.
    pub fn has_room(&self, demand: &Demand) -> bool {
        demand.memory_mib as i64 <= self.memory_free_mib.load(Relaxed)
            && (demand.cpu_millis == 0 || i64::from(demand.cpu_millis) <= self.cpu_free_millis.load(Relaxed))
    }

    /// True if it refused a call for want of room a moment ago.
    pub fn is_busy(&self, now: Instant) -> bool {
        let until = self.busy_until_micros.load(Relaxed);
        until != 0 && self.micros(now) < until
    }

    pub(crate) fn set_busy(&self, now: Instant, pause: Duration) {
        self.busy_until_micros.store(self.micros(now + pause), Relaxed);
    }

    /// Gives it no calls until then, on the word of a refusal.
    pub(crate) fn pause(&self, state: NodeState, until: Instant) {
        self.paused_until_micros.store(self.micros(until).max(1), Relaxed);
        self.set_state(state);
    }

    pub(crate) fn pause_state(&self, now: Instant) -> PauseState {
        match self.paused_until_micros.load(Relaxed) {
            0 => PauseState::None,
            until if self.micros(now) < until => PauseState::Lasts,
            _ => PauseState::Over,
        }
    }

    pub(crate) fn end_pause(&self) {
        self.paused_until_micros.store(0, Relaxed);
    }

    pub(crate) fn enter(&self) {
        self.own_calls.fetch_add(1, Relaxed);
    }

    pub(crate) fn leave(&self) {
        self.own_calls.fetch_sub(1, Relaxed);
    }

    /// Counts a container that is about to be started.
    pub(crate) fn commit(&self, demand: &Demand) {
        self.memory_free_mib.fetch_sub(demand.memory_mib as i64, Relaxed);
        if demand.cpu_millis > 0 {
            self.cpu_free_millis.fetch_sub(i64::from(demand.cpu_millis), Relaxed);
        }
    }

    pub(crate) fn learn(&self, report: &NodeReport) {
        let cores = report.cpu_total_millis.div_ceil(1000).max(1);
        let memory_taken = report.memory_committed_mib.saturating_sub(report.memory_idle_mib);
        self.foreign_calls.store(report.calls.saturating_sub(self.own_calls.load(Relaxed)), Relaxed);
        self.calls_floor.store(cores, Relaxed);
        self.memory_total_mib.store(report.memory_total_mib, Relaxed);
        self.memory_free_mib.store(difference(report.memory_total_mib, memory_taken), Relaxed);
        self.cpu_total_millis.store(report.cpu_total_millis, Relaxed);
        let cpu_free = difference(report.cpu_total_millis.into(), report.cpu_committed_millis.into());
        self.cpu_free_millis.store(cpu_free, Relaxed);
        self.busy_until_micros.store(0, Relaxed);
    }

    fn micros(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.born).as_micros() as u64
    }
}

fn difference(total: u64, taken: u64) -> i64 {
    i64::try_from(i128::from(total) - i128::from(taken)).unwrap_or(i64::MAX / 2)
}
