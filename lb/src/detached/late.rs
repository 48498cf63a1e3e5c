//! A queue whose server did not answer at the start: it is away until it does, as if it had been lost later.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use kiln_queue::{OpenError, Options};
use kiln_shared::ids::CallId;
use kiln_shared::queue::{
    Cancelled, Depth, Enqueued, Held, List, MessageView, NewMessage, Page, Purge, Queue, QueueError,
    QueueFuture, Receipt, Redrive, Reserve, Reserved, Settled, Settlement, WakeSource, Wakeups,
};
use tokio_util::sync::CancellationToken;

/// Pause before a server that did not answer is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A queue that may not be there yet.
#[derive(Debug)]
pub(super) struct LateQueue {
    opened: OnceLock<Arc<dyn Queue>>,
    why: Mutex<String>,
    wake: WakeSource,
}

impl LateQueue {
    /// A queue that is away, and why.
    pub(super) fn new(why: &OpenError) -> Self {
        Self { opened: OnceLock::new(), why: Mutex::new(why.to_string()), wake: WakeSource::default() }
    }

    /// Opens it when its server answers, and passes on its wake-ups then, until `stop`.
    pub(super) async fn run(self: Arc<Self>, url: String, options: Options, stop: CancellationToken) {
        let opening = async {
            loop {
                match kiln_queue::open(&url, options.clone()).await {
                    Ok(queue) => return queue,
                    Err(error) => self.is_away(&error),
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        };
        let Some(queue) = stop.run_until_cancelled(opening).await else { return };
        tracing::info!("the queue is there: detached calls are taken");
        let mut wakeups = queue.subscribe();
        if self.opened.set(queue).is_err() {
            return;
        }
        self.wake.wake();
        while let Some(Ok(())) = stop.run_until_cancelled(wakeups.next()).await {
            self.wake.wake();
        }
    }

    /// Says why, if it is another reason than before.
    fn is_away(&self, error: &OpenError) {
        let error = error.to_string();
        let mut why = self.why();
        if *why != error {
            tracing::error!(error, "detached calls get 503 still");
            *why = error;
        }
    }

    fn why(&self) -> MutexGuard<'_, String> {
        self.why.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<'a, T: Send + 'a>(
        &'a self,
        operation: impl FnOnce(&'a dyn Queue) -> QueueFuture<'a, T>,
    ) -> QueueFuture<'a, T> {
        match self.opened.get() {
            Some(queue) => operation(&**queue),
            None => Box::pin(std::future::ready(Err(QueueError::Unavailable(self.why().clone())))),
        }
    }
}

impl Queue for LateQueue {
    fn enqueue(&self, messages: Vec<NewMessage>) -> QueueFuture<'_, Vec<Enqueued>> {
        self.with(|queue| queue.enqueue(messages))
    }

    fn reserve(&self, reserve: Reserve) -> QueueFuture<'_, Vec<Reserved>> {
        self.with(|queue| queue.reserve(reserve))
    }

    fn renew(&self, receipts: Vec<Receipt>, lease: Duration) -> QueueFuture<'_, Vec<Held>> {
        self.with(|queue| queue.renew(receipts, lease))
    }

    fn settle(&self, settlements: Vec<Settlement>) -> QueueFuture<'_, Vec<Settled>> {
        self.with(|queue| queue.settle(settlements))
    }

    fn inspect(&self, id: CallId) -> QueueFuture<'_, Option<MessageView>> {
        self.with(|queue| queue.inspect(id))
    }

    fn list(&self, list: List) -> QueueFuture<'_, Page> {
        self.with(|queue| queue.list(list))
    }

    fn redrive(&self, redrive: Redrive) -> QueueFuture<'_, u64> {
        self.with(|queue| queue.redrive(redrive))
    }

    fn cancel(&self, id: CallId) -> QueueFuture<'_, Cancelled> {
        self.with(|queue| queue.cancel(id))
    }

    fn depth(&self) -> QueueFuture<'_, Vec<Depth>> {
        self.with(Queue::depth)
    }

    fn purge(&self, purge: Purge) -> QueueFuture<'_, u64> {
        self.with(|queue| queue.purge(purge))
    }

    fn subscribe(&self) -> Wakeups {
        self.wake.subscribe()
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        match self.opened.get() {
            Some(queue) => queue.close(),
            None => Box::pin(std::future::ready(())),
        }
    }
}
