//! The balancer's side of draining: gives messages to nodes and takes their ends back.
//!
//! Nodes that wait for work wait here, not at the queue: of all who wait only a few ask it at a time, and once one who
//! takes everything has found nothing, no other of them asks before the next wake-up.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_api::{Catalog, StoreError};
use kiln_shared::function::Function;
use kiln_shared::ids::FunctionId;
use kiln_shared::model::ApiError;
use kiln_shared::queue::{
    BATCH_BYTES_MAX, Finished, Functions, Held, MessageView, Outcome, PAYLOAD_BYTES_MAX, Queue, QueueError,
    QueueFuture, Receipt, Reserve, Reserved, Retry, Settled, Settlement, TAKE_WAIT_MAX, Work, WorkSource,
};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::limited::{Concurrency, Limited};
use super::notice::{DELIVERIES, End};
use super::tell::Teller;
use super::unknown::{UNKNOWN_PAUSE, Unknown};
use crate::fleet::concurrency::LimitReached;
use crate::route::RouteReader;

/// Most nodes that ask the queue at a time.
const ASKING_MAX: usize = 4;
/// Configuration of functions that is given out together, in bytes, and what the last function has more: it must fit into
/// one message ([`kiln_shared::link::work::WORK_BYTES_MAX`]), where JSON may write a character in six bytes.
const CONFIG_BYTES_MAX: usize = 1 << 20;

/// What is known of functions.
#[derive(Debug, Clone)]
pub struct Known {
    /// All that have come here.
    pub routes: RouteReader,
    /// What is asked before a function is taken to be gone; absent where the routes know all there are.
    pub catalog: Option<Catalog>,
    /// How many calls of them run; absent where none has a limit.
    pub concurrency: Option<Concurrency>,
}

impl Known {
    /// Only what `routes` knows.
    pub fn of(routes: RouteReader) -> Self {
        Self { routes, catalog: None, concurrency: None }
    }
}

/// Gives work out. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Dispatcher {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Arc<dyn Queue>,
    known: Known,
    teller: Teller,
    /// Counts wake-ups of the queue.
    wakes: watch::Sender<u64>,
    /// The wake-up after which one who takes everything found less than it asked for.
    exhausted: AtomicU64,
    asking: Semaphore,
    unknown: Mutex<Unknown>,
    limited: Mutex<Limited>,
    /// Something of a crowded function has ended.
    freed: Notify,
    /// Counts questions, so that crowded functions and the others take turns.
    turn: AtomicUsize,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Dispatcher").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl Dispatcher {
    /// Gives out the messages of `queue` with their functions. [`Self::run`] must run, too.
    pub fn new(queue: Arc<dyn Queue>, known: Known) -> Self {
        let shared = Shared {
            teller: Teller::new(Arc::clone(&queue), known.routes.clone()),
            queue,
            known,
            wakes: watch::Sender::new(1),
            exhausted: AtomicU64::new(0),
            asking: Semaphore::new(ASKING_MAX),
            unknown: Mutex::default(),
            limited: Mutex::default(),
            freed: Notify::new(),
            turn: AtomicUsize::new(0),
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

    /// Takes messages of the deliveries alone. To be awaited to its end; `enough` ends the wait.
    pub(super) async fn take_deliveries(
        &self,
        worker: &str,
        messages_max: usize,
        lease: Duration,
        wait: Duration,
        enough: &CancellationToken,
    ) -> Result<Vec<Reserved>, QueueError> {
        let functions = Functions::Only(vec![*DELIVERIES]);
        let reserve = Reserve { functions, ..Reserve::new(worker, messages_max, lease) };
        self.shared.reserve(&reserve, Takes::Some, wait, enough).await
    }

    /// Settles without telling destinations, for work that reached nobody.
    ///
    /// # Errors
    /// As [`Queue::settle`].
    pub(crate) async fn settle_plainly(
        &self,
        settlements: Vec<Settlement>,
    ) -> Result<Vec<Settled>, QueueError> {
        let outcomes: Vec<Outcome> =
            settlements.iter().map(|settlement| settlement.outcome.clone()).collect();
        let receipts: Vec<Receipt> = settlements.iter().map(|settlement| settlement.receipt).collect();
        let settled = self.shared.queue.settle(settlements).await?;
        self.shared.ended(receipts);
        count_settled(&outcomes, &settled);
        Ok(settled)
    }

    /// True if calls of the function that fail for good have a destination.
    pub(super) fn tells_failures(&self, function: FunctionId) -> bool {
        self.shared.function(function).is_some_and(|function| function.spec.detached.on_failure.is_some())
    }

    /// Tells destinations of calls that are dead, unless they were told.
    ///
    /// # Errors
    /// As [`Queue::enqueue`].
    pub(super) async fn tell_dead(&self, dead: &[MessageView]) -> Result<(), QueueError> {
        let notice = |message: &MessageView| {
            let error = message.last_error.as_deref().unwrap_or_default();
            self.shared.teller.notice_of(message.id, message.function_id, message.attempts, End::Dead(error))
        };
        self.shared.teller.tell(dead.iter().filter_map(notice).collect()).await
    }

    async fn take_work(
        &self,
        mut reserve: Reserve,
        wait: Duration,
        enough: CancellationToken,
    ) -> Result<Vec<Work>, QueueError> {
        let wanted = reserve.functions.clone();
        let deadline = Instant::now() + wait.min(TAKE_WAIT_MAX);
        loop {
            let mut freed = pin!(self.shared.freed.notified());
            freed.as_mut().enable();
            let crowded = self.shared.crowded();
            if !crowded.is_empty() {
                let work = self.take_in_turn(&reserve, &wanted, &crowded, &enough).await?;
                if !work.is_empty() {
                    return Ok(work);
                }
            }
            let left_out = self.shared.left_out(&crowded);
            let mut left = deadline.saturating_duration_since(Instant::now());
            // Functions that are unknown or crowded now may not be so soon.
            let looks_again = left_out.len() > 1 && left > UNKNOWN_PAUSE;
            if looks_again {
                left = UNKNOWN_PAUSE;
            }
            let is_everything = wanted == Functions::All && left_out.len() == 1;
            let takes = if is_everything { Takes::Everything } else { Takes::Some };
            reserve.functions = leave_out(wanted.clone(), left_out);
            let looking = enough.child_token();
            let mut reserving = pin!(self.shared.reserve(&reserve, takes, left, &looking));
            let (reserved, is_freed) = tokio::select! {
                reserved = &mut reserving => (reserved?, false),
                // What is taken must not be dropped, so the wait is ended from within.
                () = freed.as_mut() => {
                    looking.cancel();
                    (reserving.await?, true)
                }
            };
            let is_over = reserved.is_empty() && (!(looks_again || is_freed) || enough.is_cancelled());
            let work = self.shared.with_functions(reserved, reserve.lease).await;
            // Otherwise all were for functions that are unknown or crowded.
            if is_over || !work.is_empty() {
                return Ok(work);
            }
        }
    }

    /// Asks once for each crowded function that has places, and for all others together, each of them first in its turn.
    async fn take_in_turn(
        &self,
        reserve: &Reserve,
        wanted: &Functions,
        crowded: &[FunctionId],
        enough: &CancellationToken,
    ) -> Result<Vec<Work>, QueueError> {
        let others = leave_out(wanted.clone(), self.shared.left_out(crowded));
        let mut steps: Vec<Option<FunctionId>> = crowded.iter().copied().map(Some).collect();
        steps.push(None);
        let turn = self.shared.turn.fetch_add(1, Ordering::Relaxed);
        let first = turn % steps.len();
        steps.rotate_left(first);
        for function in steps {
            let (functions, messages_max) = match function {
                None => (others.clone(), reserve.messages_max),
                Some(function) if !asks_for(wanted, function) => continue,
                Some(function) => match self.shared.free(function) {
                    Some(0) => continue,
                    Some(free) => (Functions::Only(vec![function]), reserve.messages_max.min(free as usize)),
                    None => {
                        self.shared.limited().is_through(function);
                        continue;
                    }
                },
            };
            let asked = Reserve { functions, messages_max, ..reserve.clone() };
            let reserved = self.shared.reserve(&asked, Takes::Some, Duration::ZERO, enough).await?;
            if let Some(function) = function
                && reserved.len() < messages_max.min(asked.most_of(function))
            {
                self.shared.limited().is_through(function);
            }
            let work = self.shared.with_functions(reserved, reserve.lease).await;
            if !work.is_empty() {
                return Ok(work);
            }
        }
        Ok(Vec::new())
    }

    async fn renew_leases(&self, receipts: Vec<Receipt>, lease: Duration) -> Result<Vec<Held>, QueueError> {
        let leased_until = Instant::now() + lease;
        let held = self.shared.queue.renew(receipts.clone(), lease).await?;
        let lost = receipts.iter().zip(&held).filter(|(_, held)| **held == Held::Lost);
        self.shared.ended(lost.map(|(receipt, _)| *receipt));
        let mut limited = self.shared.limited();
        for receipt in receipts {
            limited.renewed(receipt, leased_until);
        }
        Ok(held)
    }

    /// Tells destinations of what succeeded, and then the queue: what breaks off in between is told again, under the same
    /// key. Which calls are dead the queue knows alone, so their destinations are told after it; what breaks off there is
    /// found by [`super::buried`].
    async fn settle(&self, finished: Vec<Finished>) -> Result<Vec<Settled>, QueueError> {
        let succeeded = finished.iter().filter_map(|end| match (&end.outcome, &end.answer) {
            (Outcome::Done, Some(answer)) => self.shared.teller.notice_of_end(end, End::Success(answer)),
            _ => None,
        });
        self.shared.teller.tell(succeeded.collect()).await?;
        let settlements =
            finished.iter().map(|end| Settlement { receipt: end.receipt, outcome: end.outcome.clone() });
        let settled = self.shared.queue.settle(settlements.collect()).await?;
        self.shared.ended(finished.iter().map(|end| end.receipt));
        count_settled(finished.iter().map(|end| &end.outcome), &settled);
        let dead = finished.iter().zip(&settled).filter_map(|(end, settled)| match &end.outcome {
            Outcome::Failed { error, .. } if *settled == Settled::Dead => {
                self.shared.teller.notice_of_end(end, End::Dead(error))
            }
            _ => None,
        });
        if let Err(error) = self.shared.teller.tell(dead.collect()).await {
            tracing::debug!(%error, "destinations of dead calls are told when these are found");
        }
        Ok(settled)
    }
}

/// Whether one who asks takes whatever this balancer may give out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    Everything,
    Some,
}

/// Counts how messages ended, and why those that did not will be given out again.
fn count_settled<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>, settled: &[Settled]) {
    for (outcome, settled) in outcomes.into_iter().zip(settled) {
        let word = match (settled, outcome) {
            (Settled::Done, _) => "done",
            (Settled::Dead, _) => "dead",
            (Settled::Lost, _) => "lost",
            (Settled::Again { .. }, outcome) => {
                let reason = if *outcome == Outcome::Unstarted { "unstarted" } else { "failed" };
                metrics::counter!("kiln_queue_redelivered_total", "reason" => reason).increment(1);
                "again"
            }
        };
        metrics::counter!("kiln_queue_settled_total", "outcome" => word).increment(1);
    }
}

impl Shared {
    /// Reserves, and waits if there is nothing.
    async fn reserve(
        &self,
        reserve: &Reserve,
        takes: Takes,
        wait: Duration,
        enough: &CancellationToken,
    ) -> Result<Vec<Reserved>, QueueError> {
        let deadline = Instant::now() + wait.min(TAKE_WAIT_MAX);
        let mut wakes = self.wakes.subscribe();
        let takes_all = takes == Takes::Everything;
        loop {
            let wake = *wakes.borrow_and_update();
            if !(takes_all && self.exhausted.load(Ordering::Acquire) >= wake) {
                let asking = self.asking.acquire().await;
                // Whoever asked meanwhile may have found nothing more.
                if !(takes_all && self.exhausted.load(Ordering::Acquire) >= wake) {
                    let reserved = self.queue.reserve(reserve.clone()).await?;
                    if takes_all && is_all_there_is(reserve, &reserved) {
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
        self.known.routes.clone().routes().function(&id).ok().cloned()
    }

    /// Adds the functions. Messages of functions that are unknown go back for a while, and fail for good after that. Those of
    /// functions whose configuration is too much for one answer, or that have reached their limit, go back at once.
    async fn with_functions(&self, reserved: Vec<Reserved>, lease: Duration) -> Vec<Work> {
        let (mut work, mut others) = (Vec::with_capacity(reserved.len()), Vec::new());
        let (mut given, mut config_bytes) = (HashSet::new(), 0);
        let mut routes = self.known.routes.clone();
        let routes = routes.routes();
        let now = Instant::now();
        for message in reserved {
            if let Ok(function) = routes.function(&message.function_id) {
                if !given.contains(&message.function_id) {
                    if config_bytes >= CONFIG_BYTES_MAX {
                        others.push((message.receipt, message.function_id, false));
                        continue;
                    }
                    config_bytes += config_bytes_of(function);
                    given.insert(message.function_id);
                }
                if !self.enters(function, &message, now + lease) {
                    others.push((message.receipt, message.function_id, false));
                    continue;
                }
                work.push(Work { function: Arc::clone(function), message });
            } else {
                let is_over = self.unknown().is_over(message.function_id, now);
                others.push((message.receipt, message.function_id, is_over));
            }
        }
        let others = self.outcomes(others).await;
        if !others.is_empty()
            && let Err(error) = self.queue.settle(others).await
        {
            // No reason to keep the work back: these come again when their leases end.
            tracing::warn!(%error, "messages that nobody is to have are not given back");
        }
        work
    }

    /// What becomes of messages of functions that are unknown here.
    async fn outcomes(&self, others: Vec<(Receipt, FunctionId, bool)>) -> Vec<Settlement> {
        let mut gone: HashMap<FunctionId, bool> = HashMap::new();
        let mut settlements = Vec::with_capacity(others.len());
        for (receipt, function, is_over) in others {
            let is_gone = match (is_over, gone.get(&function)) {
                (false, _) => false,
                (true, Some(is_gone)) => *is_gone,
                (true, None) => {
                    let is_gone = self.is_gone(function).await;
                    gone.insert(function, is_gone);
                    is_gone
                }
            };
            let error = || format!("there is no function {function} any more");
            let outcome = if is_gone {
                Outcome::Failed { error: error(), retry: Retry::Never }
            } else {
                Outcome::Unstarted
            };
            settlements.push(Settlement { receipt, outcome });
        }
        settlements
    }

    /// True if the catalog, which alone knows, says that there is no such function. While it cannot be asked, or knows
    /// what has not come here yet, messages go on to wait.
    async fn is_gone(&self, function: FunctionId) -> bool {
        let Some(catalog) = &self.known.catalog else { return true };
        let is_gone = matches!(
            catalog.function(function.as_str()).await,
            Err(StoreError::Refused(ApiError::FnNotFound))
        );
        if !is_gone {
            self.unknown().begin_anew(function, Instant::now());
        }
        is_gone
    }

    /// Functions whose messages are not to be taken together with others now: deliveries, those that are unknown here, and
    /// those that are crowded.
    fn left_out(&self, crowded: &[FunctionId]) -> Vec<FunctionId> {
        let mut routes = self.known.routes.clone();
        let routes = routes.routes();
        let mut left_out = self.unknown().paused(Instant::now(), |id| routes.function(id).is_ok());
        left_out.extend(crowded);
        left_out.push(*DELIVERIES);
        left_out
    }

    /// Functions that have messages and may have no place for them. Places of nodes that are gone are free again.
    fn crowded(&self) -> Vec<FunctionId> {
        let mut limited = self.limited();
        limited.expire(Instant::now());
        limited.crowded().collect()
    }

    /// How many more calls of the function may run; `None` if it has no limit any more.
    fn free(&self, function: FunctionId) -> Option<u32> {
        self.known.concurrency.as_ref()?.free(&*self.function(function)?)
    }

    /// Takes a place for a message under its function's limit, if it has one. False if there is none.
    fn enters(&self, function: &Function, message: &Reserved, leased_until: Instant) -> bool {
        let Some(concurrency) = &self.known.concurrency else { return true };
        match concurrency.enter(function) {
            Ok(None) => {}
            Ok(Some(running)) => {
                self.limited().give(message.receipt, message.function_id, leased_until, running);
            }
            Err(LimitReached) => {
                self.limited().is_crowded(message.function_id);
                return false;
            }
        }
        true
    }

    /// These have ended, or are nobody's any more.
    fn ended(&self, receipts: impl IntoIterator<Item = Receipt>) {
        let mut limited = self.limited();
        let mut is_waited_for = false;
        for receipt in receipts {
            is_waited_for |= limited.ended(receipt);
        }
        drop(limited);
        if is_waited_for {
            self.freed.notify_waiters();
        }
    }

    fn limited(&self) -> MutexGuard<'_, Limited> {
        self.limited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unknown(&self) -> MutexGuard<'_, Unknown> {
        self.unknown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// True if whoever asks for `wanted` may have messages of the function.
fn asks_for(wanted: &Functions, function: FunctionId) -> bool {
    match wanted {
        Functions::All => true,
        Functions::Only(these) => these.contains(&function),
        Functions::Except(others) => !others.contains(&function),
    }
}

fn leave_out(functions: Functions, left_out: Vec<FunctionId>) -> Functions {
    match functions {
        Functions::All => Functions::Except(left_out),
        Functions::Except(mut others) => {
            others.extend(left_out);
            Functions::Except(others)
        }
        Functions::Only(mut these) => {
            these.retain(|function| !left_out.contains(function));
            Functions::Only(these)
        }
    }
}

fn config_bytes_of(function: &Function) -> usize {
    function.spec.config.iter().map(|(name, value)| name.len() + value.len()).sum()
}

/// True if a reserve that gave this has left nothing behind: it gave less than was asked for, and not because of bytes.
fn is_all_there_is(reserve: &Reserve, reserved: &[Reserved]) -> bool {
    let bytes: usize = reserved.iter().map(|message| message.payload.len()).sum();
    let mut of_each: HashMap<FunctionId, usize> = HashMap::new();
    for message in reserved {
        *of_each.entry(message.function_id).or_default() += 1;
    }
    reserved.len() < reserve.messages_max
        && bytes + PAYLOAD_BYTES_MAX <= BATCH_BYTES_MAX
        && of_each.into_iter().all(|(function, messages)| messages < reserve.most_of(function))
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
        Box::pin(self.renew_leases(receipts, lease))
    }

    fn finish(&self, finished: Vec<Finished>) -> QueueFuture<'_, Vec<Settled>> {
        Box::pin(self.settle(finished))
    }
}

#[cfg(test)]
mod tests;
