//! Draining: the node takes queued calls when it has room, runs them, and tells how they ended.
//!
//! One [`Drain`] for the node, and one tap for each source of work: the queue of this process, or every linked
//! balancer. `budget` decides how much is taken, by the `pace` of functions and the `pressure` on processors, and of which:
//! not of those that are `unfit`;
//! `held` keeps what the node has, `run` runs one message.
//!
//! Invariant: a message that the node has is in `held` from when it is taken until its end is told, and its lease is
//! renewed for as long by some tap, if there is any.

mod budget;
mod held;
mod pace;
mod pressure;
mod run;
mod unfit;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_shared::ids::{CallId, FunctionId};
use kiln_shared::queue::{
    FUNCTIONS_MAX, Finished, Held, Outcome, Preferred, QueueError, Reserve, Retry, Settled, Work, WorkSource,
};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::budget::Shares;
use self::budget::{COLD_MAX, Room};
use self::held::{End, HeldMessages, SourceName};
use self::pace::Paces;
use self::pressure::Pressure;
use self::unfit::Unfit;
use crate::Agent;

/// Longest wait for work in one question.
const TAKE_WAIT: Duration = Duration::from_secs(20);
/// How long ends of messages are gathered, to be told together.
const GATHER: Duration = Duration::from_millis(2);
/// Most ends that are told together.
const TELL_MAX: usize = 128;
/// Pause after the queue was away or said that it failed.
const TROUBLE_PAUSE: Duration = Duration::from_secs(1);

/// How a node drains the queue.
#[derive(Debug, Clone, Copy)]
pub struct DrainConfig {
    /// What queued work may use of the node.
    pub shares: Shares,
    /// How long a message is the node's before it must have said that it still has it.
    pub lease: Duration,
}

impl Default for DrainConfig {
    fn default() -> Self {
        let shares = Shares {
            memory_percent: 80,
            high_water_percent: 80,
            cpu_pressure_percent: 100,
            messages_max: 256,
            payload_bytes_max: 256 << 20,
        };
        Self { shares, lease: Duration::from_secs(30) }
    }
}

/// The draining of one node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Drain {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    agent: Agent,
    worker: String,
    config: DrainConfig,
    held: Mutex<HeldMessages>,
    paces: Mutex<Paces>,
    unfit: Mutex<Unfit>,
    pressure: Mutex<Pressure>,
    /// Something in `held` has changed that the taps must look at.
    changed: Notify,
    /// An end is to be told.
    ended: Notify,
    tasks: TaskTracker,
    /// Nothing more is taken.
    stop: CancellationToken,
}

impl Drain {
    /// A drain of the agent's node, which shows itself to the queue as `worker`. Takes nothing until it is tapped.
    pub fn new(agent: Agent, worker: impl Into<String>, config: DrainConfig) -> Self {
        let shared = Shared {
            agent,
            worker: worker.into(),
            config,
            held: Mutex::default(),
            paces: Mutex::default(),
            unfit: Mutex::default(),
            pressure: Mutex::new(Pressure::new(config.shares.cpu_pressure_percent)),
            changed: Notify::new(),
            ended: Notify::new(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Takes work from `source` while the future is polled, and tells it how that ended. Ends after [`Self::finish`]
    /// when nothing is left to tell. Dropping it loses nothing: what runs goes on, and another tap tells its end; what
    /// was being taken comes back when its lease ends.
    pub async fn tap(&self, name: &str, source: &dyn WorkSource) {
        let name: SourceName = Arc::from(name);
        let _tapped = Tapped::new(&self.shared, &name);
        tokio::select! {
            () = self.renew(&name, source) => {}
            ((), ()) = async { tokio::join!(self.take(&name, source), self.tell(&name, source)) } => {}
        }
    }

    /// Takes nothing more, gives back what has not begun, and waits until the end of everything else is told. The
    /// caller bounds the wait: what is left then comes back to the queue when its lease ends.
    pub async fn finish(&self) {
        self.shared.stop.cancel();
        self.shared.held().give_up_waiting();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        loop {
            let changed = self.shared.changed.notified();
            // What was taken after the tasks were waited for ends soon: it is given up before it begins.
            if self.shared.held().is_empty() {
                return;
            }
            changed.await;
        }
    }

    async fn take(&self, name: &SourceName, source: &dyn WorkSource) {
        let mut reports = self.shared.agent.reports();
        // Nobody tells when processors are no longer pressed.
        let mut looks = interval(pressure::WINDOW);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.shared.stop.is_cancelled() {
            // Before the room is judged, so that no change in between is missed.
            let changed = self.shared.changed.notified();
            let (room, is_pressed) = {
                let report = reports.borrow_and_update();
                if report.draining {
                    self.shared.held().give_up_waiting();
                }
                self.shared.room(&report)
            };
            let Some(reserve) = self.shared.ask_for(&room) else {
                tokio::select! {
                    () = self.shared.stop.cancelled() => return,
                    () = changed => {}
                    _ = looks.tick(), if is_pressed => {}
                    changed = reports.changed() => if changed.is_err() { return },
                }
                continue;
            };
            let asking = Asking::new(&self.shared);
            let enough = CancellationToken::new();
            let mut taken = source.take(reserve, TAKE_WAIT, enough.clone());
            let taken = loop {
                let changed = self.shared.changed.notified();
                let (now, is_pressed) = self.shared.room(&reports.borrow_and_update());
                if now.is_other_than(&room) {
                    enough.cancel();
                }
                // What is taken must not be dropped, so the wait is ended from within.
                tokio::select! {
                    taken = &mut taken => break taken,
                    () = self.shared.stop.cancelled(), if !enough.is_cancelled() => enough.cancel(),
                    () = changed, if !enough.is_cancelled() => {}
                    _ = looks.tick(), if is_pressed && !enough.is_cancelled() => {}
                    Ok(()) = reports.changed(), if !enough.is_cancelled() => {}
                }
            };
            match taken {
                Ok(work) => work.into_iter().for_each(|work| self.start(name, work)),
                Err(error) => {
                    trouble(name, "cannot take work from the queue", &error);
                    drop(asking);
                    self.shared.stop.run_until_cancelled(sleep(TROUBLE_PAUSE)).await;
                }
            }
        }
    }

    fn start(&self, name: &SourceName, work: Work) {
        let (id, function) = (work.message.receipt.id, work.message.function_id);
        let give_up = CancellationToken::new();
        let memory_mib = work.function.spec.memory_mib;
        let leased_until = Instant::now() + self.shared.config.lease;
        if !self.shared.held().take(
            &work.message,
            Arc::clone(name),
            memory_mib,
            leased_until,
            give_up.clone(),
        ) {
            metrics::counter!("kiln_queued_calls_adopted_total").increment(1);
            tracing::debug!(call = %id, "a call came again while it runs here; its run goes on under the new lease");
            return;
        }
        let shared = Arc::clone(&self.shared);
        if shared.stop.is_cancelled() {
            give_up.cancel();
        }
        let run = Run::new(&shared, id, function);
        if !shared.agent.could_ever_fit(&work.function) {
            if shared.unfit().found(function, Instant::now()) {
                tracing::info!(%function, "too large for this node: its queued calls are left to others");
            }
            return run.ended(End { outcome: Outcome::Unstarted, answer: None }, None);
        }
        // Here and not in the task: messages keep their order.
        let entered = run::enter(&shared.agent, work);
        self.shared.tasks.spawn(async move {
            let mut since = None;
            let begins = || {
                let now = Instant::now();
                let begins = shared.held().begins(id, now);
                if begins {
                    since = Some(now);
                    shared.changed.notify_waiters();
                }
                begins
            };
            let end = entered.run(&give_up, begins).await;
            run.ended(end, since.map(|since| since.elapsed()));
        });
    }

    async fn tell(&self, name: &SourceName, source: &dyn WorkSource) {
        let mut most = TELL_MAX;
        loop {
            let ended = self.shared.ended.notified();
            let (telling, is_over) = {
                let mut held = self.shared.held();
                let is_over = self.shared.stop.is_cancelled() && held.is_empty();
                (Telling::begin(&self.shared, held.next_to_tell(name, most)), is_over)
            };
            if telling.finished.is_empty() {
                if is_over {
                    return;
                }
                tokio::select! {
                    () = ended => sleep(GATHER).await,
                    // What an untapped source has left behind, and the end of it all.
                    () = sleep(TROUBLE_PAUSE) => {}
                }
                self.shared.held().forget_strange(Instant::now(), self.shared.config.lease);
                continue;
            }
            match source.finish(telling.finished.clone()).await {
                Ok(settled) => {
                    telling.told(name, &settled);
                    most = (2 * most).min(TELL_MAX);
                }
                Err(error) if error.is_temporary() => {
                    trouble(name, "cannot tell the queue how work ended; trying again", &error);
                    drop(telling);
                    sleep(TROUBLE_PAUSE).await;
                }
                // One of them is at fault: each is told alone, so that the others are not lost with it.
                Err(_) if telling.finished.len() > 1 => most = 1,
                Err(error) => {
                    trouble(name, "the queue does not take how work ended", &error);
                    telling.refused(name);
                }
            }
        }
    }

    async fn renew(&self, name: &SourceName, source: &dyn WorkSource) {
        let lease = self.shared.config.lease;
        loop {
            // At once when the tap opens: nobody may have renewed for a while.
            let mut pause = lease / 3;
            let receipts = self.shared.held().to_renew(name);
            if !receipts.is_empty() {
                // An answer that comes later than this is none: another try must still be in time.
                let leased_until = Instant::now() + lease;
                let renewed = timeout(lease / 3, source.renew(receipts.clone(), lease)).await;
                let silent = |_elapsed| QueueError::Unavailable("it did not answer in time".to_owned());
                match renewed.unwrap_or_else(|elapsed| Err(silent(elapsed))) {
                    Ok(held) => {
                        let mut messages = self.shared.held();
                        for (receipt, held) in receipts.into_iter().zip(held) {
                            match held {
                                Held::Held => messages.renewed(receipt, leased_until),
                                Held::Lost => messages.lost(receipt, name),
                            }
                        }
                    }
                    Err(error) => {
                        trouble(name, "cannot renew leases; trying again", &error);
                        pause = pause.min(TROUBLE_PAUSE);
                    }
                }
            }
            sleep(pause).await;
        }
    }
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, HeldMessages> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What may be taken now, and whether processors are pressed.
    fn room(&self, report: &kiln_shared::report::NodeReport) -> (Room, bool) {
        let now = Instant::now();
        let is_pressed = self.pressure.lock().unwrap_or_else(PoisonError::into_inner).is_high(now);
        let (held, taps) = {
            let held = self.held();
            (budget::Held { is_pressed, ..held.sum() }, held.tapped())
        };
        let (paces, unfit) = (self.paces(), self.unfit());
        // All taps ask at the same time.
        (Room::of(report, &held, &paces, unfit.functions(now), self.config.shares).part(taps), is_pressed)
    }

    fn unfit(&self) -> MutexGuard<'_, Unfit> {
        self.unfit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn paces(&self) -> MutexGuard<'_, Paces> {
        self.paces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask_for(&self, room: &Room) -> Option<Reserve> {
        use kiln_shared::queue::Functions;
        let named = |functions: &[Preferred]| functions[..functions.len().min(FUNCTIONS_MAX)].to_vec();
        let (preferred, functions, messages) = match room {
            Room::None => return None,
            Room::Warm { functions, messages } => {
                let preferred = named(functions);
                let only = preferred.iter().map(|preferred| preferred.function).collect();
                (preferred, Functions::Only(only), *messages)
            }
            Room::Any { warm, except, messages } if except.is_empty() => {
                (named(warm), Functions::All, *messages)
            }
            Room::Any { warm, except, messages } => {
                (named(warm), Functions::Except(except.clone()), *messages)
            }
        };
        let asked = Reserve::new(self.worker.clone(), messages, self.config.lease);
        Some(Reserve { preferred, functions, each_max: COLD_MAX, ..asked })
    }
}

/// A tap that is open.
struct Tapped<'a> {
    shared: &'a Shared,
    name: &'a SourceName,
}

impl<'a> Tapped<'a> {
    fn new(shared: &'a Shared, name: &'a SourceName) -> Self {
        shared.held().tap(name);
        Self { shared, name }
    }
}

impl Drop for Tapped<'_> {
    fn drop(&mut self) {
        self.shared.held().untap(self.name);
        self.shared.ended.notify_waiters();
    }
}

/// A question for work that is under way: what it brings must be waited for.
struct Asking<'a>(&'a Shared);

impl<'a> Asking<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.held().asking();
        Self(shared)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.held().answered();
        self.0.changed.notify_waiters();
        self.0.ended.notify_waiters();
    }
}

/// The run of a message, which ends somehow even if it panics.
struct Run {
    shared: Arc<Shared>,
    id: CallId,
    function: FunctionId,
    end: End,
    /// How long it had its container.
    took: Option<Duration>,
}

impl Run {
    fn new(shared: &Arc<Shared>, id: CallId, function: FunctionId) -> Self {
        let error = "the agent failed while it ran this call".to_owned();
        let end = End { outcome: Outcome::Failed { error, retry: Retry::ByPolicy }, answer: None };
        Self { shared: Arc::clone(shared), id, function, end, took: None }
    }

    fn ended(mut self, end: End, took: Option<Duration>) {
        (self.end, self.took) = (end, took);
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Some(took) = self.took {
            self.shared.paces().ran(self.function, took);
        }
        self.shared.held().finished(self.id, self.end.clone(), Instant::now());
        self.shared.ended.notify_waiters();
    }
}

/// Ends that are being told. Dropped before they are told, another try tells them.
struct Telling<'a> {
    shared: &'a Shared,
    finished: Vec<Finished>,
}

impl<'a> Telling<'a> {
    fn begin(shared: &'a Shared, finished: Vec<Finished>) -> Self {
        Self { shared, finished }
    }

    fn told(mut self, source: &SourceName, settled: &[Settled]) {
        let told = std::mem::take(&mut self.finished);
        for finished in &told {
            let outcome = match finished.outcome {
                Outcome::Done => "done",
                Outcome::Failed { .. } => "failed",
                Outcome::Unstarted => "unstarted",
            };
            metrics::counter!("kiln_queued_calls_total", "outcome" => outcome).increment(1);
        }
        self.shared.held().told(source, &told, settled);
        self.shared.changed.notify_waiters();
    }

    /// The source will never take them: they come back to it when their leases end.
    fn refused(self, source: &SourceName) {
        let lost = vec![Settled::Lost; self.finished.len()];
        self.told(source, &lost);
    }
}

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        if !self.finished.is_empty() {
            self.shared.held().untold(&self.finished);
        }
    }
}

fn trouble(source: &str, what: &str, error: &QueueError) {
    metrics::counter!("kiln_queue_failures_total").increment(1);
    tracing::warn!(source, %error, "{what}");
}
