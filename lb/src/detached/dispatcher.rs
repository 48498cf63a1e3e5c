//! The balancer's side of draining: gives messages to nodes and takes their ends back.
//!
//! Nodes that wait for work wait here, not at the queue: of all who wait only a few ask it at a time, and once one who
//! takes everything has found nothing, no other of them asks before the next wake-up.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_api::{Catalog, StoreError};
use kiln_shared::function::Function;
use kiln_shared::ids::{CallId, FunctionId};
use kiln_shared::model::ApiError;
use kiln_shared::queue::{
    BATCH_BYTES_MAX, Destination, Finished, Functions, Held, MessageView, NewMessage, Outcome,
    PAYLOAD_BYTES_MAX, Queue, QueueError, QueueFuture, Receipt, Reserve, Reserved, Retry, Settled,
    Settlement, TAKE_WAIT_MAX, Work, WorkSource,
};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::notice::{DELIVERIES, End, Recipient, notice};
use super::unknown::{UNKNOWN_PAUSE, Unknown};
use crate::route::RouteReader;

/// Most nodes that ask the queue at a time.
const ASKING_MAX: usize = 4;
/// Configuration of functions that is given out together, in bytes, and what the last function has more: it must fit into
/// one message ([`kiln_shared::link::work::WORK_BYTES_MAX`]), where JSON may write a character in six bytes.
const CONFIG_BYTES_MAX: usize = 1 << 20;
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
    /// What is asked before a function is taken to be gone; absent where the routes know all there are.
    catalog: Option<Catalog>,
    /// Counts wake-ups of the queue.
    wakes: watch::Sender<u64>,
    /// The wake-up after which one who takes everything found less than it asked for.
    exhausted: AtomicU64,
    asking: Semaphore,
    names: Mutex<HashMap<(String, String), FunctionId>>,
    unknown: Mutex<Unknown>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Dispatcher").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl Dispatcher {
    /// Gives out the messages of `queue` with the functions that `routes` knows. Those of functions that neither it nor
    /// `catalog` knows fail after a while. [`Self::run`] must run, too.
    pub fn new(queue: Arc<dyn Queue>, routes: RouteReader, catalog: Option<Catalog>) -> Self {
        let shared = Shared {
            queue,
            routes,
            catalog,
            wakes: watch::Sender::new(1),
            exhausted: AtomicU64::new(0),
            asking: Semaphore::new(ASKING_MAX),
            names: Mutex::default(),
            unknown: Mutex::default(),
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
        let settled = self.shared.queue.settle(settlements).await?;
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
            self.shared.notice_of(message.id, message.function_id, message.attempts, End::Dead(error))
        };
        self.shared.tell(dead.iter().filter_map(notice).collect()).await
    }

    async fn take_work(
        &self,
        mut reserve: Reserve,
        wait: Duration,
        enough: CancellationToken,
    ) -> Result<Vec<Work>, QueueError> {
        let wanted = reserve.functions.clone();
        let takes = Takes::of(&wanted);
        let deadline = Instant::now() + wait.min(TAKE_WAIT_MAX);
        loop {
            let left_out = self.shared.left_out();
            let mut left = deadline.saturating_duration_since(Instant::now());
            // Functions that are unknown now may be known soon.
            let looks_again = left_out.len() > 1 && left > UNKNOWN_PAUSE;
            if looks_again {
                left = UNKNOWN_PAUSE;
            }
            reserve.functions = leave_out(wanted.clone(), left_out);
            let reserved = self.shared.reserve(&reserve, takes, left, &enough).await?;
            let is_over = reserved.is_empty() && (!looks_again || enough.is_cancelled());
            let work = self.shared.with_functions(reserved).await;
            // Otherwise all were for functions that are unknown.
            if is_over || !work.is_empty() {
                return Ok(work);
            }
        }
    }

    /// Tells destinations of what succeeded, and then the queue: what breaks off in between is told again, under the same
    /// key. Which calls are dead the queue knows alone, so their destinations are told after it; what breaks off there is
    /// found by [`super::buried`].
    async fn settle(&self, finished: Vec<Finished>) -> Result<Vec<Settled>, QueueError> {
        let succeeded = finished.iter().filter_map(|end| match (&end.outcome, &end.answer) {
            (Outcome::Done, Some(answer)) => self.shared.notice_of_end(end, End::Success(answer)),
            _ => None,
        });
        self.shared.tell(succeeded.collect()).await?;
        let settlements =
            finished.iter().map(|end| Settlement { receipt: end.receipt, outcome: end.outcome.clone() });
        let settled = self.shared.queue.settle(settlements.collect()).await?;
        count_settled(finished.iter().map(|end| &end.outcome), &settled);
        let dead = finished.iter().zip(&settled).filter_map(|(end, settled)| match &end.outcome {
            Outcome::Failed { error, .. } if *settled == Settled::Dead => {
                self.shared.notice_of_end(end, End::Dead(error))
            }
            _ => None,
        });
        if let Err(error) = self.shared.tell(dead.collect()).await {
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

impl Takes {
    /// By the functions that are asked for.
    fn of(functions: &Functions) -> Self {
        if *functions == Functions::All { Self::Everything } else { Self::Some }
    }
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
        self.routes.clone().routes().function(&id).ok().cloned()
    }

    /// Stores notices, as many at a time as the queue takes.
    async fn tell(&self, notices: Vec<NewMessage>) -> Result<(), QueueError> {
        for batch in batches(notices) {
            self.queue.enqueue(batch).await?;
        }
        Ok(())
    }

    /// Adds the functions. Messages of functions that are unknown go back for a while, and fail for good after that. Those of
    /// functions whose configuration is too much for one answer go back at once.
    async fn with_functions(&self, reserved: Vec<Reserved>) -> Vec<Work> {
        let (mut work, mut others) = (Vec::with_capacity(reserved.len()), Vec::new());
        let (mut given, mut config_bytes) = (HashSet::new(), 0);
        let mut routes = self.routes.clone();
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
            tracing::warn!(%error, "messages of unknown functions are not given back");
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
        let Some(catalog) = &self.catalog else { return true };
        let is_gone = matches!(
            catalog.function(function.as_str()).await,
            Err(StoreError::Refused(ApiError::FnNotFound))
        );
        if !is_gone {
            self.unknown().begin_anew(function, Instant::now());
        }
        is_gone
    }

    /// Functions whose messages are not to be taken now: deliveries, and those that are unknown here.
    fn left_out(&self) -> Vec<FunctionId> {
        let mut routes = self.routes.clone();
        let routes = routes.routes();
        let mut left_out = self.unknown().paused(Instant::now(), |id| routes.function(id).is_ok());
        left_out.push(*DELIVERIES);
        left_out
    }

    fn unknown(&self) -> MutexGuard<'_, Unknown> {
        self.unknown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The message for the destination of what a node told, if there is one.
    fn notice_of_end(&self, finished: &Finished, end: End<'_>) -> Option<NewMessage> {
        self.notice_of(finished.receipt.id, finished.function_id, finished.attempt, end)
    }

    /// The message for the destination of this end, if there is one.
    fn notice_of(
        &self,
        call: CallId,
        function_id: FunctionId,
        attempts: u32,
        end: End<'_>,
    ) -> Option<NewMessage> {
        let function = self.function(function_id)?;
        let policy = &function.spec.detached;
        let destination = match end {
            End::Success(_) => policy.on_success.as_ref(),
            End::Dead(_) => policy.on_failure.as_ref(),
        };
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

/// Messages in as many batches as it takes for each to be one that the queue takes.
fn batches(messages: Vec<NewMessage>) -> Vec<Vec<NewMessage>> {
    let mut batches: Vec<Vec<NewMessage>> = Vec::new();
    let mut bytes_left = 0;
    for message in messages {
        let bytes = message.payload.len() + message.envelope.get().len();
        match batches.last_mut() {
            Some(batch) if bytes <= bytes_left => {
                bytes_left -= bytes;
                batch.push(message);
            }
            _ => {
                bytes_left = BATCH_BYTES_MAX.saturating_sub(bytes);
                batches.push(vec![message]);
            }
        }
    }
    batches
}

/// True if a reserve that gave this has left nothing behind: it gave less than was asked for, and not because of bytes.
fn is_all_there_is(reserve: &Reserve, reserved: &[Reserved]) -> bool {
    let bytes: usize = reserved.iter().map(|message| message.payload.len()).sum();
    reserved.len() < reserve.messages_max && bytes + PAYLOAD_BYTES_MAX <= BATCH_BYTES_MAX
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

#[cfg(test)]
mod tests {
    use kiln_shared::ids::AppId;
    use kiln_shared::model::{AppInput, FunctionInput};
    use kiln_shared::queue::List;

    use super::*;
    use crate::detached::testing::{demo, queue_in};

    #[tokio::test]
    async fn a_failure_is_told_only_of_calls_that_are_dead() {
        let folder = tempfile::tempdir().expect("a folder");
        let queue = queue_in(&folder).await;
        let (table, function) =
            demo(&serde_json::json!({ "kiln.dev/on-failure": "http://localhost:9/failed" }));
        let dispatcher = Dispatcher::new(Arc::clone(&queue), table.reader(), None);
        let new = NewMessage::new(CallId::generate(), function, AppId::generate(), "x");
        queue.enqueue(vec![new]).await.expect("stored");
        let reserve = Reserve::new("n", 1, Duration::from_mins(1));
        let message = queue.reserve(reserve).await.expect("answers").remove(0);
        let failed = |receipt| Finished {
            receipt,
            function_id: function,
            attempt: 3,
            outcome: Outcome::Failed { error: "no".to_owned(), retry: Retry::Never },
            answer: None,
        };
        let told = async || {
            let list = List { function_id: Some(*DELIVERIES), messages_max: 9, ..List::default() };
            queue.list(list).await.expect("a page").messages.len()
        };
        // Its lease ended, and another node has the call.
        let lost = Receipt { lease: message.receipt.lease + 1, ..message.receipt };
        assert_eq!(dispatcher.finish(vec![failed(lost)]).await, Ok(vec![Settled::Lost]));
        assert_eq!(told().await, 0);
        assert_eq!(dispatcher.finish(vec![failed(message.receipt)]).await, Ok(vec![Settled::Dead]));
        assert_eq!(told().await, 1);
    }

    #[tokio::test]
    async fn one_who_leaves_functions_out_and_finds_nothing_does_not_keep_others_from_asking() {
        let folder = tempfile::tempdir().expect("a folder");
        let queue = queue_in(&folder).await;
        let (table, function) = demo(&serde_json::json!({}));
        let dispatcher = Dispatcher::new(Arc::clone(&queue), table.reader(), None);
        let new = NewMessage::new(CallId::generate(), function, AppId::generate(), "x");
        queue.enqueue(vec![new]).await.expect("stored");
        let take = async |functions| {
            let reserve = Reserve { functions, ..Reserve::new("n", 1, Duration::from_mins(1)) };
            // Nobody passes on the queue's wake-ups: what is not found at once is not found.
            dispatcher.take(reserve, Duration::ZERO, CancellationToken::new()).await.expect("answers").len()
        };
        assert_eq!(take(Functions::Except(vec![function])).await, 0);
        assert_eq!(take(Functions::All).await, 1);
    }

    #[tokio::test]
    async fn a_function_is_gone_only_if_the_catalog_says_so() {
        let folder = tempfile::tempdir().expect("a folder");
        let url = format!("sqlite://{}", folder.path().join("kiln.db").display());
        let catalog = Catalog::open(&url).await.expect("opens");
        let app = AppInput { name: "a".to_owned(), ..AppInput::default() };
        let app_id = catalog.create_app(&app).await.expect("created").id.to_string();
        let image = "hello:1".to_owned();
        let input = FunctionInput { app_id, name: "f".to_owned(), image, ..FunctionInput::default() };
        let there = catalog.create_function(&input).await.expect("created").id;
        let (table, _) = demo(&serde_json::json!({}));
        let dispatcher = Dispatcher::new(queue_in(&folder).await, table.reader(), Some(catalog.clone()));
        assert!(!dispatcher.shared.is_gone(there).await, "it has not come here yet");
        assert!(dispatcher.shared.is_gone(FunctionId::generate()).await);
        catalog.close().await;
        assert!(!dispatcher.shared.is_gone(FunctionId::generate()).await, "nobody can tell");
    }

    #[test]
    fn notices_are_stored_in_batches_that_the_queue_takes() {
        let message = |bytes: usize| {
            let payload = vec![b'x'; bytes];
            NewMessage::new(CallId::generate(), FunctionId::generate(), AppId::generate(), payload)
        };
        let sizes = |messages: Vec<NewMessage>| {
            let batches = batches(messages);
            assert!(batches.iter().all(|batch| NewMessage::check(batch).is_ok()));
            batches.iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert!(sizes(Vec::new()).is_empty());
        let eighth = BATCH_BYTES_MAX / 8;
        assert_eq!(sizes((0..9).map(|_| message(eighth)).collect()), [7, 2]);
        assert_eq!(sizes(vec![message(1), message(2)]), [2]);
    }

    #[test]
    fn functions_are_left_out_of_what_is_asked_for() {
        let [one, other] = [FunctionId::generate(), FunctionId::generate()];
        assert_eq!(leave_out(Functions::All, vec![one]), Functions::Except(vec![one]));
        let except = leave_out(Functions::Except(vec![other]), vec![one]);
        assert_eq!(except, Functions::Except(vec![other, one]));
        assert_eq!(leave_out(Functions::Only(vec![one, other]), vec![one]), Functions::Only(vec![other]));
    }
}
