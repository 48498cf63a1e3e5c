//! The balancer's side of draining: gives messages to nodes and takes their ends back.
//!
//! Nodes that wait for work wait here, not at the queue: of all who wait only a few ask it at a time, and once one who
//! takes everything has found nothing, the others do not ask before the next wake-up.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kiln_shared::function::Function;
use kiln_shared::ids::FunctionId;
use kiln_shared::queue::{
    Destination, Finished, Functions, Held, NewMessage, Outcome, Queue, QueueError, QueueFuture, Receipt,
    Reserve, Reserved, Retry, Settled, Settlement, TAKE_WAIT_MAX, Work, WorkSource,
};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::notice::{DELIVERIES, End, Recipient, notice};
use crate::route::RouteReader;

/// Most nodes that ask the queue at a time.
const ASKING_MAX: usize = 4;
/// Most names of destinations that are remembered with their ids.
const NAMES_MAX: usize = 10_000;

/// Gives work out. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Dispatcher {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Arc<dyn Queue>,
    routes: RouteReader,
    /// Counts wake-ups of the queue.
    wakes: watch::Sender<u64>,
    /// The wake-up after which one who takes everything found less than it asked for.
    exhausted: AtomicU64,
    asking: Semaphore,
    names: Mutex<HashMap<(String, String), FunctionId>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Dispatcher").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl Dispatcher {
    /// Gives out the messages of `queue` with the functions that `routes` knows. [`Self::run`] must run, too.
    pub fn new(queue: Arc<dyn Queue>, routes: RouteReader) -> Self {
        let shared = Shared {
            queue,
            routes,
            wakes: watch::Sender::new(1),
            exhausted: AtomicU64::new(0),
            asking: Semaphore::new(ASKING_MAX),
            names: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Passes on the queue's wake-ups until `stop`, or until the queue is closed.
    pub async fn run(self, stop: CancellationToken) {
        let mut wakeups = self.shared.queue.subscribe();
        while let Some(Ok(())) = stop.run_until_cancelled(wakeups.next()).await {
            self.shared.wakes.send_modify(|count| *count += 1);
        }
    }

    /// Takes messages of the deliveries alone.
    pub(super) async fn take_deliveries(
        &self,
        worker: &str,
        messages_max: usize,
        lease: Duration,
        wait: Duration,
    ) -> Result<Vec<Reserved>, QueueError> {
        let functions = Functions::Only(vec![*DELIVERIES]);
        let reserve = Reserve { functions, ..Reserve::new(worker, messages_max, lease) };
        self.shared.reserve(&reserve, wait, &CancellationToken::new()).await
    }

    /// Settles without telling destinations, for work that reached nobody.
    ///
    /// # Errors
    /// As [`Queue::settle`].
    pub(crate) async fn settle_plainly(
        &self,
        settlements: Vec<Settlement>,
    ) -> Result<Vec<Settled>, QueueError> {
        self.shared.queue.settle(settlements).await
    }

    async fn take_work(
        &self,
        mut reserve: Reserve,
        wait: Duration,
        enough: CancellationToken,
    ) -> Result<Vec<Work>, QueueError> {
        leave_out_deliveries(&mut reserve.functions);
        let deadline = Instant::now() + wait.min(TAKE_WAIT_MAX);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let reserved = self.shared.reserve(&reserve, left, &enough).await?;
            let is_over = reserved.is_empty();
            let work = self.shared.with_functions(reserved).await?;
            // Otherwise all were for functions that are gone.
            if is_over || !work.is_empty() {
                return Ok(work);
            }
        }
    }

    /// Tells destinations, and then the queue: what breaks off in between is told again, under the same key.
    async fn settle(&self, finished: Vec<Finished>) -> Result<Vec<Settled>, QueueError> {
        let mut notices: Vec<NewMessage> = Vec::new();
        for end in &finished {
            let told = match (&end.outcome, &end.answer) {
                (Outcome::Done, Some(answer)) => Some(End::Success(answer)),
                (Outcome::Failed { error, .. }, _) if end.is_last => Some(End::Dead(error)),
                _ => None,
            };
            if let Some(told) = told {
                notices.extend(self.shared.notice_of(end, told));
            }
        }
        if !notices.is_empty() {
            self.shared.queue.enqueue(notices).await?;
        }
        let settlements =
            finished.iter().map(|end| Settlement { receipt: end.receipt, outcome: end.outcome.clone() });
        let settled = self.shared.queue.settle(settlements.collect()).await?;
        // Dead by its deadline, which only the queue knows.
        let late =
            finished.iter().zip(&settled).filter(|(end, settled)| **settled == Settled::Dead && !end.is_last);
        let late = late.filter_map(|(end, _)| match &end.outcome {
            Outcome::Failed { error, .. } => self.shared.notice_of(end, End::Dead(error)),
            _ => None,
        });
        let late: Vec<_> = late.collect();
        if !late.is_empty() {
            self.shared.queue.enqueue(late).await?;
        }
        Ok(settled)
    }
}

impl Shared {
    /// Reserves, and waits if there is nothing.
    async fn reserve(
        &self,
        reserve: &Reserve,
        wait: Duration,
        enough: &CancellationToken,
    ) -> Result<Vec<Reserved>, QueueError> {
        let deadline = Instant::now() + wait.min(TAKE_WAIT_MAX);
        let mut wakes = self.wakes.subscribe();
        let takes_all = !matches!(reserve.functions, Functions::Only(_));
        loop {
            let wake = *wakes.borrow_and_update();
            if !(takes_all && self.exhausted.load(Ordering::Acquire) >= wake) {
                let asking = self.asking.acquire().await;
                // Whoever asked meanwhile may have found nothing more.
                if !(takes_all && self.exhausted.load(Ordering::Acquire) >= wake) {
                    let reserved = self.queue.reserve(reserve.clone()).await?;
                    if takes_all && reserved.len() < reserve.messages_max {
                        self.exhausted.fetch_max(wake, Ordering::AcqRel);
                    }
                    if !reserved.is_empty() {
                        return Ok(reserved);
                    }
                }
                drop(asking);
            }
            tokio::select! {
                woken = timeout_at(deadline, wakes.changed()) => match woken {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(_) => return Ok(Vec::new()),
                },
                () = enough.cancelled() => return Ok(Vec::new()),
            }
        }
    }

    fn function(&self, id: FunctionId) -> Option<Arc<Function>> {
        self.routes.clone().routes().function(&id).ok().cloned()
    }

    /// Adds the functions. Messages of functions that are gone fail for good.
    async fn with_functions(&self, reserved: Vec<Reserved>) -> Result<Vec<Work>, QueueError> {
        let (mut work, mut gone) = (Vec::with_capacity(reserved.len()), Vec::new());
        let mut routes = self.routes.clone();
        let routes = routes.routes();
        for message in reserved {
            match routes.function(&message.function_id) {
                Ok(function) => work.push(Work { function: Arc::clone(function), message }),
                Err(_) => gone.push(Settlement {
                    receipt: message.receipt,
                    outcome: Outcome::Failed {
                        error: format!("there is no function {} any more", message.function_id),
                        retry: Retry::Never,
                    },
                }),
            }
        }
        if !gone.is_empty() {
            self.queue.settle(gone).await?;
        }
        Ok(work)
    }

    /// The message for the destination of this end, if there is one.
    fn notice_of(&self, finished: &Finished, end: End<'_>) -> Option<NewMessage> {
        let function = self.function(finished.function_id)?;
        let policy = &function.spec.detached;
        let destination = match end {
            End::Success(_) => policy.on_success.as_ref(),
            End::Dead(_) => policy.on_failure.as_ref(),
        };
        let (call, attempts) = (finished.receipt.id, finished.attempt);
        let made = match destination? {
            Destination::Http(url) => notice(call, &function, attempts, end, Recipient::Url(url)),
            Destination::Function { app, function: name } => {
                let Some(to) = self.named(app, name) else {
                    tracing::warn!(%call, destination = %destination?, "no such destination; nothing is told");
                    metrics::counter!("kiln_destinations_missing_total").increment(1);
                    return None;
                };
                notice(call, &function, attempts, end, Recipient::Function(&to))
            }
        };
        made.inspect_err(|error| tracing::warn!(%call, %error, "cannot tell a destination")).ok()
    }

    /// A function by its names. O(functions) the first time, O(1) then.
    fn named(&self, app: &str, name: &str) -> Option<Arc<Function>> {
        let is_named = |function: &Arc<Function>| function.spec.app_name == app && function.spec.name == name;
        let key = (app.to_owned(), name.to_owned());
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = names.get(&key).and_then(|id| self.function(*id)).filter(is_named) {
            return Some(function);
        }
        let mut routes = self.routes.clone();
        let function = routes.routes().functions().find(|function| is_named(function)).cloned()?;
        if names.len() >= NAMES_MAX {
            names.clear();
        }
        names.insert(key, function.spec.id);
        Some(function)
    }
}

fn leave_out_deliveries(functions: &mut Functions) {
    match functions {
        Functions::All => *functions = Functions::Except(vec![*DELIVERIES]),
        Functions::Except(others) => others.push(*DELIVERIES),
        Functions::Only(these) => these.retain(|function| *function != *DELIVERIES),
    }
}

impl WorkSource for Dispatcher {
    fn take(
        &self,
        reserve: Reserve,
        wait: Duration,
        enough: CancellationToken,
    ) -> QueueFuture<'_, Vec<Work>> {
        Box::pin(self.take_work(reserve, wait, enough))
    }

    fn renew(&self, receipts: Vec<Receipt>, lease: Duration) -> QueueFuture<'_, Vec<Held>> {
        self.shared.queue.renew(receipts, lease)
    }

    fn finish(&self, finished: Vec<Finished>) -> QueueFuture<'_, Vec<Settled>> {
        Box::pin(self.settle(finished))
    }
}
