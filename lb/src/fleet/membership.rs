//! Who is in the fleet and how it is doing: members and reports in, views out.
//!
//! Owns the one writable copy. Reports that change only numbers write them into the counters that views share; a
//! new view is published only when members, weights or the set of functions on a node change, once per batch.
//! Invariant: a report that is older than one already applied changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use kiln_shared::ids::NodeId;
use kiln_shared::report::NodeReport;

use super::node::{Address, Node, NodeSerial, NodeState, PauseState, SlotKey, SlotMap};
use super::ring::{Ring, Weight};
use super::view::{FleetReader, Member, View};

/// A node as the operator, or its own hello, describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Its name.
    pub id: NodeId,
    /// How calls get there.
    pub address: Address,
    /// Its share of the functions; `None` follows the memory that it reports.
    pub weight: Option<Weight>,
    /// Where it stands, in the operator's words.
    pub zone: Option<Arc<str>>,
}

/// When silence means what. Nodes of this process, and those that never reported, are never silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LivenessPolicy {
    /// A node that did not report for this long gets no calls.
    pub suspect_after: Duration,
    /// A node that did not report for this long has lost its containers, as far as calls are concerned.
    pub down_after: Duration,
}

impl Default for LivenessPolicy {
    /// Three missed beats of 3 s, and a minute.
    fn default() -> Self {
        Self { suspect_after: Duration::from_secs(9), down_after: Duration::from_mins(1) }
    }
}

/// What became of a batch of reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Applied {
    /// Reports that were news.
    pub news: usize,
    /// Reports older than one that was applied before, or of an earlier life of the agent.
    pub stale: usize,
    /// Reports of nodes that are not members.
    pub strangers: usize,
}

/// Which report was the last.
#[derive(Debug, Clone, Copy)]
struct LastReport {
    epoch: u64,
    epoch_before: Option<u64>,
    sequence: u64,
    at: Instant,
    draining: bool,
}

#[derive(Debug)]
struct Entry {
    node: Arc<Node>,
    given_weight: Option<Weight>,
    weight: Weight,
    slots: Arc<SlotMap>,
    last: Option<LastReport>,
}

/// The fleet's owner. Give it to one task.
#[derive(Debug)]
pub struct Fleet {
    entries: BTreeMap<NodeId, Entry>,
    ring: Arc<Ring>,
    liveness: LivenessPolicy,
    next_serial: u32,
    current: Arc<ArcSwap<View>>,
}

/// What has to be made anew for readers.
#[derive(Debug, Clone, Copy, Default)]
struct Changes {
    view: bool,
    ring: bool,
}

impl Fleet {
    /// A fleet without nodes.
    pub fn new(liveness: LivenessPolicy, now: Instant) -> Self {
        let ring = Arc::new(Ring::new(&BTreeMap::new()));
        let view = View::new(Arc::clone(&ring), Box::default(), now);
        Self {
            entries: BTreeMap::new(),
            ring,
            liveness,
            next_serial: 0,
            current: Arc::new(ArcSwap::from_pointee(view)),
        }
    }

    /// A reader for one worker.
    pub fn reader(&self) -> FleetReader {
        FleetReader::new(Arc::clone(&self.current))
    }

    /// The view that readers see now.
    pub fn view(&self) -> Arc<View> {
        self.current.load_full()
    }

    /// Makes `members` the fleet. Nodes that stay, with the same address and zone, keep what is known of them;
    /// of two members with one id the later counts.
    pub fn set_members(&mut self, members: impl IntoIterator<Item = NodeConfig>, now: Instant) {
        let members: BTreeMap<NodeId, NodeConfig> =
            members.into_iter().map(|member| (member.id.clone(), member)).collect();
        self.entries.retain(|id, _| members.contains_key(id));
        for member in members.into_values() {
            self.insert(member, now);
        }
        self.publish(Changes { view: true, ring: true }, now);
    }

    /// Adds a member, or changes the one with this id.
    pub fn join(&mut self, member: NodeConfig, now: Instant) {
        self.insert(member, now);
        self.publish(Changes { view: true, ring: true }, now);
    }

    /// Forgets a member. Its calls go on and are counted by their seats alone.
    pub fn leave(&mut self, id: &NodeId, now: Instant) {
        if self.entries.remove(id).is_some() {
            self.publish(Changes { view: true, ring: true }, now);
        }
    }

    /// Takes a batch of reports and publishes at most one view. O(functions reported), and O(nodes) if one is
    /// published.
    pub fn apply<'a>(&mut self, reports: impl IntoIterator<Item = &'a NodeReport>, now: Instant) -> Applied {
        let mut applied = Applied::default();
        let mut changes = Changes::default();
        for report in reports {
            let Some(entry) = self.entries.get_mut(&report.node) else {
                applied.strangers += 1;
                continue;
            };
            if entry.apply(report, now, &mut changes) {
                applied.news += 1;
            } else {
                applied.stale += 1;
            }
        }
        self.publish(changes, now);
        applied
    }

    /// Notes that a node has nothing new to say and is there.
    pub fn heard(&mut self, id: &NodeId, now: Instant) {
        if let Some(entry) = self.entries.get_mut(id) {
            let mut changes = Changes::default();
            entry.heard(now);
            entry.tick(now, &self.liveness, &mut changes);
            self.publish(changes, now);
        }
    }

    /// Notes that a node's link broke: it gets no calls until it is heard again.
    pub fn lost(&mut self, id: &NodeId, _now: Instant) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.node.set_state(NodeState::Suspect);
        }
    }

    /// Notices who has been silent for too long and ends pauses that are over. Call it about once per beat.
    pub fn tick(&mut self, now: Instant) {
        let mut changes = Changes::default();
        for entry in self.entries.values_mut() {
            entry.tick(now, &self.liveness, &mut changes);
        }
        self.publish(changes, now);
    }

    fn insert(&mut self, member: NodeConfig, now: Instant) {
        let known = self.entries.get_mut(&member.id);
        if let Some(entry) = known.filter(|entry| entry.is_same_place(&member)) {
            entry.given_weight = member.weight;
            entry.weight = entry.wanted_weight();
            return;
        }
        let serial = NodeSerial(self.next_serial);
        self.next_serial += 1;
        let node = Node::new(serial, member.id.clone(), member.address, member.zone, now);
        let entry = Entry {
            node: Arc::new(node),
            given_weight: member.weight,
            weight: member.weight.unwrap_or_default(),
            slots: Arc::default(),
            last: None,
        };
        self.entries.insert(member.id, entry);
    }

    fn publish(&mut self, changes: Changes, now: Instant) {
        if changes.ring {
            let weights = self.entries.iter().map(|(id, entry)| (id.clone(), entry.weight)).collect();
            self.ring = Arc::new(Ring::new(&weights));
        }
        if changes.view || changes.ring {
            let members = self.entries.values().map(Entry::member).collect();
            self.current.store(Arc::new(View::new(Arc::clone(&self.ring), members, now)));
        }
    }
}

impl Entry {
    fn is_same_place(&self, member: &NodeConfig) -> bool {
        *self.node.address() == member.address && self.node.zone() == member.zone.as_deref()
    }

    fn wanted_weight(&self) -> Weight {
        let by_memory = || self.node.memory_total_mib().map(Weight::of_memory_mib);
        self.given_weight.or_else(by_memory).unwrap_or_default()
    }

    fn member(&self) -> Member {
        Member { node: Arc::clone(&self.node), weight: self.weight, slots: Arc::clone(&self.slots) }
    }

    /// Returns false if the report is old.
    fn apply(&mut self, report: &NodeReport, now: Instant, changes: &mut Changes) -> bool {
        let is_new_life = self.last.is_none_or(|last| last.epoch != report.epoch);
        if self.last.is_some_and(|last| last.makes_stale(report)) {
            return false;
        }
        let epoch_before =
            self.last.and_then(|last| if is_new_life { Some(last.epoch) } else { last.epoch_before });
        self.last = Some(LastReport {
            epoch: report.epoch,
            epoch_before,
            sequence: report.sequence,
            at: now,
            draining: report.draining,
        });
        if is_new_life {
            self.node.end_pause();
            self.forget_slots(changes);
        }
        self.node.learn(report);
        self.learn_slots(report, changes);
        if self.node.pause_state(now) != PauseState::Lasts || report.draining {
            self.node.end_pause();
            self.node.set_state(if report.draining { NodeState::Draining } else { NodeState::Up });
        }
        let weight = self.wanted_weight();
        if weight != self.weight {
            self.weight = weight;
            changes.ring = true;
        }
        true
    }

    /// A node that was silent and has lost nothing since is what it was.
    fn heard(&mut self, now: Instant) {
        let Some(last) = &mut self.last else { return };
        last.at = now;
        if self.node.pause_state(now) != PauseState::Lasts {
            self.node.set_state(if last.draining { NodeState::Draining } else { NodeState::Up });
        }
    }

    fn learn_slots(&mut self, report: &NodeReport, changes: &mut Changes) {
        let keys_are_the_same = report.functions.len() == self.slots.len()
            && report.functions.iter().all(|function| self.slots.contains_key(&SlotKey::from(function)));
        if !keys_are_the_same {
            let kept = |key: &SlotKey| self.slots.get(key).cloned().unwrap_or_default();
            let slots: SlotMap =
                report.functions.iter().map(SlotKey::from).map(|key| (key, kept(&key))).collect();
            self.slots = Arc::new(slots);
            changes.view = true;
        }
        for function in &report.functions {
            self.slots[&SlotKey::from(function)].learn(function);
        }
    }

    fn forget_slots(&mut self, changes: &mut Changes) {
        if !self.slots.is_empty() {
            self.slots = Arc::default();
            changes.view = true;
        }
    }

    fn tick(&mut self, now: Instant, liveness: &LivenessPolicy, changes: &mut Changes) {
        match self.node.pause_state(now) {
            PauseState::Lasts => return,
            PauseState::None => {}
            PauseState::Over => {
                self.node.end_pause();
                let draining = self.last.is_some_and(|last| last.draining);
                self.node.set_state(if draining { NodeState::Draining } else { NodeState::Up });
            }
        }
        let Some(last) = self.last.filter(|_| *self.node.address() != Address::Local) else { return };
        let silence = now.saturating_duration_since(last.at);
        if silence >= liveness.down_after {
            self.node.set_state(NodeState::Down);
            self.forget_slots(changes);
        } else if silence >= liveness.suspect_after {
            self.node.set_state(NodeState::Suspect);
        }
    }
}

impl LastReport {
    fn makes_stale(&self, report: &NodeReport) -> bool {
        self.epoch_before == Some(report.epoch)
            || (self.epoch == report.epoch && report.sequence <= self.sequence)
    }
}

#[cfg(test)]
mod tests {
    use kiln_shared::call::Refusal;

    use super::*;
    use crate::fleet::placement::{NoPlace, Reason, TriedSet};
    use crate::fleet::testing::{TestFleet, containers, demand, node_id, remote, report};

    fn idle(fleet: &TestFleet, node: usize, of: &super::super::Demand) -> Option<u32> {
        fleet.fleet.view().members()[node].slots(of).map(|slots| slots.idle())
    }

    #[test]
    fn an_older_report_changes_nothing() {
        let mut fleet = TestFleet::silent(1);
        let newer = NodeReport { sequence: 7, calls: 3, ..report(0) };
        let older = NodeReport { sequence: 6, calls: 9, ..report(0) };
        let applied = fleet.fleet.apply([&newer, &older, &newer], fleet.now);
        assert_eq!(applied, Applied { news: 1, stale: 2, strangers: 0 });
        assert_eq!(fleet.node(0).load(), 3);
    }

    #[test]
    fn a_new_life_of_an_agent_starts_without_containers() {
        let mut fleet = TestFleet::silent(1);
        let function = demand(1);
        let warm = NodeReport { sequence: 9, functions: vec![containers(&function, 2, 0)], ..report(0) };
        fleet.fleet.apply([&warm], fleet.now);
        assert_eq!(idle(&fleet, 0, &function), Some(2));
        let reborn = NodeReport { epoch: 2, sequence: 1, ..report(0) };
        fleet.fleet.apply([&reborn], fleet.now);
        assert_eq!(idle(&fleet, 0, &function), None);
    }

    #[test]
    fn a_straggler_of_the_life_before_is_ignored() {
        let mut fleet = TestFleet::silent(1);
        let first = NodeReport { epoch: 5, sequence: 9, ..report(0) };
        let reborn = NodeReport { epoch: 3, sequence: 1, ..report(0) };
        let straggler = NodeReport { epoch: 5, sequence: 10, calls: 50, ..report(0) };
        let applied = fleet.fleet.apply([&first, &reborn, &straggler], fleet.now);
        assert_eq!(applied, Applied { news: 2, stale: 1, strangers: 0 });
        assert_eq!(fleet.node(0).load(), 0);
    }

    #[test]
    fn a_stranger_is_counted_and_not_added() {
        let mut fleet = TestFleet::silent(1);
        let applied = fleet.fleet.apply([&report(5)], fleet.now);
        assert_eq!(applied, Applied { news: 0, stale: 0, strangers: 1 });
        assert_eq!(fleet.fleet.view().members().len(), 1);
    }

    #[test]
    fn a_report_of_numbers_alone_publishes_no_view() {
        let mut fleet = TestFleet::empty(3);
        let function = demand(1);
        fleet.report(NodeReport { functions: vec![containers(&function, 1, 0)], ..report(1) });
        let before = fleet.fleet.view();
        fleet.report(NodeReport { calls: 4, functions: vec![containers(&function, 0, 4)], ..report(1) });
        assert!(Arc::ptr_eq(&before, &fleet.fleet.view()));
        assert_eq!((fleet.node(1).load(), idle(&fleet, 1, &function)), (4, Some(0)));
    }

    #[test]
    fn a_seat_takes_an_idle_slot_until_it_is_dropped() {
        let mut fleet = TestFleet::empty(1);
        let function = demand(1);
        fleet.report(NodeReport { functions: vec![containers(&function, 2, 0)], ..report(0) });
        let first = fleet.seat(&function);
        let second = fleet.seat(&function);
        assert_eq!((first.reason(), second.reason()), (Reason::WarmHome, Reason::WarmHome));
        assert_eq!((idle(&fleet, 0, &function), fleet.node(0).load()), (Some(0), 2));
        assert_eq!(fleet.seat(&function).reason(), Reason::RoomHome);
        drop((first, second));
        assert_eq!((idle(&fleet, 0, &function), fleet.node(0).load()), (Some(2), 0));
    }

    /// The report was made before the call arrived, or after it ended; either way its slot is counted once.
    #[test]
    fn own_calls_are_counted_whatever_a_report_says_of_them() {
        let mut fleet = TestFleet::empty(1);
        let function = demand(1);
        let unused = NodeReport { functions: vec![containers(&function, 1, 0)], ..report(0) };
        let used = NodeReport { calls: 1, functions: vec![containers(&function, 0, 1)], ..report(0) };
        fleet.report(unused.clone());
        let seat = fleet.seat(&function);
        for seen in [unused, used] {
            fleet.report(seen);
            assert_eq!((idle(&fleet, 0, &function), fleet.node(0).load()), (Some(0), 1));
        }
        drop(seat);
        assert_eq!((idle(&fleet, 0, &function), fleet.node(0).load()), (Some(1), 0));
    }

    #[test]
    fn calls_of_other_balancers_are_counted_from_reports() {
        let mut fleet = TestFleet::empty(1);
        let function = demand(1);
        fleet.report(NodeReport { calls: 3, functions: vec![containers(&function, 1, 3)], ..report(0) });
        let seat = fleet.seat(&function);
        assert_eq!((idle(&fleet, 0, &function), fleet.node(0).load()), (Some(0), 4));
        fleet.report(NodeReport { calls: 2, functions: vec![containers(&function, 2, 2)], ..report(0) });
        assert_eq!((idle(&fleet, 0, &function), fleet.node(0).load()), (Some(2), 2));
        drop(seat);
    }

    #[test]
    fn a_start_takes_memory_until_the_next_report() {
        let mut fleet = TestFleet::empty(1);
        fleet.report(NodeReport { memory_committed_mib: 8192 - 256, memory_idle_mib: 128, ..report(0) });
        let reasons: Vec<Reason> = (0..4).map(|n| fleet.seat(&demand(n)).reason()).collect();
        assert_eq!(reasons, [Reason::RoomHome, Reason::RoomHome, Reason::RoomHome, Reason::QueueHome]);
        fleet.report(report(0));
        assert_eq!(fleet.node(0).memory_free_mib(), 8192);
    }

    #[test]
    fn a_silent_node_is_suspect_then_down_and_a_report_brings_it_back() {
        let mut fleet = TestFleet::empty(2);
        let function = demand(1);
        fleet.report(NodeReport { functions: vec![containers(&function, 1, 0)], ..report(0) });
        let start = fleet.now;
        for (after_seconds, state, slots) in
            [(8, NodeState::Up, Some(1)), (9, NodeState::Suspect, Some(1)), (60, NodeState::Down, None)]
        {
            fleet.now = start + Duration::from_secs(after_seconds);
            fleet.fleet.tick(fleet.now);
            assert_eq!((fleet.node(0).state(), idle(&fleet, 0, &function)), (state, slots));
        }
        fleet.report(NodeReport { functions: vec![containers(&function, 1, 0)], ..report(0) });
        assert_eq!((fleet.node(0).state(), idle(&fleet, 0, &function)), (NodeState::Up, Some(1)));
    }

    #[test]
    fn nodes_that_never_reported_and_the_local_one_are_never_silent() {
        let mut fleet = TestFleet::silent(1);
        fleet.fleet.join(NodeConfig { address: Address::Local, ..remote(1) }, fleet.now);
        fleet.report(report(1));
        fleet.now += Duration::from_hours(1);
        fleet.fleet.tick(fleet.now);
        assert_eq!((fleet.node(0).state(), fleet.node(1).state()), (NodeState::Up, NodeState::Up));
    }

    #[test]
    fn an_unreachable_node_is_left_alone_for_a_second_even_if_it_reports() {
        let mut fleet = TestFleet::empty(1);
        let function = demand(1);
        fleet.seat(&function).refuse(Refusal::Unreachable, fleet.now);
        fleet.report(report(0));
        fleet.fleet.tick(fleet.now);
        assert_eq!(fleet.place(&function, &TriedSet::new()), Err(NoPlace::NoNode));
        fleet.now += Duration::from_millis(1001);
        fleet.fleet.tick(fleet.now);
        assert!(fleet.place(&function, &TriedSet::new()).is_ok());
    }

    #[test]
    fn a_draining_node_that_never_reports_is_tried_again_later() {
        let mut fleet = TestFleet::silent(1);
        fleet.seat(&demand(1)).refuse(Refusal::Draining, fleet.now);
        assert_eq!(fleet.node(0).state(), NodeState::Draining);
        fleet.now += Duration::from_millis(1001);
        fleet.fleet.tick(fleet.now);
        assert_eq!(fleet.node(0).state(), NodeState::Up);
    }

    #[test]
    fn a_restarted_agent_is_back_at_once() {
        let mut fleet = TestFleet::empty(1);
        fleet.seat(&demand(1)).refuse(Refusal::Unreachable, fleet.now);
        fleet.report(NodeReport { epoch: 2, ..report(0) });
        assert_eq!(fleet.node(0).state(), NodeState::Up);
    }

    #[test]
    fn a_report_of_draining_takes_a_node_out_and_another_brings_it_back() {
        let mut fleet = TestFleet::empty(1);
        fleet.report(NodeReport { draining: true, ..report(0) });
        assert_eq!(fleet.node(0).state(), NodeState::Draining);
        fleet.report(report(0));
        assert_eq!(fleet.node(0).state(), NodeState::Up);
    }

    #[test]
    fn weights_follow_reported_memory_unless_they_are_given() {
        let mut fleet = TestFleet::silent(1);
        fleet.fleet.join(remote(1), fleet.now);
        for number in [0, 1] {
            fleet.report(NodeReport { memory_total_mib: 32768, ..report(number) });
        }
        let view = fleet.fleet.view();
        let weights: Vec<Weight> = view.members().iter().map(Member::weight).collect();
        assert_eq!(weights, [Weight::STANDARD, Weight::new(512)]);
    }

    #[test]
    fn members_that_stay_keep_their_counts_and_one_that_moves_is_new() {
        let mut fleet = TestFleet::empty(2);
        let seats: Vec<_> = (0..20).map(|n| fleet.seat(&demand(n))).collect();
        let (stays, moves) = (fleet.node(0), fleet.node(1));
        let new_place = NodeConfig { address: Address::Remote("10.1.1.1:1".into()), ..remote(1) };
        fleet.fleet.set_members([new_place, remote(0)], fleet.now);
        assert!(Arc::ptr_eq(&stays, &fleet.node(0)));
        assert_eq!(fleet.node(1).load(), 0);
        assert_ne!(moves.serial(), fleet.node(1).serial());
        drop(seats);
        assert_eq!((stays.load(), moves.load(), fleet.node(1).load()), (0, 0, 0));
    }

    #[test]
    fn readers_see_a_node_join_and_leave() {
        let mut fleet = TestFleet::silent(1);
        let mut reader = fleet.fleet.reader();
        assert_eq!(reader.view().members().len(), 1);
        fleet.fleet.join(remote(7), fleet.now);
        assert_eq!(reader.view().members().len(), 2);
        fleet.fleet.leave(&node_id(7), fleet.now);
        assert_eq!(reader.view().members().len(), 1);
    }
}
