//! What the fleet's owner keeps of one node.
//!
//! Owns the order of its reports and what follows from them for the indexes that views share. Invariant: what the
//! indexes have of a node is what its slots and images here are.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_shared::report::{FunctionReport, NodeReport, ReportScope};

use super::bounds::{self, Absurd};
use super::demand::{ImageKey, SlotKey};
use super::detail::{FunctionDetail, NodeDetail};
use super::ejection::Ejection;
use super::index::Index;
use super::liveness::LivenessPolicy;
use super::membership::NodeConfig;
use super::node::{Address, Node, NodeSerial, PauseState};
use super::ring::Weight;
use super::slots::{SlotMap, Slots};
use super::standing::{NodeState, Standing};
use super::view::Member;

/// What views share of all nodes, and whether a new view is due.
#[derive(Debug)]
pub(crate) struct Sight {
    pub(crate) slots: Arc<Index<SlotKey, Arc<Slots>>>,
    pub(crate) images: Arc<Index<ImageKey, ()>>,
    /// Functions or images came or went.
    pub(crate) view: bool,
    /// Members or weights changed.
    pub(crate) ring: bool,
    /// Nodes that may have a place for a call that waits.
    pub(crate) touched: Vec<NodeSerial>,
}

impl Sight {
    pub(crate) fn new() -> Self {
        let (slots, images) = (Arc::new(Index::new()), Arc::new(Index::new()));
        Self { slots, images, view: false, ring: false, touched: Vec::new() }
    }

    fn add_slots(&mut self, key: SlotKey, node: NodeSerial, slots: Arc<Slots>) {
        Arc::make_mut(&mut self.slots).insert(key, key.hash(), node, slots);
        self.view = true;
    }

    fn remove_slots(&mut self, key: SlotKey, node: NodeSerial) {
        Arc::make_mut(&mut self.slots).remove(key, key.hash(), node);
        self.view = true;
    }

    fn add_image(&mut self, image: ImageKey, node: NodeSerial) {
        Arc::make_mut(&mut self.images).insert(image, image.get(), node, ());
        self.view = true;
    }

    fn remove_image(&mut self, image: ImageKey, node: NodeSerial) {
        Arc::make_mut(&mut self.images).remove(image, image.get(), node);
        self.view = true;
    }
}

/// What a report came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    Applied,
    Stale,
    Gap,
    Absurd(Absurd),
}

/// Which report was the last.
#[derive(Debug, Clone, Copy)]
struct LastReport {
    epoch: u64,
    epoch_before: Option<u64>,
    sequence: u64,
    draining: bool,
    /// What it said was forgotten since, or it was not whole to begin with.
    needs_whole: bool,
}

/// A member and what is known of it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) node: Arc<Node>,
    pub(crate) ejection: Ejection,
    given_weight: Option<Weight>,
    weight: Weight,
    slots: SlotMap,
    images: Arc<[Arc<str>]>,
    /// Containers that are being started, over all slots.
    starting: u32,
    last: Option<LastReport>,
    heard_at: Option<Instant>,
    link_lost: bool,
}

impl Entry {
    pub(crate) fn new(serial: NodeSerial, member: NodeConfig, now: Instant) -> Self {
        Self {
            node: Arc::new(Node::new(serial, member.id, member.address, member.zone, now)),
            ejection: Ejection::new(now),
            given_weight: member.weight,
            weight: member.weight.unwrap_or_default(),
            slots: SlotMap::default(),
            images: Arc::default(),
            starting: 0,
            last: None,
            heard_at: None,
            link_lost: false,
        }
    }

    pub(crate) fn is_same_place(&self, member: &NodeConfig) -> bool {
        *self.node.address() == member.address && self.node.zone() == member.zone.as_deref()
    }

    pub(crate) fn weight(&self) -> Weight {
        self.weight
    }

    /// Returns true if that changes its weight.
    pub(crate) fn give_weight(&mut self, weight: Option<Weight>) -> bool {
        self.given_weight = weight;
        let weight = self.wanted_weight();
        std::mem::replace(&mut self.weight, weight) != weight
    }

    fn wanted_weight(&self) -> Weight {
        let by_memory = || self.node.memory_total_mib().map(Weight::of_memory_mib);
        self.given_weight.or_else(by_memory).unwrap_or_default()
    }

    pub(crate) fn member(&self, zone: Option<&str>) -> Member {
        let is_near = zone.is_none_or(|zone| self.node.zone() == Some(zone));
        Member { node: Arc::clone(&self.node), weight: self.weight, is_near }
    }

    pub(crate) fn needs_whole(&self) -> bool {
        self.last.is_none_or(|last| last.needs_whole)
    }

    /// Takes a report. A node without a container whose life is new, or that was down, starts slowly over `slow_start`.
    pub(crate) fn apply(
        &mut self,
        report: &NodeReport,
        now: Instant,
        liveness: &LivenessPolicy,
        slow_start: Duration,
        sight: &mut Sight,
    ) -> News {
        if self.last.is_some_and(|last| last.makes_stale(report)) {
            return News::Stale;
        }
        if self.last.is_some_and(|last| last.is_repeated_by(report)) {
            // A sign of life. What was sent since the first time is not in it, so nothing is learned from it.
            self.heard(now);
            self.settle(now, liveness, sight);
            return News::Stale;
        }
        if let Err(absurd) = bounds::check(report, self.functions_after(report)) {
            return News::Absurd(absurd);
        }
        self.heard(now);
        if report.scope != ReportScope::Whole && !self.last.is_some_and(|last| last.is_followed_by(report)) {
            self.settle(now, liveness, sight);
            return News::Gap;
        }
        let is_new_life = self.last.is_none_or(|last| last.epoch != report.epoch);
        let was_down = self.node.state() == NodeState::Down;
        let epoch_before =
            self.last.and_then(|last| if is_new_life { Some(last.epoch) } else { last.epoch_before });
        if is_new_life {
            self.node.end_pause();
            self.ejection.forget(self.node.health(), now);
            self.node.set_ejected(false);
            self.forget_all(sight);
        }
        self.last = Some(LastReport {
            epoch: report.epoch,
            epoch_before,
            sequence: report.sequence,
            draining: report.draining,
            needs_whole: false,
        });
        if (is_new_life || was_down) && report.functions.is_empty() && !slow_start.is_zero() {
            self.node.start_slowly(now, slow_start);
        }
        self.learn_slots(report, sight);
        self.learn_images(report, sight);
        self.node.learn(report, self.starting);
        if report.draining {
            self.node.end_pause();
        }
        self.settle(now, liveness, sight);
        sight.touched.push(self.node.serial());
        let weight = self.wanted_weight();
        if weight != self.weight {
            self.weight = weight;
            sight.ring = true;
        }
        News::Applied
    }

    /// True if its link has been broken for so long that it may be another machine by now, or none.
    pub(crate) fn is_over(&self, now: Instant, forget_after: Duration) -> bool {
        let silent = self.heard_at.map(|heard_at| now.saturating_duration_since(heard_at));
        self.link_lost && silent.is_some_and(|silent| silent >= forget_after) && self.node.own_calls() == 0
    }

    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard_at = Some(now);
        self.link_lost = false;
    }

    /// Its link broke. That counts as the last that was heard of it, so that it is down after a while.
    pub(crate) fn lost(&mut self, now: Instant) {
        self.heard_at.get_or_insert(now);
        self.link_lost = true;
    }

    /// Works its standing out anew.
    pub(crate) fn settle(&mut self, now: Instant, liveness: &LivenessPolicy, sight: &mut Sight) {
        match self.node.pause_state(now) {
            PauseState::Lasts => return,
            PauseState::Over => self.node.end_pause(),
            PauseState::None => {}
        }
        let silence = match self.heard_at {
            Some(at) if *self.node.address() != Address::Local => now.saturating_duration_since(at),
            _ => Duration::ZERO,
        };
        let standing = if silence >= liveness.down_after {
            self.forget_all(sight);
            Standing::Gone
        } else if self.link_lost {
            Standing::LinkLost
        } else if silence >= liveness.suspect_after() {
            Standing::Silent
        } else if self.last.is_some_and(|last| last.draining) {
            Standing::Draining
        } else {
            Standing::Heard
        };
        if self.node.set_standing(standing, now) && standing == Standing::Heard {
            sight.touched.push(self.node.serial());
        }
    }

    /// Forgets its containers and images.
    pub(crate) fn forget_all(&mut self, sight: &mut Sight) {
        let serial = self.node.serial();
        self.slots.drain().for_each(|(key, _)| sight.remove_slots(key, serial));
        let images = std::mem::take(&mut self.images);
        images.iter().for_each(|image| sight.remove_image(ImageKey::of(image), serial));
        self.starting = 0;
        if let Some(last) = &mut self.last {
            last.needs_whole = true;
        }
    }

    fn functions_after(&self, report: &NodeReport) -> usize {
        if report.scope == ReportScope::Whole {
            return report.functions.len();
        }
        let is_new = |function: &&FunctionReport| !self.slots.contains_key(&SlotKey::from(*function));
        let new = report.functions.iter().filter(is_new).count();
        let gone = report.gone.iter().filter(|&&gone| self.slots.contains_key(&SlotKey::from(gone))).count();
        self.slots.len() + new - gone.min(self.slots.len())
    }

    fn learn_slots(&mut self, report: &NodeReport, sight: &mut Sight) {
        for function in &report.functions {
            let key = SlotKey::from(function);
            if !self.slots.contains_key(&key) {
                let slots: Arc<Slots> = Arc::default();
                sight.add_slots(key, self.node.serial(), Arc::clone(&slots));
                self.slots.insert(key, slots);
            }
            let slots = &self.slots[&key];
            self.starting -= slots.starting();
            slots.learn(function);
            self.starting += slots.starting();
        }
        match report.scope {
            ReportScope::Changes { .. } => {
                report.gone.iter().for_each(|&gone| self.lose_slots(SlotKey::from(gone), sight));
            }
            ReportScope::Whole if self.slots.len() != report.functions.len() => {
                let there: HashSet<SlotKey> = report.functions.iter().map(SlotKey::from).collect();
                let gone: Vec<SlotKey> =
                    self.slots.keys().filter(|key| !there.contains(key)).copied().collect();
                for key in gone {
                    self.lose_slots(key, sight);
                }
            }
            ReportScope::Whole => {}
        }
    }

    /// Slots that this balancer has calls on stay, without containers, so that the calls go on being counted there.
    fn lose_slots(&mut self, key: SlotKey, sight: &mut Sight) {
        let Some(slots) = self.slots.get(&key) else { return };
        self.starting -= slots.starting();
        slots.learn_gone();
        if slots.own_calls() == 0 {
            self.slots.remove(&key);
            sight.remove_slots(key, self.node.serial());
        }
    }

    fn learn_images(&mut self, report: &NodeReport, sight: &mut Sight) {
        let Some(images) = report.images.as_ref().filter(|images| **images != self.images) else { return };
        let serial = self.node.serial();
        let there: HashSet<&Arc<str>> = images.iter().collect();
        let known: HashSet<&Arc<str>> = self.images.iter().collect();
        known.difference(&there).for_each(|image| sight.remove_image(ImageKey::of(image), serial));
        there.difference(&known).for_each(|image| sight.add_image(ImageKey::of(image), serial));
        self.images = Arc::clone(images);
    }

    pub(crate) fn detail(&self, now: Instant) -> NodeDetail {
        let node = &self.node;
        let ago = |then: Instant| now.saturating_duration_since(then);
        let mut functions: Vec<FunctionDetail> =
            self.slots.iter().map(|(key, slots)| FunctionDetail::of(*key, slots)).collect();
        functions.sort_unstable_by_key(|function| (function.function, function.revision));
        NodeDetail {
            id: node.id().clone(),
            serial: node.serial(),
            address: node.address().clone(),
            zone: node.zone().map(Arc::from),
            weight: self.weight,
            state: node.state(),
            reason: node.standing().as_str(),
            state_for: ago(node.standing_since()),
            share: node.share(now),
            ejected: self.ejection.current(),
            heard_ago: self.heard_at.map(ago),
            memory_total_mib: node.memory_total_mib(),
            memory_free_mib: node.memory_total_mib().map(|_| node.memory_free_mib()),
            cpu_total_millis: node.cpu_total_millis(),
            calls: node.load(),
            own_calls: node.own_calls(),
            starting: node.starting(),
            functions,
            images: Arc::clone(&self.images),
        }
    }
}

impl LastReport {
    fn makes_stale(&self, report: &NodeReport) -> bool {
        self.epoch_before == Some(report.epoch)
            || (self.epoch == report.epoch && report.sequence < self.sequence)
            || (self.is_same(report) && report.scope != ReportScope::Whole)
    }

    /// The same whole report again, as an agent without news sends it every few seconds and when it links up anew.
    fn is_repeated_by(&self, report: &NodeReport) -> bool {
        self.is_same(report) && !self.needs_whole
    }

    fn is_same(&self, report: &NodeReport) -> bool {
        self.epoch == report.epoch && self.sequence == report.sequence
    }

    fn is_followed_by(&self, changes: &NodeReport) -> bool {
        let follows = changes.scope == ReportScope::Changes { since: self.sequence };
        !self.needs_whole && self.epoch == changes.epoch && follows
    }
}
