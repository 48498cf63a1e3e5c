//! The trait's operations, handed to a backend's engine.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use kiln_shared::ids::CallId;
use kiln_shared::queue::{
    BATCH_MAX, Cancelled, Depth, Enqueued, Held, List, MessageView, NewMessage, Page, Purge, Queue,
    QueueError, QueueFuture, Receipt, Redrive, Reserve, Reserved, Settled, Settlement, Wakeups,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::core::Core;
use super::operation::{Operation, Reply};
use super::tend;

/// Runs operations; what each changed is durable when it answers, all of it or nothing.
pub(crate) trait Engine: fmt::Debug + Send + Sync + 'static {
    /// Runs one. Waits a bounded time.
    fn run(&self, operation: Operation) -> impl Future<Output = Result<Reply, QueueError>> + Send;

    /// Has the server's clock be known to the core, if there is a server.
    fn tell_time(&self) -> impl Future<Output = Result<(), QueueError>> + Send;

    /// How soon to look again for messages of other processes that nothing tells of, having found none so often.
    fn look_again(&self, in_vain: u32) -> Duration;

    /// Finishes what is under way and closes connections.
    fn close(&self) -> impl Future<Output = ()> + Send;
}

/// A queue with its engine.
pub(crate) struct EngineQueue<E> {
    engine: Arc<E>,
    core: Arc<Core>,
    tasks: TaskTracker,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

impl<E: Engine> EngineQueue<E> {
    /// Begins to tend the queue.
    pub(crate) fn new(engine: E, core: Arc<Core>, tasks: TaskTracker, stop: CancellationToken) -> Self {
        let engine = Arc::new(engine);
        tasks.spawn(tend::tend(Arc::clone(&engine), Arc::clone(&core), stop.clone()));
        Self { engine, core, tasks, _stop_on_drop: stop.clone().drop_guard(), stop }
    }

    /// Runs an operation whose arguments were checked. `read` takes its kind of reply apart.
    fn run<T: 'static>(
        &self,
        checked: Result<Operation, QueueError>,
        read: fn(Reply) -> Option<T>,
    ) -> QueueFuture<'_, T> {
        Box::pin(async move {
            let reply = self.engine.run(checked?).await?;
            Ok(read(reply).expect("an operation is answered in kind"))
        })
    }
}

/// A function that takes one kind of reply apart.
macro_rules! reply {
    ($kind:ident) => {
        |reply| match reply {
            Reply::$kind(answer) => Some(answer),
            _ => None,
        }
    };
}

impl<E: Engine> Queue for EngineQueue<E> {
    fn enqueue(&self, messages: Vec<NewMessage>) -> QueueFuture<'_, Vec<Enqueued>> {
        if messages.is_empty() {
            return Box::pin(std::future::ready(Ok(Vec::new())));
        }
        let checked = NewMessage::check(&messages).map(|()| Operation::Enqueue(messages));
        self.run(checked, reply!(Enqueued))
    }

    fn reserve(&self, reserve: Reserve) -> QueueFuture<'_, Vec<Reserved>> {
        let checked = reserve.check().map(|()| Operation::Reserve(reserve));
        self.run(checked, reply!(Reserved))
    }

    fn renew(&self, receipts: Vec<Receipt>, lease: Duration) -> QueueFuture<'_, Vec<Held>> {
        let checked = Receipt::check(&receipts, lease).map(|()| Operation::Renew(receipts, lease));
        self.run(checked, reply!(Held))
    }

    fn settle(&self, settlements: Vec<Settlement>) -> QueueFuture<'_, Vec<Settled>> {
        let checked = Settlement::check(&settlements).map(|()| Operation::Settle(settlements));
        self.run(checked, reply!(Settled))
    }

    fn inspect(&self, id: CallId) -> QueueFuture<'_, Option<MessageView>> {
        self.run(Ok(Operation::Inspect(id)), |reply| match reply {
            Reply::Message(message) => Some(message.map(|message| *message)),
            _ => None,
        })
    }

    fn list(&self, list: List) -> QueueFuture<'_, Page> {
        let checked = list.check().map(|()| Operation::List(list));
        self.run(checked, reply!(Page))
    }

    fn redrive(&self, redrive: Redrive) -> QueueFuture<'_, u64> {
        let checked = match redrive {
            Redrive::Function { messages_max, .. } if messages_max == 0 || messages_max > BATCH_MAX => {
                Err(QueueError::Invalid(format!("{messages_max} messages to put back; use 1 to {BATCH_MAX}")))
            }
            redrive => Ok(Operation::Redrive(redrive)),
        };
        self.run(checked, reply!(Count))
    }

    fn cancel(&self, id: CallId) -> QueueFuture<'_, Cancelled> {
        self.run(Ok(Operation::Cancel(id)), reply!(Cancelled))
    }

    fn depth(&self) -> QueueFuture<'_, Vec<Depth>> {
        self.run(Ok(Operation::Depth), reply!(Depth))
    }

    fn purge(&self, purge: Purge) -> QueueFuture<'_, u64> {
        self.run(Ok(Operation::Purge(purge)), reply!(Count))
    }

    fn subscribe(&self) -> Wakeups {
        self.core.wake.subscribe()
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            self.stop.cancel();
            self.tasks.close();
            self.engine.close().await;
            self.tasks.wait().await;
        })
    }
}

impl<E: Engine> fmt::Debug for EngineQueue<E> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.engine.fmt(formatter)
    }
}
