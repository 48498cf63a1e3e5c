//! Detached calls: accepted when they are safe in the queue, given to nodes that have room, and told to destinations.

mod body_memory;
mod buried;
mod deliver;
mod dispatcher;
mod enqueuer;
mod late;
mod limited;
mod notice;
mod options;
mod schedule;
mod start;
mod tell;
#[cfg(test)]
pub(crate) mod testing;
mod unknown;
mod watch;

use std::borrow::Cow;
use std::sync::Arc;

use kiln_shared::body::Body;
use kiln_shared::call::{CallKind, Failure, FailureKind};
use kiln_shared::function::Function;
use kiln_shared::http1::HeaderBlock;
use kiln_shared::http1::head::RequestHead;
use kiln_shared::ids::{CallId, FunctionId};
use kiln_shared::queue::{NewMessage, PAYLOAD_BYTES_MAX, QueueError, StoredCall};

use self::body_memory::BodyMemory;
pub use self::dispatcher::{Dispatcher, Known};
pub use self::enqueuer::{EnqueueTask, Enqueuer};
pub use self::limited::Concurrency;
use self::options::DetachedOptions;
pub use self::schedule::Scheduler;
pub use self::start::{Detached, QueueArgs};

/// True for the id that stands in the queue for POSTs to destinations.
pub(crate) fn is_delivery(function: FunctionId) -> bool {
    function == *notice::DELIVERIES
}

/// Takes detached calls in. Cheap to clone, and usable on every runtime.
#[derive(Debug, Clone)]
pub struct Intake {
    enqueuer: Enqueuer,
    body_bytes_max: u64,
    memory: BodyMemory,
}

/// A detached call as the edge has it.
#[derive(Debug)]
pub struct DetachedCall {
    /// Names it.
    pub id: CallId,
    /// What to run.
    pub function: Arc<Function>,
    /// How it came in.
    pub kind: CallKind,
    /// For `FN_PATH`.
    pub path: Cow<'static, str>,
    /// The request's head.
    pub head: RequestHead,
    /// The client's whole URL.
    pub url: String,
    /// The request's body.
    pub body: Body,
}

impl Intake {
    /// Takes calls with bodies of at most `body_bytes_max` bytes, as far as the queue does, and of at most
    /// `memory_bytes_max` in all at a time.
    pub fn new(enqueuer: Enqueuer, body_bytes_max: u64, memory_bytes_max: u64) -> Self {
        let body_bytes_max = body_bytes_max.min(PAYLOAD_BYTES_MAX as u64);
        Self { enqueuer, body_bytes_max, memory: BodyMemory::of_bytes(memory_bytes_max) }
    }

    /// Stores the call; durable when this answers. The id is another one if the caller's idempotency key was used
    /// before.
    ///
    /// # Errors
    /// 400 for options that cannot be, 413 for a body that is too large, 503 with the reason if the queue is away or
    /// full, or if too many bodies are under way. Then nothing was stored, unless the queue broke off at the very end.
    pub async fn accept(&self, call: DetachedCall) -> Result<CallId, Failure> {
        let DetachedCall { id, function, kind, path, head, url, body } = call;
        let options = DetachedOptions::read(&head.headers)?;
        // A body of unknown length may become as long as any may.
        let bytes = body.length().unwrap_or(u64::MAX).min(self.body_bytes_max);
        let mut room = self.memory.take(bytes).ok_or_else(|| {
            let message = "The call was not accepted: too many bodies of calls are being stored";
            Failure::new(FailureKind::Busy, 503, message)
        })?;
        let payload = body.collect(self.body_bytes_max).await.map_err(|error| Failure::of_body(&error))?;
        room.shrink_to(payload.len() as u64);
        let path = path.into_owned();
        let stored =
            StoredCall { kind, method: head.method, url, path, headers: for_function(&head.headers) };
        let message = NewMessage {
            priority: options.priority,
            delay: options.delay,
            deadline: options.start_within.map(|within| within.saturating_add(options.delay)),
            idempotency_key: options.idempotency_key,
            retry: function.spec.detached.retry,
            envelope: stored.to_envelope().map_err(failure_of)?,
            ..NewMessage::new(id, function.spec.id, function.spec.app_id, payload)
        };
        self.enqueuer.enqueue(message).await.map(kiln_shared::queue::Enqueued::id).map_err(failure_of)
    }
}

/// The lines that the function is to see: without what was meant for the queue.
fn for_function(headers: &HeaderBlock) -> HeaderBlock {
    let mut kept = HeaderBlock::with_capacity(headers.as_bytes().len());
    for (name, value) in headers {
        if !options::is_for_queue(name) {
            kept.push_valid(name, value);
        }
    }
    kept
}

fn failure_of(error: QueueError) -> Failure {
    let message = format!("The call was not accepted: {error}");
    match error {
        QueueError::Unavailable(_) | QueueError::Full { .. } => Failure::new(FailureKind::Busy, 503, message),
        QueueError::TooLarge { .. } => Failure::new(FailureKind::RequestTooLarge, 413, message),
        QueueError::Invalid(_) => Failure::new(FailureKind::BadRequest, 400, message),
        QueueError::Failed(detail) => {
            Failure::new(FailureKind::Busy, 503, "The call was not accepted: the queue failed")
                .with_detail(detail)
        }
    }
}
