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

use super::node::{Demand, Node, NodeState, SlotMap, Slots};
use super::placement::{Decision, NoPlace, PlacementPolicy, TriedSet, place};
use super::ring::{NodeIndex, Ring, Weight};
use super::seat::Seat;

/// How old the mean load may be.
const MEAN_LOAD_AGE_MAX: Duration = Duration::from_millis(2);

/// A node in a snapshot.
#[derive(Debug, Clone)]
pub struct Member {
    pub(crate) node: Arc<Node>,
    pub(crate) weight: Weight,
    pub(crate) slots: Arc<SlotMap>,
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

    /// Its containers of the demanded revision, if its agent reported any.
    pub fn slots(&self, demand: &Demand) -> Option<&Arc<Slots>> {
        self.slots.get(&demand.slot_key())
    }
}

/// The mean load per unit of weight and when it is to be worked out again.
#[derive(Debug)]
struct MeanLoad {
    base: Instant,
    due_micros: AtomicU64,
    bits: AtomicU64,
}

/// A snapshot of the fleet.
#[derive(Debug)]
pub struct View {
    ring: Arc<Ring>,
    members: Box<[Member]>,
    mean_load: MeanLoad,
}

impl View {
    pub(crate) fn new(ring: Arc<Ring>, members: Box<[Member]>, now: Instant) -> Self {
        assert_eq!(ring.len(), members.len(), "a view's ring is made of its members");
        let mean_load = MeanLoad { base: now, due_micros: AtomicU64::new(0), bits: AtomicU64::new(0) };
        Self { ring, members, mean_load }
    }

    /// The order of the nodes for every function.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// All nodes, in the order of their ids.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// One node of this view.
    pub fn member(&self, index: NodeIndex) -> &Member {
        &self.members[index.get()]
    }

    /// Counts a call at the node that [`place`] chose in this view until the seat is dropped.
    pub fn take(&self, decision: Decision, demand: &Demand) -> Seat {
        let member = self.member(decision.node);
        Seat::new(Arc::clone(&member.node), member.slots(demand).cloned(), decision.reason, demand)
    }

    /// Calls per unit of weight over the nodes that are up, with one call more than there are. At most 2 ms old;
    /// O(1), and O(nodes) for the one reader that finds it older.
    pub(crate) fn mean_load(&self, now: Instant) -> f64 {
        let MeanLoad { base, due_micros, bits } = &self.mean_load;
        let now_micros = now.saturating_duration_since(*base).as_micros() as u64;
        let due = due_micros.load(Relaxed);
        if now_micros < due {
            return f64::from_bits(bits.load(Relaxed));
        }
        let next = now_micros + MEAN_LOAD_AGE_MAX.as_micros() as u64;
        if due != 0 && due_micros.compare_exchange(due, next, Relaxed, Relaxed).is_err() {
            return f64::from_bits(bits.load(Relaxed));
        }
        let mean = self.count_mean_load();
        bits.store(mean.to_bits(), Relaxed);
        due_micros.store(next, Relaxed);
        mean
    }

    fn count_mean_load(&self) -> f64 {
        let up = self.members.iter().filter(|member| member.node.state() == NodeState::Up);
        let (calls, weight) = up.fold((1_u64, 0_u64), |(calls, weight), member| {
            (calls + u64::from(member.node.load()), weight + u64::from(member.weight.points()))
        });
        if weight == 0 { 0.0 } else { calls as f64 / weight as f64 }
    }
}

/// A worker's way to the newest view. Reading costs one atomic load while the view stays the same.
#[derive(Debug, Clone)]
pub struct FleetReader {
    cache: Cache<Arc<ArcSwap<View>>, Arc<View>>,
}

impl FleetReader {
    pub(crate) fn new(current: Arc<ArcSwap<View>>) -> Self {
        Self { cache: Cache::new(current) }
    }

    /// The newest view.
    pub fn view(&mut self) -> &View {
        self.cache.load()
    }

    /// Chooses a node for one call and counts the call there: what the data path does before each try.
    ///
    /// # Errors
    /// No node may be tried, or none is large enough.
    pub fn seat(
        &mut self,
        demand: &Demand,
        tried: &TriedSet,
        policy: &PlacementPolicy,
        now: Instant,
    ) -> Result<Seat, NoPlace> {
        let view = self.cache.load();
        let decision = place(view, demand, tried, policy, now)?;
        Ok(view.take(decision, demand))
    }
}
