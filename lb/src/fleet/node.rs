//! One node as a balancer knows it: what its agent last said, corrected by the calls this balancer sent since.
//!
//! Owns the counters that workers share. All of them are estimates that the next report puts right, so they are
//! relaxed atomics and never block; nothing but a call's [`Seat`](super::seat::Seat) and the fleet's owner
//! writes them. Invariant: this balancer's own calls are counted exactly, whatever reports say.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU32, AtomicU64};
use std::time::{Duration, Instant};

use kiln_shared::ids::NodeId;
use kiln_shared::report::NodeReport;

use super::demand::Demand;
use super::ejection::Health;
use super::standing::{NodeState, Standing};

/// Calls that a node of unknown size may have before its load is compared with the others'.
const UNREPORTED_CALLS_FLOOR: u32 = 8;
/// Containers that a node is asked to start at a time, for each of its cores: what comes with them uses CPU.
const STARTS_PER_CORE: u32 = 2;
/// Containers that any node is asked to start at a time.
const STARTS_FLOOR: u32 = 4;
/// Share of its calls that a node is given when its slow start begins.
const SLOW_START_SHARE_MIN: f64 = 0.1;

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

/// Whether a refusal keeps calls off a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PauseState {
    None,
    Lasts,
    Over,
}

/// A node.
#[derive(Debug)]
pub struct Node {
    serial: NodeSerial,
    id: NodeId,
    address: Address,
    zone: Option<Arc<str>>,
    standing: AtomicU8,
    /// Kept off calls for what its calls came to; whatever its standing.
    ejected: AtomicU8,
    /// Calls of this balancer there.
    own_calls: AtomicU32,
    /// Calls of others there, by the last report.
    foreign_calls: AtomicU32,
    /// Calls it may have before its load is compared with the others'.
    calls_floor: AtomicU32,
    /// Containers that are being started: by the last report, and asked for by own calls since.
    starting: AtomicU32,
    memory_total_mib: AtomicU64,
    /// What could be committed, idle containers counted as free; less what own calls need since the report.
    memory_free_mib: AtomicI64,
    cpu_total_millis: AtomicU32,
    cpu_free_millis: AtomicI64,
    /// Zero of the times below.
    born: Instant,
    /// Since when it has this standing.
    standing_since_micros: AtomicU64,
    /// Until then no container is expected to be started there.
    busy_until_micros: AtomicU64,
    /// Until then it gets no calls, whatever it reports; 0 if there is no such time.
    paused_until_micros: AtomicU64,
    /// When its slow start began; 0 if there is none.
    slow_from_micros: AtomicU64,
    slow_for_micros: AtomicU64,
    health: Health,
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
            standing: AtomicU8::new(Standing::Heard as u8),
            ejected: AtomicU8::new(0),
            own_calls: AtomicU32::new(0),
            foreign_calls: AtomicU32::new(0),
            calls_floor: AtomicU32::new(UNREPORTED_CALLS_FLOOR),
            starting: AtomicU32::new(0),
            memory_total_mib: AtomicU64::new(u64::MAX),
            memory_free_mib: AtomicI64::new(i64::MAX / 2),
            cpu_total_millis: AtomicU32::new(u32::MAX),
            cpu_free_millis: AtomicI64::new(i64::MAX / 2),
            born: now,
            standing_since_micros: AtomicU64::new(0),
            busy_until_micros: AtomicU64::new(0),
            paused_until_micros: AtomicU64::new(0),
            slow_from_micros: AtomicU64::new(0),
            slow_for_micros: AtomicU64::new(0),
            health: Health::default(),
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
        self.standing().state()
    }

    /// What its state follows from.
    pub fn standing(&self) -> Standing {
        Standing::from_byte(self.standing.load(Relaxed))
    }

    /// Since when it has this standing.
    pub fn standing_since(&self) -> Instant {
        self.born + Duration::from_micros(self.standing_since_micros.load(Relaxed))
    }

    /// True if it is up and not ejected: calls may go there.
    pub fn takes_calls(&self) -> bool {
        self.standing.load(Relaxed) == Standing::Heard as u8 && !self.is_ejected()
    }

    /// True if what became of its calls keeps further ones off.
    pub fn is_ejected(&self) -> bool {
        self.ejected.load(Relaxed) != 0
    }

    pub(crate) fn set_ejected(&self, ejected: bool) {
        self.ejected.store(ejected.into(), Relaxed);
    }

    /// Returns true if that is another standing than before.
    pub(crate) fn set_standing(&self, standing: Standing, now: Instant) -> bool {
        let is_new = self.standing.swap(standing as u8, Relaxed) != standing as u8;
        if is_new {
            self.standing_since_micros.store(self.micros(now), Relaxed);
        }
        is_new
    }

    /// What became of this balancer's calls there.
    pub(crate) fn health(&self) -> &Health {
        &self.health
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

    /// Containers that are being started there.
    pub fn starting(&self) -> u32 {
        self.starting.load(Relaxed)
    }

    /// Memory that another container could have, in MiB, if idle ones give way; below 0 if overcommitted.
    pub fn memory_free_mib(&self) -> i64 {
        self.memory_free_mib.load(Relaxed)
    }

    /// Memory for containers in MiB; `None` before the first report.
    pub fn memory_total_mib(&self) -> Option<u64> {
        Some(self.memory_total_mib.load(Relaxed)).filter(|&total| total != u64::MAX)
    }

    /// CPU for containers in thousandths of a core; `None` before the first report.
    pub fn cpu_total_millis(&self) -> Option<u32> {
        Some(self.cpu_total_millis.load(Relaxed)).filter(|&total| total != u32::MAX)
    }

    /// CPU that another container could commit, in thousandths of a core.
    pub fn cpu_free_millis(&self) -> i64 {
        self.cpu_free_millis.load(Relaxed)
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

    /// True if as many containers are being started there as it is asked to start at a time: two for each core.
    pub fn starts_enough(&self) -> bool {
        // Of a node that never reported, nothing would ever end the count.
        self.memory_total_mib().is_some()
            && self.starting() >= (self.calls_floor() * STARTS_PER_CORE).max(STARTS_FLOOR)
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
    pub(crate) fn pause(&self, standing: Standing, now: Instant, pause: Duration) {
        self.paused_until_micros.store(self.micros(now + pause).max(1), Relaxed);
        self.set_standing(standing, now);
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

    /// The share of its calls that it is given, 0.1 to 1: less than 1 while its slow start lasts.
    pub fn share(&self, now: Instant) -> f64 {
        let from = self.slow_from_micros.load(Relaxed);
        if from == 0 {
            return 1.0;
        }
        let passed = self.micros(now).saturating_sub(from) as f64;
        (passed / self.slow_for_micros.load(Relaxed).max(1) as f64).clamp(SLOW_START_SHARE_MIN, 1.0)
    }

    pub(crate) fn start_slowly(&self, now: Instant, over: Duration) {
        self.slow_for_micros.store(over.as_micros() as u64, Relaxed);
        self.slow_from_micros.store(self.micros(now).max(1), Relaxed);
    }

    /// Spares readers the look at a slow start that is over.
    pub(crate) fn end_slow_start(&self, now: Instant) {
        if self.share(now) >= 1.0 {
            self.slow_from_micros.store(0, Relaxed);
        }
    }

    pub(crate) fn enter(&self) {
        self.own_calls.fetch_add(1, Relaxed);
    }

    pub(crate) fn leave(&self) {
        self.own_calls.fetch_sub(1, Relaxed);
    }

    /// Counts a container that is about to be started: memory and CPU are committed to it.
    pub(crate) fn start(&self, demand: &Demand) {
        self.starting.fetch_add(1, Relaxed);
        self.occupy(demand.memory_mib);
        if demand.cpu_millis > 0 {
            self.cpu_free_millis.fetch_sub(i64::from(demand.cpu_millis), Relaxed);
        }
    }

    /// An idle container serves a call from now on: nobody else may claim its memory.
    pub(crate) fn occupy(&self, memory_mib: u64) {
        self.memory_free_mib.fetch_sub(memory_mib as i64, Relaxed);
    }

    /// The container is idle again. Its CPU stays committed, as reports have it.
    pub(crate) fn vacate(&self, memory_mib: u64) {
        self.memory_free_mib.fetch_add(memory_mib as i64, Relaxed);
    }

    /// Takes a report's numbers; `starting` is the sum over its functions.
    pub(crate) fn learn(&self, report: &NodeReport, starting: u32) {
        let cores = report.cpu_total_millis.div_ceil(1000).max(1);
        let memory_taken = report.memory_committed_mib.saturating_sub(report.memory_idle_mib);
        self.foreign_calls.store(report.calls.saturating_sub(self.own_calls.load(Relaxed)), Relaxed);
        self.calls_floor.store(cores, Relaxed);
        self.starting.store(starting, Relaxed);
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
