//! Who is in the fleet and how it is doing: members and reports in, views out.
//!
//! Owns the one writable copy. Reports that change only numbers write them into the counters that views share; a
//! new view is published only when members, weights, images or the set of functions on a node change, once per batch.
//! Invariant: a report that is older than one already applied, or that does not follow it, changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use kiln_shared::ids::NodeId;
use kiln_shared::report::NodeReport;

use super::bounds::Absurd;
use super::detail::NodeDetail;
use super::ejection::{EjectionPolicy, Judgement};
use super::entry::{Entry, News, Sight};
use super::liveness::LivenessPolicy;
use super::node::{Address, NodeSerial};
use super::placement::PlacementPolicy;
use super::ring::{Ring, Weight};
use super::room::WaitingRoom;
use super::scale::ScalePolicy;
use super::standing::NodeState;
use super::view::{FleetReader, MeanLoad, Members, View};
use super::waiting::WaitingLimits;

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

/// How the fleet is watched and used.
#[derive(Debug, Clone, PartialEq)]
pub struct FleetConfig {
    /// When silence means what.
    pub liveness: LivenessPolicy,
    /// A node whose link broke this long ago, and has not come back, is no member any more.
    pub forget_after: Duration,
    /// When lost calls mean what.
    pub ejection: EjectionPolicy,
    /// A node without a container that is new, or was down or ejected, gets its full share of calls after so long.
    /// Zero: at once. Nobody is new to a balancer that is itself younger than this.
    pub slow_start: Duration,
    /// Where this balancer stands: among equals a node of its own zone is chosen. `None`: every zone is its own.
    pub zone: Option<Arc<str>>,
    /// How nodes are chosen.
    pub placement: PlacementPolicy,
    /// How many calls may wait for a place.
    pub waiting: WaitingLimits,
    /// How the number of nodes that are wanted follows what is used.
    pub scale: ScalePolicy,
}

impl Default for FleetConfig {
    fn default() -> Self {
        Self {
            liveness: LivenessPolicy::default(),
            forget_after: Duration::from_hours(1),
            ejection: EjectionPolicy::default(),
            slow_start: Duration::from_secs(10),
            zone: None,
            placement: PlacementPolicy::default(),
            waiting: WaitingLimits::default(),
            scale: ScalePolicy::default(),
        }
    }
}

impl From<LivenessPolicy> for FleetConfig {
    fn from(liveness: LivenessPolicy) -> Self {
        Self { liveness, ..Self::default() }
    }
}

/// What became of a batch of reports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Reports that were news.
    pub news: usize,
    /// Reports older than one that was applied before, or the same, or of an earlier life of the agent.
    pub stale: usize,
    /// Reports of nodes that are not members.
    pub strangers: usize,
    /// Nodes whose changes do not follow what is known: ask each for a whole report.
    pub gaps: Vec<NodeId>,
    /// Nodes that report what cannot be, of which nothing was taken: close their links.
    pub refused: Vec<(NodeId, Absurd)>,
}

/// What is known of a node that was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// What it last reported.
    Known,
    /// Nothing, or nothing any more: ask it for a whole report.
    NeedsWhole,
    /// It is no member.
    Stranger,
}

/// What ejection has come to since the fleet was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EjectionCounts {
    /// Nodes that are ejected now.
    pub ejected: usize,
    /// Ejections so far.
    pub ejections: u64,
    /// Nodes that would have been ejected if not too many were.
    pub spared: u64,
}

/// The fleet's owner. Give it to one task.
#[derive(Debug)]
pub struct Fleet {
    config: FleetConfig,
    born: Instant,
    entries: BTreeMap<NodeId, Entry>,
    ring: Arc<Ring>,
    members: Members,
    sight: Sight,
    mean_load: Arc<MeanLoad>,
    ejections: EjectionCounts,
    next_serial: u32,
    current: Arc<ArcSwap<View>>,
    room: Arc<WaitingRoom>,
}

impl Fleet {
    /// A fleet without nodes.
    pub fn new(config: impl Into<FleetConfig>, now: Instant) -> Self {
        let config = config.into();
        let ring = Arc::new(Ring::new(&BTreeMap::new()));
        let (members, mean_load) = (Members::default(), Arc::new(MeanLoad::new(now)));
        let sight = Sight::new();
        let view = View::new(Arc::clone(&ring), members.clone(), &sight, Arc::clone(&mean_load));
        let current = Arc::new(ArcSwap::from_pointee(view));
        let room = WaitingRoom::new(Arc::clone(&current), config.placement, config.waiting);
        Self {
            config,
            born: now,
            entries: BTreeMap::new(),
            ring,
            members,
            sight,
            mean_load,
            ejections: EjectionCounts::default(),
            next_serial: 0,
            current,
            room: Arc::new(room),
        }
    }

    /// A reader for one worker.
    pub fn reader(&self) -> FleetReader {
        FleetReader::new(Arc::clone(&self.current), Arc::clone(&self.room))
    }

    /// How it is watched and used.
    pub fn config(&self) -> &FleetConfig {
        &self.config
    }

    /// The view that readers see now.
    pub fn view(&self) -> Arc<View> {
        self.current.load_full()
    }

    /// Where calls wait that found no place.
    pub fn room(&self) -> &Arc<WaitingRoom> {
        &self.room
    }

    /// Makes `members` the fleet. Nodes that stay, with the same address and zone, keep what is known of them;
    /// of two members with one id the later counts.
    pub fn set_members(&mut self, members: impl IntoIterator<Item = NodeConfig>, now: Instant) {
        let members: BTreeMap<NodeId, NodeConfig> =
            members.into_iter().map(|member| (member.id.clone(), member)).collect();
        let gone: Vec<NodeId> = self.entries.keys().filter(|id| !members.contains_key(id)).cloned().collect();
        for id in &gone {
            self.remove(id);
        }
        for member in members.into_values() {
            self.insert(member, now);
        }
        self.publish(now);
    }

    /// Adds a member, or changes the one with this id. O(points of the ring): for many at once there is
    /// [`Self::join_all`].
    pub fn join(&mut self, member: NodeConfig, now: Instant) {
        self.join_all([member], now);
    }

    /// Adds members, or changes those with their ids.
    pub fn join_all(&mut self, members: impl IntoIterator<Item = NodeConfig>, now: Instant) {
        members.into_iter().for_each(|member| self.insert(member, now));
        self.publish(now);
    }

    /// Forgets a member. Its calls go on and are counted by their seats alone.
    pub fn leave(&mut self, id: &NodeId, now: Instant) {
        if self.entries.contains_key(id) {
            self.remove(id);
            self.publish(now);
        }
    }

    /// Takes a batch of reports and publishes at most one view. O(functions reported), and more only for what
    /// comes or goes.
    pub fn apply<'a>(&mut self, reports: impl IntoIterator<Item = &'a NodeReport>, now: Instant) -> Applied {
        let mut applied = Applied::default();
        let slow_start = self.slow_start(now);
        for report in reports {
            let Some(entry) = self.entries.get_mut(&report.node) else {
                applied.strangers += 1;
                continue;
            };
            match entry.apply(report, now, &self.config.liveness, slow_start, &mut self.sight) {
                News::Applied => applied.news += 1,
                News::Stale => applied.stale += 1,
                News::Gap => applied.gaps.push(report.node.clone()),
                News::Absurd(absurd) => applied.refused.push((report.node.clone(), absurd)),
            }
        }
        self.publish(now);
        applied
    }

    /// Notes that a node has nothing new to say and is there.
    pub fn heard(&mut self, id: &NodeId, now: Instant) -> Heard {
        let Some(entry) = self.entries.get_mut(id) else { return Heard::Stranger };
        entry.heard(now);
        entry.settle(now, &self.config.liveness, &mut self.sight);
        let heard = if entry.needs_whole() { Heard::NeedsWhole } else { Heard::Known };
        self.publish(now);
        heard
    }

    /// Notes that a node's link broke: it gets no calls until it is heard again.
    pub fn lost(&mut self, id: &NodeId, now: Instant) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.lost(now);
            entry.settle(now, &self.config.liveness, &mut self.sight);
            self.publish(now);
        }
    }

    /// Notices who has been silent for too long, who loses calls, and what is over. Call it about twice per beat.
    pub fn tick(&mut self, now: Instant) {
        for entry in self.entries.values_mut() {
            entry.settle(now, &self.config.liveness, &mut self.sight);
            entry.node.end_slow_start(now);
        }
        let forget_after = self.config.forget_after;
        let over = self.entries.iter().filter(|(_, entry)| entry.is_over(now, forget_after));
        let over: Vec<NodeId> = over.map(|(id, _)| id.clone()).collect();
        for id in &over {
            tracing::info!(node = %id, "a node that broke off long ago is forgotten");
            self.remove(id);
        }
        self.judge(now);
        self.publish(now);
        self.room.look_around(now);
    }

    /// What ejection has come to.
    pub fn ejections(&self) -> EjectionCounts {
        self.ejections
    }

    /// Everything that is known of a node. O(functions and images on it).
    pub fn detail(&self, id: &NodeId, now: Instant) -> Option<NodeDetail> {
        self.entries.get(id).map(|entry| entry.detail(now))
    }

    /// Everything that is known of all nodes, in the order of their ids.
    pub fn details(&self, now: Instant) -> Vec<NodeDetail> {
        self.entries.values().map(|entry| entry.detail(now)).collect()
    }

    fn judge(&mut self, now: Instant) {
        let policy = &self.config.ejection;
        let up = self.entries.values().filter(|entry| entry.node.state() == NodeState::Up).count();
        let ejected_max = policy.ejected_max(up);
        let mut ejected = self.entries.values().filter(|entry| entry.node.is_ejected()).count();
        for entry in self.entries.values_mut() {
            let (node, health) = (&entry.node, entry.node.health());
            match entry.ejection.judge(health, policy, ejected < ejected_max, now) {
                Judgement::AsBefore => {}
                Judgement::Spared(_) => self.ejections.spared += 1,
                Judgement::Ejected(_) => {
                    node.set_ejected(true);
                    ejected += 1;
                    self.ejections.ejections += 1;
                }
                Judgement::Returned => {
                    node.set_ejected(false);
                    self.sight.touched.push(node.serial());
                    node.start_slowly(now, self.config.slow_start);
                    ejected -= 1;
                }
            }
        }
        self.ejections.ejected = ejected;
    }

    fn slow_start(&self, now: Instant) -> Duration {
        let slow_start = self.config.slow_start;
        if now.saturating_duration_since(self.born) < slow_start { Duration::ZERO } else { slow_start }
    }

    fn insert(&mut self, member: NodeConfig, now: Instant) {
        let known = self.entries.get_mut(&member.id);
        if let Some(entry) = known.filter(|entry| entry.is_same_place(&member)) {
            self.sight.ring |= entry.give_weight(member.weight);
            return;
        }
        self.remove(&member.id);
        let serial = NodeSerial(self.next_serial);
        self.next_serial += 1;
        self.entries.insert(member.id.clone(), Entry::new(serial, member, now));
        self.sight.ring = true;
    }

    fn remove(&mut self, id: &NodeId) {
        if let Some(mut entry) = self.entries.remove(id) {
            entry.forget_all(&mut self.sight);
            self.sight.ring = true;
        }
    }

    /// Shows readers what changed, and calls that wait what came.
    fn publish(&mut self, now: Instant) {
        let (ring, view) = (std::mem::take(&mut self.sight.ring), std::mem::take(&mut self.sight.view));
        if ring {
            let weights = self.entries.iter().map(|(id, entry)| (id.clone(), entry.weight())).collect();
            self.ring = Arc::new(Ring::new(&weights));
            let zone = self.config.zone.as_deref();
            self.members = Members::new(self.entries.values().map(|entry| entry.member(zone)).collect());
            self.mean_load = Arc::new(MeanLoad::new(now));
        }
        if ring || view {
            let (ring, mean_load) = (Arc::clone(&self.ring), Arc::clone(&self.mean_load));
            self.current.store(Arc::new(View::new(ring, self.members.clone(), &self.sight, mean_load)));
        }
        let touched = std::mem::take(&mut self.sight.touched);
        self.room.serve_nodes(&touched, now);
        if ring {
            self.room.look_around(now);
        }
    }
}

#[cfg(test)]
mod tests;
