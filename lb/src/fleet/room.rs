//! The waiting room: calls that no node has a place for wait here, and the first place that comes up takes one.
//!
//! Shared by the workers and the fleet's owner. A place is given with its seat already taken, so that nobody wakes in
//! vain. The lock is taken only by calls that wait, and by what frees a place while some do; whoever finds a place at
//! once looks at one counter. Reads no clock and knows no deadline: who waits too long drops its [`Waiting`].

use std::pin::Pin;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use kiln_shared::ids::FunctionId;
use xxhash_rust::xxh3::xxh3_64;

use super::concurrency::{Limit, LimitReached, Running, enter};
use super::demand::Demand;
use super::node::NodeSerial;
use super::placement::{Ask, Decision, PlacementPolicy, TriedSet, place};
use super::policy::{Offer, offer_of};
use super::ring::NodeIndex;
use super::seat::Seat;
use super::slots::Slots;
use super::view::{Draws, View};
use super::waiting::{Lines, RoomFull, Ticket, WaitingLimits};

/// Lines that are looked at for one free place.
const LINES_LOOKED_AT_MAX: usize = 32;
/// A function whose first call has waited so long gets the next room ahead of calls that would find a warm slot there.
const STARVING_AFTER: Duration = Duration::from_secs(1);
/// Counters by function, so that calls of functions that nobody waits for pass by.
const BUCKETS: usize = 256;

/// A call that waits, as both sides have it.
#[derive(Debug)]
struct Caller {
    demand: Demand,
    limit: Option<Limit>,
    given: Mutex<Given>,
}

#[derive(Debug, Default)]
struct Given {
    seat: Option<Seat>,
    waker: Option<Waker>,
}

impl Caller {
    fn given(&self) -> MutexGuard<'_, Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give(&self, seat: Seat) {
        let waker = {
            let mut given = self.given();
            given.seat = Some(seat);
            given.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    /// A place under the function's own limit, if it has one.
    fn enter(&self, view: &View) -> Result<Option<Running>, LimitReached> {
        enter(self.limit.as_ref(), || view.calls_of(&self.demand))
    }
}

#[derive(Debug)]
struct Inner {
    lines: Lines<Arc<Caller>>,
    draws: Draws,
}

/// What the room has come to since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RoomCounts {
    /// Calls that wait now.
    pub waiting: usize,
    /// Functions of which calls wait now.
    pub functions: usize,
}

/// Where calls wait for a place.
#[derive(Debug)]
pub struct WaitingRoom {
    policy: PlacementPolicy,
    current: Arc<ArcSwap<View>>,
    inner: Mutex<Inner>,
    waiting: AtomicU32,
    waiting_by_function: Box<[AtomicU32]>,
}

impl WaitingRoom {
    pub(crate) fn new(current: Arc<ArcSwap<View>>, policy: PlacementPolicy, limits: WaitingLimits) -> Self {
        Self {
            policy,
            current,
            inner: Mutex::new(Inner { lines: Lines::new(limits), draws: Draws::default() }),
            waiting: AtomicU32::new(0),
            waiting_by_function: (0..BUCKETS).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// How nodes are chosen.
    pub fn policy(&self) -> &PlacementPolicy {
        &self.policy
    }

    /// True if calls of the function, or of one that shares its counter, wait: a further call goes behind them. O(1),
    /// without a lock.
    pub fn is_waited_for(&self, function: &FunctionId) -> bool {
        self.waiting_by_function[bucket(function)].load(Relaxed) > 0
    }

    /// Calls that wait. Without a lock.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Relaxed)
    }

    /// Who waits, for metrics.
    pub fn counts(&self) -> RoomCounts {
        let inner = self.inner();
        RoomCounts { waiting: inner.lines.len(), functions: inner.lines.functions() }
    }

    /// Lets a call wait, behind those of its function that do; one that is the first looks for a place at once.
    ///
    /// # Errors
    /// There is no place left to wait.
    pub fn enter(
        self: &Arc<Self>,
        demand: Demand,
        limit: Option<Limit>,
        now: Instant,
    ) -> Result<Waiting, RoomFull> {
        let view = self.current.load();
        let function = demand.function;
        let caller = Arc::new(Caller { demand, limit, given: Mutex::default() });
        let mut inner = self.inner();
        let ticket = inner.lines.push(function, Arc::clone(&caller), now).map_err(|(full, _caller)| full)?;
        self.count_in(&function);
        if inner.lines.len_of(&function) == 1
            && let Some(seat) = seat_anywhere(&caller, &view, &self.policy, inner.draws.take(), now)
        {
            self.remove(&mut inner, &function, ticket);
            caller.give(seat);
        }
        drop(inner);
        Ok(Waiting { room: Arc::clone(self), caller, ticket, entered: now })
    }

    /// A call of this balancer ended; its place goes to who waits. Cheap if nobody does.
    pub fn give_back(&self, seat: Seat, now: Instant) {
        let (node, slots) = seat.give_back();
        if self.waiting() > 0 {
            let view = self.current.load();
            self.serve_node(&view, node, slots.as_deref(), now);
        }
    }

    /// What `nodes` have goes to who waits.
    pub(crate) fn serve_nodes(&self, nodes: &[NodeSerial], now: Instant) {
        if self.waiting() > 0 {
            let view = self.current.load();
            for &node in nodes {
                self.serve_node(&view, node, None, now);
            }
        }
    }

    /// Looks for places on all nodes for the first calls of some functions, others each time.
    pub(crate) fn look_around(&self, now: Instant) {
        if self.waiting() == 0 {
            return;
        }
        let view = self.current.load();
        let mut inner = self.inner();
        loop {
            let draw = inner.draws.take();
            let seat = |caller: &Arc<Caller>| seat_anywhere(caller, &view, &self.policy, draw, now);
            let Some((caller, seat)) = inner.lines.take(LINES_LOOKED_AT_MAX, seat) else { return };
            self.count_out(&caller.demand.function);
            caller.give(seat);
        }
    }

    /// Gives what one node has to the calls that wait, warm slots first, then functions in turn, until nothing fits.
    /// Ends: each place that is given leaves the node one less.
    fn serve_node(&self, view: &View, node: NodeSerial, freed: Option<&Slots>, now: Instant) {
        let Some(index) = view.index_of(node) else { return };
        let mut inner = self.inner();
        let lines = &mut inner.lines;
        let seat = |caller: &Arc<Caller>, wanted: fn(Offer) -> bool| {
            let offer = offer_of(view, index, &caller.demand, &self.policy, now)?;
            if !wanted(offer) {
                return None;
            }
            let running = caller.enter(view).ok()?;
            Some(take(view, index, offer, &caller.demand).with_running(running))
        };
        let starving = lines.take_starving(LINES_LOOKED_AT_MAX, STARVING_AFTER, now, |caller| {
            seat(caller, |offer| offer == Offer::Room)
        });
        if let Some((caller, seat)) = starving {
            if let Some(slots) = freed {
                // The container that was freed makes room for it.
                slots.give_up_one();
            }
            self.count_out(&caller.demand.function);
            caller.give(seat);
        }
        loop {
            let warm = lines.take(LINES_LOOKED_AT_MAX, |caller| seat(caller, |offer| offer == Offer::Warm));
            let taken = warm.or_else(|| lines.take(LINES_LOOKED_AT_MAX, |caller| seat(caller, |_| true)));
            let Some((caller, seat)) = taken else { return };
            self.count_out(&caller.demand.function);
            caller.give(seat);
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, inner: &mut Inner, function: &FunctionId, ticket: Ticket) {
        if inner.lines.remove(function, ticket).is_some() {
            self.count_out(function);
        }
    }

    fn count_in(&self, function: &FunctionId) {
        self.waiting.fetch_add(1, Relaxed);
        self.waiting_by_function[bucket(function)].fetch_add(1, Relaxed);
    }

    fn count_out(&self, function: &FunctionId) {
        self.waiting.fetch_sub(1, Relaxed);
        self.waiting_by_function[bucket(function)].fetch_sub(1, Relaxed);
    }
}

fn bucket(function: &FunctionId) -> usize {
    xxh3_64(function.as_bytes()) as usize % BUCKETS
}

fn take(view: &View, node: NodeIndex, offer: Offer, demand: &Demand) -> Seat {
    let is_home = view.ring().home(demand.key) == Some(node);
    view.take(Decision { node, reason: offer.reason(is_home), asked: 1, is_above_bound: false }, demand)
}

fn seat_anywhere(
    caller: &Caller,
    view: &View,
    policy: &PlacementPolicy,
    draw: u64,
    now: Instant,
) -> Option<Seat> {
    let running = caller.enter(view).ok()?;
    let ask = Ask { demand: &caller.demand, tried: &TriedSet::new(), draw, now };
    let decision = place(view, &ask, policy).ok()?;
    Some(view.take(decision, &caller.demand).with_running(running))
}

/// A call that waits. It is ready when the call has a seat; dropping it leaves the room.
#[derive(Debug)]
#[must_use = "dropping it leaves the room"]
pub struct Waiting {
    room: Arc<WaitingRoom>,
    caller: Arc<Caller>,
    ticket: Ticket,
    /// When the call entered. As the time at which a place is passed on, it is too early: at worst a place is held back
    /// until somebody looks around.
    entered: Instant,
}

impl Waiting {
    /// The seat, if there is one by now: for callers without an executor.
    pub fn try_take(&mut self) -> Option<Seat> {
        self.caller.given().seat.take()
    }
}

impl Future for Waiting {
    type Output = Seat;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Seat> {
        let mut given = self.caller.given();
        if let Some(seat) = given.seat.take() {
            return Poll::Ready(seat);
        }
        given.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut inner = self.room.inner();
        self.room.remove(&mut inner, &self.caller.demand.function, self.ticket);
        drop(inner);
        let untaken = self.caller.given().seat.take();
        if let Some(seat) = untaken {
            self.room.give_back(seat, self.entered);
        }
    }
}

#[cfg(test)]
mod tests;
