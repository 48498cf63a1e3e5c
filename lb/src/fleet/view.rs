//! The fleet as the data path sees it: a snapshot of members, ring and containers whose counters are live.
//!
//! Owns nothing that changes except the mean load, which whoever finds it too old works out again. Readers take
//! no lock: each worker keeps the snapshot it saw last and looks only whether there is a newer one. Invariant:
//! ring and nodes are of one snapshot, so a [`NodeIndex`] fits the [`View`] that gave it and no other.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;

use kiln_shared::ids::NodeId;

use super::demand::{Demand, ImageKey, SlotKey};
use super::entry::Sight;
use super::index::{Index, Place, SlotPlace, on};
use super::node::{Node, NodeSerial};
use super::placement::{Ask, Decision, NoPlace, PlacementPolicy, TriedSet, place};
use super::ring::{NodeIndex, Ring, Weight};
use super::room::WaitingRoom;
use super::seat::Seat;
use super::slots::Slots;
use super::standing::NodeState;

/// How old the mean load may be.
const MEAN_LOAD_AGE_MAX: Duration = Duration::from_millis(2);

/// A node in a snapshot.
#[derive(Debug, Clone)]
pub struct Member {
    pub(crate) node: Arc<Node>,
    pub(crate) weight: Weight,
    pub(crate) is_near: bool,
}

impl Member {
    /// The node with its live counters.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Its weight on the ring.
    pub fn weight(&self) -> Weight {
        self.weight
    }

    /// True if it is in the balancer's own zone, or the balancer has none.
    pub fn is_near(&self) -> bool {
        self.is_near
    }
}

/// The nodes of a snapshot, in the order of their ids. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Members(Arc<MembersInner>);

#[derive(Debug, Default)]
struct MembersInner {
    members: Box<[Member]>,
    /// Of each member, close together: most steps of a walk look at nothing else.
    serials: Box<[NodeSerial]>,
    /// Serials in their order, with the places of their members.
    by_serial: Box<[(NodeSerial, NodeIndex)]>,
}

impl Members {
    pub(crate) fn new(members: Box<[Member]>) -> Self {
        let serials: Box<[NodeSerial]> = members.iter().map(|member| member.node.serial()).collect();
        let mut by_serial: Box<[_]> =
            serials.iter().enumerate().map(|(at, &serial)| (serial, NodeIndex::new(at))).collect();
        by_serial.sort_unstable_by_key(|&(serial, _)| serial);
        Self(Arc::new(MembersInner { members, serials, by_serial }))
    }
}

/// The mean load per unit of weight and when it is to be worked out again. Views of the same members share it.
#[derive(Debug)]
pub(crate) struct MeanLoad {
    base: Instant,
    due_micros: AtomicU64,
    bits: AtomicU64,
}

impl MeanLoad {
    pub(crate) fn new(base: Instant) -> Self {
        Self { base, due_micros: AtomicU64::new(0), bits: AtomicU64::new(0) }
    }
}

/// A snapshot of the fleet.
#[derive(Debug)]
pub struct View {
    ring: Arc<Ring>,
    members: Members,
    slots: Arc<Index<SlotKey, Arc<Slots>>>,
    images: Arc<Index<ImageKey, ()>>,
    mean_load: Arc<MeanLoad>,
}

impl View {
    pub(crate) fn new(ring: Arc<Ring>, members: Members, sight: &Sight, mean_load: Arc<MeanLoad>) -> Self {
        let (slots, images) = (Arc::clone(&sight.slots), Arc::clone(&sight.images));
        Self { ring, members, slots, images, mean_load }
    }

    /// The order of the nodes for every function.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// All nodes, in the order of their ids.
    pub fn members(&self) -> &[Member] {
        &self.members.0.members
    }

    /// One node of this view.
    pub fn member(&self, index: NodeIndex) -> &Member {
        &self.members()[index.get()]
    }

    /// Where the node of that name is in this view. O(log nodes).
    pub fn find(&self, id: &NodeId) -> Option<NodeIndex> {
        self.members().binary_search_by(|member| member.node().id().cmp(id)).ok().map(NodeIndex::new)
    }

    /// A node's name within this process.
    pub(crate) fn serial(&self, index: NodeIndex) -> NodeSerial {
        self.members.0.serials[index.get()]
    }

    /// Where a node is in this view. O(log nodes).
    pub(crate) fn index_of(&self, serial: NodeSerial) -> Option<NodeIndex> {
        let by_serial = &self.members.0.by_serial;
        by_serial.binary_search_by_key(&serial, |&(serial, _)| serial).ok().map(|at| by_serial[at].1)
    }

    /// The name of a node, if it is in this view. O(log nodes).
    pub fn name_of(&self, serial: NodeSerial) -> Option<NodeId> {
        self.index_of(serial).map(|index| self.member(index).node().id().clone())
    }

    /// The nodes that have containers of the demanded revision, or calls of it. O(1).
    pub(crate) fn places(&self, demand: &Demand) -> &[SlotPlace] {
        let key = demand.slot_key();
        self.slots.get(key, key.hash())
    }

    /// Containers of the demanded revision on one node, if it has any.
    pub fn slots(&self, index: NodeIndex, demand: &Demand) -> Option<&Arc<Slots>> {
        on(self.places(demand), self.serial(index))
    }

    /// The nodes that have the image.
    pub(crate) fn images(&self, image: ImageKey) -> &[Place<()>] {
        self.images.get(image, image.get())
    }

    /// Calls of the demanded revision over all nodes, those of other balancers as of the last reports.
    /// O(nodes that have containers of it).
    pub fn calls_of(&self, demand: &Demand) -> u32 {
        self.places(demand).iter().fold(0, |calls, place| calls.saturating_add(place.value.calls()))
    }

    /// True if a node that gets no calls now is expected back: it is suspect or ejected.
    pub fn expects_a_node_back(&self) -> bool {
        let is_expected = |node: &Node| {
            node.state() == NodeState::Suspect || (node.state() == NodeState::Up && node.is_ejected())
        };
        self.members().iter().any(|member| is_expected(&member.node))
    }

    /// Counts a call at the node that [`place`] chose in this view until the seat is dropped.
    pub fn take(&self, decision: Decision, demand: &Demand) -> Seat {
        let node = Arc::clone(&self.member(decision.node).node);
        Seat::new(node, self.slots(decision.node, demand).cloned(), decision, demand)
    }

    /// Calls per unit of weight over the nodes that take calls, with one call more than there are; a node that starts
    /// slowly has that much less weight. At most 2 ms old; O(1), and O(nodes) for the one reader that finds it older.
    pub(crate) fn mean_load(&self, now: Instant) -> f64 {
        let MeanLoad { base, due_micros, bits } = &*self.mean_load;
        let now_micros = now.saturating_duration_since(*base).as_micros() as u64;
        let due = due_micros.load(Relaxed);
        if now_micros < due {
            return f64::from_bits(bits.load(Relaxed));
        }
        let next = now_micros + MEAN_LOAD_AGE_MAX.as_micros() as u64;
        if due != 0 && due_micros.compare_exchange(due, next, Relaxed, Relaxed).is_err() {
            return f64::from_bits(bits.load(Relaxed));
        }
        let mean = self.count_mean_load(now);
        bits.store(mean.to_bits(), Relaxed);
        due_micros.store(next, Relaxed);
        mean
    }

    fn count_mean_load(&self, now: Instant) -> f64 {
        let up = self.members().iter().filter(|member| member.node.takes_calls());
        let (calls, weight) = up.fold((1_u64, 0.0), |(calls, weight), member| {
            let share = f64::from(member.weight.points()) * member.node.share(now);
            (calls + u64::from(member.node.load()), weight + share)
        });
        if weight == 0.0 { 0.0 } else { calls as f64 / weight }
    }
}

/// A worker's way to the newest view. Reading costs one atomic load while the view stays the same.
#[derive(Debug, Clone)]
pub struct FleetReader {
    cache: Cache<Arc<ArcSwap<View>>, Arc<View>>,
    room: Arc<WaitingRoom>,
    policy: PlacementPolicy,
    draws: Draws,
}

impl FleetReader {
    pub(crate) fn new(current: Arc<ArcSwap<View>>, room: Arc<WaitingRoom>) -> Self {
        let policy = *room.policy();
        Self { cache: Cache::new(current), room, policy, draws: Draws::default() }
    }

    /// Where calls wait that found no place.
    pub fn room(&self) -> &Arc<WaitingRoom> {
        &self.room
    }

    /// The newest view.
    pub fn view(&mut self) -> &View {
        self.cache.load()
    }

    /// Chooses a node for one call and counts the call there: what the data path does before each try.
    ///
    /// # Errors
    /// No node may be tried, none has room, or none is large enough.
    pub fn seat(&mut self, demand: &Demand, tried: &TriedSet, now: Instant) -> Result<Seat, NoPlace> {
        let draw = self.draws.take();
        let view = self.cache.load();
        let decision = place(view, &Ask { demand, tried, draw, now }, &self.policy)?;
        Ok(view.take(decision, demand))
    }
}

/// Numbers that look random and are the same in every run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Draws(u64);

impl Draws {
    /// The next number (splitmix64, Steele et al., OOPSLA 2014).
    pub(crate) fn take(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
