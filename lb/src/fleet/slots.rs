//! Containers of one revision on one node, and the calls they have.
//!
//! Owns counters that workers share and reports put right; relaxed atomics, never a lock. Invariant: this balancer's
//! own calls are counted exactly, whatever reports say.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use kiln_shared::report::FunctionReport;

use super::demand::{RevisionHasher, SlotKey};

/// A node's containers by revision of a function.
pub(crate) type SlotMap = HashMap<SlotKey, Arc<Slots>, BuildHasherDefault<RevisionHasher>>;

/// Containers of one revision on one node and the calls they have.
#[derive(Debug, Default)]
pub struct Slots {
    /// Containers that are ready, idle or busy, by the last report.
    ready: AtomicU32,
    /// Containers that are being started, by the last report.
    starting: AtomicU32,
    /// Calls of others there, by the last report.
    foreign_calls: AtomicU32,
    /// Calls of this balancer there.
    own_calls: AtomicU32,
}

impl Slots {
    /// Warm slots that a call would find free; 0 if calls wait for one.
    pub fn idle(&self) -> u32 {
        self.ready().saturating_sub(self.calls())
    }

    /// Slots that are free, or will be when the containers that are being started are ready; 0 if as many calls wait.
    pub fn soon_idle(&self) -> u32 {
        (self.ready() + self.starting()).saturating_sub(self.calls())
    }

    /// Calls beyond the containers that are ready: those that wait for one that is being started are the next for any.
    pub fn queued(&self) -> u32 {
        self.calls().saturating_sub(self.ready())
    }

    /// Containers that are ready, idle or busy.
    pub fn ready(&self) -> u32 {
        self.ready.load(Relaxed)
    }

    /// Containers that are being started.
    pub fn starting(&self) -> u32 {
        self.starting.load(Relaxed)
    }

    /// Calls that run or wait there, those of other balancers as of the last report.
    pub fn calls(&self) -> u32 {
        self.foreign_calls.load(Relaxed).saturating_add(self.own_calls.load(Relaxed))
    }

    pub(crate) fn enter(&self) {
        self.own_calls.fetch_add(1, Relaxed);
    }

    pub(crate) fn leave(&self) {
        self.own_calls.fetch_sub(1, Relaxed);
    }

    /// Counts a container less, until the next report: another function's takes its room.
    pub(crate) fn give_up_one(&self) {
        let _was = self.ready.try_update(Relaxed, Relaxed, |ready| ready.checked_sub(1));
    }

    pub(crate) fn own_calls(&self) -> u32 {
        self.own_calls.load(Relaxed)
    }

    /// A report says that there is nothing of it any more.
    pub(crate) fn learn_gone(&self) {
        self.foreign_calls.store(0, Relaxed);
        self.ready.store(0, Relaxed);
        self.starting.store(0, Relaxed);
    }

    /// Takes a report's numbers. Only the fleet's owner calls it.
    pub(crate) fn learn(&self, report: &FunctionReport) {
        let calls = report.busy.saturating_add(report.waiting);
        self.foreign_calls.store(calls.saturating_sub(self.own_calls.load(Relaxed)), Relaxed);
        self.ready.store(report.idle.saturating_add(report.busy).min(COUNT_MAX), Relaxed);
        self.starting.store(report.starting.min(COUNT_MAX), Relaxed);
    }
}

/// Most containers of one kind of one function on a node that are counted: the sum over all functions that a node may have,
/// twice as many while a report is taken, must not overflow.
const COUNT_MAX: u32 = 1 << 14;
