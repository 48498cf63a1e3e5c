//! Slots: who runs where on this node.
//!
//! The warm path takes one short lock, that of the function's own [`queue`]. Everything that starts, evicts or
//! retires a container is decided by one owner task (`starter.rs`).

pub mod climb;
pub mod ledger;
pub mod queue;
mod starter;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dashmap::DashMap;
use kiln_shared::call::{Failure, Refusal};
use kiln_shared::contract::Limits;
use kiln_shared::contract::environment::CallEnvironment;
use kiln_shared::contract::pipe::is_blank;
use kiln_shared::function::{Format, Function, Revision};
use kiln_shared::http1::client::Connection;
use kiln_shared::ids::{CallId, FunctionId, NodeId};
use kiln_shared::link::QUEUE_WAIT_MAX;
use kiln_shared::report::NodeReport;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::ledger::{Demand, Ledger};
use self::queue::{Class, Offer, Place, SlotQueue};
use crate::container::{Container, Driver};
use crate::logs::{CallLog, Outlets};

/// How a node shares out its room.
#[derive(Debug, Clone)]
pub struct SlotsConfig {
    /// Memory that containers may commit, in MiB.
    pub memory_total_mib: u64,
    /// CPU that containers may commit, in thousandths of a core.
    pub cpu_total_millis: u32,
    /// Most containers that are being started at the same time.
    pub starts_max: usize,
    /// Most calls that wait for one function.
    pub waiting_calls_max: usize,
    /// Longest wait for a slot; then the call is refused.
    pub wait_timeout: Duration,
    /// An idle container is frozen after this long; zero never freezes.
    pub freeze_after: Duration,
    /// An idle connection to a container is closed after this long (`spec/container-contract.md`, A3).
    pub connection_idle_timeout: Duration,
    /// How long a function may be shut out by busy ones before one of them has to give up a container.
    pub fairness_after: Duration,
}

impl SlotsConfig {
    /// How many containers a function of unknown pace may have: one per core.
    fn unknown_max(&self) -> usize {
        (self.cpu_total_millis / 1000).max(1) as usize
    }

    /// Defaults for a node that may commit so much.
    pub fn for_node(memory_total_mib: u64, cores: usize) -> Self {
        Self {
            memory_total_mib,
            cpu_total_millis: cores as u32 * 1000,
            starts_max: (2 * cores).max(2),
            waiting_calls_max: 10_000,
            wait_timeout: QUEUE_WAIT_MAX,
            freeze_after: Duration::from_secs(2),
            connection_idle_timeout: Duration::from_secs(1),
            fairness_after: Duration::from_millis(200),
        }
    }
}

/// A connection to a container, registered with the runtime of one thread.
#[derive(Debug)]
pub(crate) struct SlotConnection {
    /// The runtime's thread, as [`thread_tag`] names it.
    pub(crate) thread: u32,
    /// The connection.
    pub(crate) connection: Connection<OwnedReadHalf, OwnedWriteHalf>,
}

/// Names the current thread.
pub(crate) fn thread_tag() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    thread_local! {
        static TAG: u32 = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    TAG.with(|tag| *tag)
}

/// A container and what belongs to it.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) container: Container,
    pub(crate) connection: Option<SlotConnection>,
    /// Its standard output, for the formats over pipes; elsewhere it is part of the log.
    pub(crate) stdout: Option<mpsc::Receiver<Bytes>>,
    pub(crate) log: CallLog,
    frozen: bool,
    unfreezable: bool,
    unused: bool,
    /// How long its container was started, its image fetched included.
    start: Duration,
}

impl Slot {
    fn is_alive(&self) -> bool {
        self.container.exit.borrow().is_none()
    }

    /// Makes a slot that was idle ready to serve.
    fn wake(&mut self) -> bool {
        // Over pipes nothing says whether a start went well: the first call is told how it ended.
        let first_over_pipes = self.unused && self.stdout.is_some();
        if !first_over_pipes && !self.is_alive() {
            return false;
        }
        if self.frozen {
            if let Err(error) = self.container.control.thaw() {
                tracing::warn!(container = %self.container.name, %error, "cannot thaw; the container is removed");
                return false;
            }
            self.frozen = false;
        }
        first_over_pipes || self.was_quiet()
    }

    /// True if a container over pipes has printed nothing but blanks since its last answer.
    fn was_quiet(&mut self) -> bool {
        let Some(stdout) = &mut self.stdout else { return true };
        loop {
            match stdout.try_recv() {
                Ok(bytes) if is_blank(&bytes) => {}
                Ok(_) => {
                    tracing::info!(container = %self.container.name, "output between calls; the container is removed");
                    return false;
                }
                Err(mpsc::error::TryRecvError::Empty) => return true,
                Err(mpsc::error::TryRecvError::Disconnected) => return false,
            }
        }
    }
}

/// Why a caller has no container.
#[derive(Debug)]
pub(crate) enum NoSlot {
    /// This node has none for it, another one may.
    Refused(Refusal),
    /// The node is too small, or what the start said.
    Failed(Failure),
}

/// A call that waits for a slot.
struct Waiter {
    sender: oneshot::Sender<Result<Lease, Failure>>,
    /// What its container alone must have (the format `default`).
    environment: Option<CallEnvironment>,
}

enum Message {
    /// Callers of this function wait, and nobody did before.
    Wanted(Arc<Pool>),
    /// Callers of this function, who wait already, need more containers.
    Look(Arc<Pool>),
    /// A slot became idle while others are short of room.
    Idle,
    /// So many containers of this function are wanted before anybody calls it.
    Prewarm(Arc<Pool>, u32),
    /// Idle containers are to go: those of one function, or all.
    Evict(Option<Arc<Pool>>),
}

/// Slots of one (function, revision).
pub(crate) struct Pool {
    function: Arc<Function>,
    demand: Demand,
    queue: Mutex<SlotQueue<Box<Slot>, Waiter>>,
    /// The starter has it on its list. Cleared under the queue's lock, when nobody waits.
    listed: AtomicBool,
    /// The starter was asked to look at it and has not yet.
    nudged: AtomicBool,
    messages: mpsc::Sender<Message>,
    pressed: Arc<AtomicBool>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Pool").field("function", &self.function.spec.id).finish_non_exhaustive()
    }
}

impl Pool {
    /// True if each container serves one call, and is made for it.
    fn serves_once(&self) -> bool {
        self.function.spec.format == Format::Default
    }

    fn queue(&self) -> MutexGuard<'_, SlotQueue<Box<Slot>, Waiter>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the starter that callers wait. While they do it looks after them by itself, every now and then; it is
    /// told again only if more containers are `urgent`ly needed and it is not at a loss for room anyway.
    fn want(self: &Arc<Self>, urgent: bool) {
        let message = if !self.listed.swap(true, Ordering::AcqRel) {
            Message::Wanted(Arc::clone(self))
        } else if urgent && !self.pressed.load(Ordering::Acquire) && !self.nudged.swap(true, Ordering::AcqRel)
        {
            Message::Look(Arc::clone(self))
        } else {
            return;
        };
        // The inbox is full of other functions; the starter's housekeeping finds this one.
        match self.messages.try_send(message) {
            Err(mpsc::error::TrySendError::Full(Message::Wanted(_))) => {
                self.listed.store(false, Ordering::Release);
            }
            Err(mpsc::error::TrySendError::Full(Message::Look(_))) => {
                self.nudged.store(false, Ordering::Release);
            }
            _ => {}
        }
    }

    fn free(self: &Arc<Self>, slot: Box<Slot>, served: Duration) {
        let now = Instant::now();
        let place = Place(thread_tag());
        let offer = self.queue().freed(slot, place, served, now, |waiter, slot| self.deliver(waiter, slot));
        self.settle(offer);
    }

    fn deliver(self: &Arc<Self>, waiter: Waiter, slot: Box<Slot>) -> Result<(), Box<Slot>> {
        let lease = Lease { slot: Some(slot), pool: Arc::clone(self), since: Instant::now(), touched: false };
        waiter.sender.send(Ok(lease)).map_err(|back| match back {
            Ok(mut lease) => lease.slot.take().expect("it was just put in"),
            Err(_) => unreachable!("what comes back is what was sent"),
        })
    }

    fn settle(self: &Arc<Self>, offer: Offer<Box<Slot>>) {
        match offer {
            Offer::Handed => {}
            Offer::Kept => {
                if self.pressed.load(Ordering::Acquire) {
                    // A full channel means that the starter is about to look anyway.
                    drop(self.messages.try_send(Message::Idle));
                }
            }
            Offer::Surrendered(slot) => {
                drop(slot);
                if self.queue().wanted() > 0 {
                    self.want(true);
                }
            }
        }
    }

    fn lose(self: &Arc<Self>) {
        let wanted = {
            let mut queue = self.queue();
            queue.lost(Instant::now());
            queue.wanted()
        };
        if wanted > 0 {
            self.want(true);
        }
    }
}

/// The right to use a container for one call. Dropped before [`Self::begin`] it gives the container back;
/// dropped after it, the container's state is unknown and it is killed.
pub(crate) struct Lease {
    slot: Option<Box<Slot>>,
    pool: Arc<Pool>,
    since: Instant,
    touched: bool,
}

impl fmt::Debug for Lease {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Lease").field("slot", &self.slot).finish_non_exhaustive()
    }
}

impl Lease {
    /// Marks the container as touched by `call`. True if it was started for it.
    pub(crate) fn begin(&mut self, call: CallId) -> bool {
        self.touched = true;
        self.since = Instant::now();
        let slot = self.slot_mut();
        slot.log.begin(call);
        std::mem::take(&mut slot.unused)
    }

    /// How long the container was started, if no call has used it yet.
    pub(crate) fn start(&self) -> Option<Duration> {
        self.slot.as_ref().filter(|slot| slot.unused).map(|slot| slot.start)
    }

    /// The container in use.
    pub(crate) fn slot_mut(&mut self) -> &mut Slot {
        self.slot.as_mut().expect("a lease has its slot until it ends")
    }

    /// The call ended and the container is clean.
    pub(crate) fn finish(mut self, connection: Option<Connection<OwnedReadHalf, OwnedWriteHalf>>) {
        if self.pool.serves_once() {
            return;
        }
        if let Some(mut slot) = self.slot.take() {
            slot.connection =
                connection.map(|connection| SlotConnection { thread: thread_tag(), connection });
            self.pool.free(slot, self.since.elapsed());
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        if self.touched || self.pool.serves_once() || !slot.is_alive() {
            drop(slot);
            self.pool.lose();
        } else {
            self.pool.free(slot, self.since.elapsed());
        }
    }
}

/// The node's slots.
#[derive(Clone)]
pub(crate) struct Slots {
    shared: Arc<Shared>,
}

impl fmt::Debug for Slots {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Slots").field("pools", &self.shared.pools.len()).finish_non_exhaustive()
    }
}

struct Shared {
    config: SlotsConfig,
    limits: Limits,
    pools: DashMap<(FunctionId, Revision), Arc<Pool>>,
    messages: mpsc::Sender<Message>,
    pressed: Arc<AtomicBool>,
    outlets: Outlets,
}

impl Slots {
    /// Starts the owner task on the current runtime. It ends when `stop` is cancelled, and removes every
    /// container then.
    pub(crate) fn start(
        node: NodeId,
        driver: Arc<dyn Driver>,
        config: SlotsConfig,
        limits: Limits,
        outlets: Outlets,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> (Self, watch::Sender<Arc<NodeReport>>) {
        let (messages, inbox) = mpsc::channel(1024);
        let shared = Arc::new(Shared {
            pools: DashMap::default(),
            messages,
            pressed: Arc::new(AtomicBool::new(false)),
            config,
            limits,
            outlets,
        });
        let slots = Self { shared };
        let (starter, report) = starter::Starter::new(node, driver, slots.clone(), inbox);
        tasks.spawn(starter.run(stop));
        (slots, report)
    }

    fn total(&self) -> Demand {
        Demand {
            memory_mib: self.shared.config.memory_total_mib,
            cpu_millis: self.shared.config.cpu_total_millis,
        }
    }

    fn pool(&self, function: &Arc<Function>) -> Arc<Pool> {
        let key = (function.spec.id, function.revision);
        if let Some(pool) = self.shared.pools.get(&key) {
            return Arc::clone(&pool);
        }
        let pool = self.shared.pools.entry(key).or_insert_with(|| {
            Arc::new(Pool {
                demand: Demand::of(function),
                function: Arc::clone(function),
                queue: Mutex::new(SlotQueue::new(Instant::now())),
                listed: AtomicBool::new(false),
                nudged: AtomicBool::new(false),
                messages: self.shared.messages.clone(),
                pressed: Arc::clone(&self.shared.pressed),
            })
        });
        Arc::clone(&pool)
    }

    /// See [`crate::Agent::prewarm`]. A node whose inbox is full has no room to spare.
    pub(crate) fn prewarm(&self, function: &Arc<Function>, containers: u32) {
        let pool = self.pool(function);
        if function.spec.format != Format::Default {
            drop(self.shared.messages.try_send(Message::Prewarm(pool, containers)));
        }
    }

    /// Gives up the idle containers of one revision of a function. If the inbox is full they live until their idle
    /// time is over.
    pub(crate) fn evict(&self, function: FunctionId, revision: Revision) {
        if let Some(pool) = self.shared.pools.get(&(function, revision)) {
            drop(self.shared.messages.try_send(Message::Evict(Some(Arc::clone(&pool)))));
        }
    }

    /// Gives up all idle containers.
    pub(crate) fn evict_all(&self) {
        drop(self.shared.messages.try_send(Message::Evict(None)));
    }

    /// True if an empty node of this size has room for a container of `function`.
    pub(crate) fn could_ever_fit(&self, function: &Function) -> bool {
        Ledger::new(self.total()).could_ever_fit(Demand::of(function))
    }

    /// Gets in line for a container for one call of `function`: takes an idle one, or stands behind all others of the
    /// class from now on. For the format `default` it is one that is started with `environment` for this call alone.
    /// Queued calls wait behind callers.
    ///
    /// # Errors
    /// A refusal when too many wait already; 400 if the node is too small.
    pub(crate) fn enter(
        &self,
        function: &Arc<Function>,
        environment: Option<CallEnvironment>,
        class: Class,
    ) -> Result<Entry, NoSlot> {
        let pool = self.pool(function);
        if !Ledger::new(self.total()).could_ever_fit(pool.demand) {
            return Err(NoSlot::Failed(Failure::cannot_fit()));
        }
        let deadline = tokio::time::Instant::now() + self.shared.config.wait_timeout;
        let turn = self.turn(&pool, environment.as_ref(), class)?;
        Ok(Entry { slots: self.clone(), pool, environment, class, deadline, turn })
    }

    fn turn(
        &self,
        pool: &Arc<Pool>,
        environment: Option<&CallEnvironment>,
        class: Class,
    ) -> Result<Turn, NoSlot> {
        let (waiting, urgent) = {
            let mut queue = pool.queue();
            let now = Instant::now();
            if let Some(slot) = queue.take_idle(now) {
                let pool = Arc::clone(pool);
                return Ok(Turn::Come(Lease { slot: Some(slot), pool, since: now, touched: false }));
            }
            if queue.wanted() >= self.shared.config.waiting_calls_max {
                return Err(NoSlot::Refused(Refusal::Busy));
            }
            let (sender, waiting) = oneshot::channel();
            let waiter = Waiter { sender, environment: environment.cloned() };
            queue.wait(waiter, class, Place(thread_tag()), now);
            let urgent = pool.serves_once() || queue.starts_needed(now, self.shared.config.unknown_max()) > 0;
            (waiting, urgent)
        };
        pool.want(urgent);
        Ok(Turn::Waits(waiting))
    }
}

/// A call's place in line for a container. Dropped, it is given up.
pub(crate) struct Entry {
    slots: Slots,
    pool: Arc<Pool>,
    environment: Option<CallEnvironment>,
    class: Class,
    deadline: tokio::time::Instant,
    turn: Turn,
}

enum Turn {
    Come(Lease),
    Waits(oneshot::Receiver<Result<Lease, Failure>>),
}

impl Entry {
    /// Waits for the container. Cancel-safe: one that came at the last moment goes back.
    ///
    /// # Errors
    /// A refusal when the wait takes too long or the agent stops, or what the start said.
    pub(crate) async fn granted(self) -> Result<Lease, NoSlot> {
        let Self { slots, pool, environment, class, deadline, mut turn } = self;
        loop {
            let mut lease = match turn {
                Turn::Come(lease) => lease,
                Turn::Waits(waiting) => match tokio::time::timeout_at(deadline, waiting).await {
                    Ok(Ok(granted)) => granted.map_err(NoSlot::Failed)?,
                    Ok(Err(_stopped)) => return Err(NoSlot::Refused(Refusal::Draining)),
                    Err(_elapsed) => return Err(NoSlot::Refused(Refusal::Busy)),
                },
            };
            if lease.slot_mut().wake() {
                return Ok(lease);
            }
            // It died while it was idle: gone with the lease.
            lease.touched = true;
            drop(lease);
            turn = slots.turn(&pool, environment.as_ref(), class)?;
        }
    }
}
