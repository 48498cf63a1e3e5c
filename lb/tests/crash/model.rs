//! The queue in memory: what it stores survives everything. Of what is under way when its server goes down either the effect
//! is lost, or the answer alone.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kiln_shared::ids::CallId;
use kiln_shared::queue::{
    Cancelled, Depth, Enqueued, Held, List, MessageView, NewMessage, Next, Outcome, Page, Purge, Queue,
    QueueError, QueueFuture, Receipt, Redrive, Reserve, Reserved, Settled, Settlement, Tries, WakeSource,
    Wakeups, abandoned, failed,
};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::sleep;

/// Longest time of an operation before it is done, and after that.
const DELAY_MAX: Duration = Duration::from_millis(20);
/// The same of a few, so that the server dies in the middle of one now and then.
const SLOW_DELAY_MAX: Duration = Duration::from_millis(400);
/// The share of the few.
const SLOW_SHARE: f64 = 0.03;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    Waiting { due: Duration },
    Running { lease: u64, until: Duration, worker: String },
    Done { lease: u64 },
    Dead { error: String },
}

struct Stored {
    message: NewMessage,
    state: State,
    attempts: u32,
}

struct Inside {
    messages: BTreeMap<u64, Stored>,
    numbers: HashMap<CallId, u64>,
    leases: u64,
    is_down: bool,
    /// Counts the server's lives.
    life: u64,
    draws: StdRng,
}

pub(crate) struct Model {
    inside: Mutex<Inside>,
    wake: WakeSource,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Model").finish_non_exhaustive()
    }
}

pub(crate) fn now() -> Duration {
    turmoil::sim_elapsed().expect("on a simulated host")
}

impl Model {
    pub(crate) fn new(seed: u64) -> Self {
        let inside = Inside {
            messages: BTreeMap::new(),
            numbers: HashMap::new(),
            leases: 0,
            is_down: false,
            life: 0,
            draws: StdRng::seed_from_u64(seed),
        };
        Self { inside: Mutex::new(inside), wake: WakeSource::default() }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server is killed, with all that is under way.
    pub(crate) fn kill(&self) {
        let mut inside = self.inside();
        inside.is_down = true;
        inside.life += 1;
    }

    pub(crate) fn is_down(&self) -> bool {
        self.inside().is_down
    }

    pub(crate) fn start(&self) {
        self.inside().is_down = false;
    }

    /// Wakes those who wait if something is due: every backend looks now and then.
    pub(crate) fn look(&self) {
        let (now, inside) = (now(), self.inside());
        let is_due = !inside.is_down
            && inside.messages.values().any(|stored| match stored.state {
                State::Waiting { due } => due <= now,
                State::Running { until, .. } => until <= now,
                State::Done { .. } | State::Dead { .. } => false,
            });
        drop(inside);
        if is_due {
            self.wake.wake();
        }
    }

    /// Where a message is.
    pub(crate) fn state(&self, id: CallId) -> Option<State> {
        let inside = self.inside();
        inside.numbers.get(&id).map(|number| inside.messages[number].state.clone())
    }

    async fn answer<T>(&self, work: impl FnOnce(&mut Inside, Duration) -> T) -> Result<T, QueueError> {
        let away = || QueueError::Unavailable("its server was killed".to_owned());
        let (before, after, life) = {
            let mut inside = self.inside();
            let longest = if inside.draws.random_bool(SLOW_SHARE) { SLOW_DELAY_MAX } else { DELAY_MAX };
            let mut pause = || longest.mul_f64(inside.draws.random::<f64>());
            (pause(), pause(), inside.life)
        };
        sleep(before).await;
        let answer = {
            let mut inside = self.inside();
            // It may be up again: what the killed one was asked is lost all the same.
            if inside.is_down || inside.life != life {
                return Err(away());
            }
            work(&mut inside, now())
        };
        sleep(after).await;
        if self.inside().life == life { Ok(answer) } else { Err(away()) }
    }
}

impl Inside {
    fn running(&mut self, receipt: Receipt) -> Option<&mut Stored> {
        let number = self.numbers.get(&receipt.id)?;
        let stored = self.messages.get_mut(number)?;
        matches!(stored.state, State::Running { lease, .. } if lease == receipt.lease).then_some(stored)
    }

    fn enqueue(&mut self, message: NewMessage, now: Duration) -> Enqueued {
        let id = message.id;
        if self.numbers.contains_key(&id) {
            return Enqueued::Known(id);
        }
        let number = self.messages.len() as u64;
        let state = State::Waiting { due: now + message.delay };
        self.numbers.insert(id, number);
        self.messages.insert(number, Stored { message, state, attempts: 0 });
        Enqueued::New(id)
    }

    fn reserve(&mut self, reserve: &Reserve, now: Duration) -> Vec<Reserved> {
        let Self { messages, leases, .. } = self;
        let mut reserved = Vec::new();
        for stored in messages.values_mut() {
            if let State::Running { until, worker, .. } = &stored.state
                && *until <= now
            {
                let next = abandoned(&stored.tries(), worker, millis(now));
                stored.again(next, now);
            }
            let is_due = matches!(stored.state, State::Waiting { due } if due <= now);
            let is_wanted = reserve.functions.include(stored.message.function_id);
            if is_due && is_wanted && reserved.len() < reserve.messages_max {
                *leases += 1;
                stored.attempts += 1;
                let (until, worker) = (now + reserve.lease, reserve.worker.clone());
                stored.state = State::Running { lease: *leases, until, worker };
                reserved.push(stored.reserved(*leases));
            }
        }
        reserved
    }

    fn settle(&mut self, settlement: Settlement, now: Duration) -> Settled {
        let random = self.draws.random::<f64>();
        let Some(stored) = self.running(settlement.receipt) else {
            let number = self.numbers.get(&settlement.receipt.id);
            let state = number.map(|number| &self.messages[number].state);
            let is_repeated =
                matches!(state, Some(State::Done { lease }) if *lease == settlement.receipt.lease);
            return if is_repeated && settlement.outcome == Outcome::Done {
                Settled::Done
            } else {
                Settled::Lost
            };
        };
        match settlement.outcome {
            Outcome::Done => {
                stored.state = State::Done { lease: settlement.receipt.lease };
                Settled::Done
            }
            Outcome::Unstarted => {
                stored.attempts -= 1;
                stored.state = State::Waiting { due: now };
                Settled::Again { after: Duration::ZERO }
            }
            Outcome::Failed { error, retry } => {
                let next = failed(&stored.tries(), &error, retry, millis(now), random);
                stored.again(next, now)
            }
        }
    }
}

fn millis(time: Duration) -> i64 {
    time.as_millis() as i64
}

impl Stored {
    fn tries(&self) -> Tries {
        Tries { attempts: self.attempts, retry: self.message.retry, deadline_millis: None }
    }

    fn again(&mut self, next: Next, now: Duration) -> Settled {
        match next {
            Next::Again { after, .. } => {
                self.state = State::Waiting { due: now + after };
                Settled::Again { after }
            }
            Next::Dead { error } => {
                self.state = State::Dead { error };
                Settled::Dead
            }
        }
    }

    fn reserved(&self, lease: u64) -> Reserved {
        let message = self.message.clone();
        Reserved {
            receipt: Receipt { id: message.id, lease },
            function_id: message.function_id,
            app_id: message.app_id,
            priority: message.priority,
            attempt: self.attempts,
            retry: message.retry,
            created_at: Timestamp::UNIX_EPOCH,
            envelope: message.envelope,
            payload: message.payload,
        }
    }
}

fn not_modelled<T: Send + 'static>() -> QueueFuture<'static, T> {
    Box::pin(std::future::ready(Err(QueueError::Failed("the model cannot do this".to_owned()))))
}

impl Queue for Model {
    fn enqueue(&self, messages: Vec<NewMessage>) -> QueueFuture<'_, Vec<Enqueued>> {
        Box::pin(async move {
            let stored = self.answer(|inside, now| {
                let stored = messages.into_iter().map(|message| inside.enqueue(message, now)).collect();
                self.wake.wake();
                stored
            });
            stored.await
        })
    }

    fn reserve(&self, reserve: Reserve) -> QueueFuture<'_, Vec<Reserved>> {
        Box::pin(async move { self.answer(|inside, now| inside.reserve(&reserve, now)).await })
    }

    fn renew(&self, receipts: Vec<Receipt>, lease: Duration) -> QueueFuture<'_, Vec<Held>> {
        let renew = move |inside: &mut Inside, now| {
            let held = receipts.into_iter().map(|receipt| match inside.running(receipt) {
                Some(Stored { state: State::Running { until, .. }, .. }) => {
                    *until = now + lease;
                    Held::Held
                }
                Some(_) | None => Held::Lost,
            });
            held.collect()
        };
        Box::pin(self.answer(renew))
    }

    fn settle(&self, settlements: Vec<Settlement>) -> QueueFuture<'_, Vec<Settled>> {
        Box::pin(self.answer(move |inside, now| {
            let settled = settlements.into_iter().map(|settlement| inside.settle(settlement, now)).collect();
            self.wake.wake();
            settled
        }))
    }

    fn inspect(&self, _id: CallId) -> QueueFuture<'_, Option<MessageView>> {
        not_modelled()
    }

    fn list(&self, _list: List) -> QueueFuture<'_, Page> {
        not_modelled()
    }

    fn redrive(&self, _redrive: Redrive) -> QueueFuture<'_, u64> {
        not_modelled()
    }

    fn cancel(&self, _id: CallId) -> QueueFuture<'_, Cancelled> {
        not_modelled()
    }

    fn depth(&self) -> QueueFuture<'_, Vec<Depth>> {
        not_modelled()
    }

    fn purge(&self, _purge: Purge) -> QueueFuture<'_, u64> {
        not_modelled()
    }

    fn subscribe(&self) -> Wakeups {
        self.wake.subscribe()
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }
}
