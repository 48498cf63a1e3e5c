//! Fires schedules: their ticks become detached calls.
//!
//! Every balancer looks; the one that gets the ticks from the catalog enqueues them and then says so. One that dies in
//! between is followed by another some seconds later, whose calls have the same idempotency keys: with one queue each
//! tick is called for once. With a queue for each balancer a tick is called for once as well, but for the ticks of a
//! balancer that died, which may come twice (at least once). Without the catalog nothing is fired.

mod board;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kiln_api::{CLAIMS_MAX, Catalog, Claimed, StoreError};
use kiln_shared::call::CallKind;
use kiln_shared::http1::HeaderBlock;
use kiln_shared::ids::{CallId, TriggerId};
use kiln_shared::model::ScheduledCall;
use kiln_shared::queue::{BATCH_MAX, Enqueued, NewMessage, Queue, QueueError, StoredCall};
use kiln_shared::schedule::Due;
use tokio_util::sync::CancellationToken;

use self::board::Board;
use crate::route::{RouteReader, ScheduleRoute};

/// Longest time between two looks at the clock, which may jump, and at the catalog, which may have new schedules.
const LOOK: Duration = Duration::from_secs(1);
/// Pause after something could not be fired, or is being fired by another.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Longest time to enqueue one round's calls; shorter than ticks are this balancer's.
const ENQUEUE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why ticks were not fired.
#[derive(Debug, thiserror::Error)]
enum FireError {
    #[error(transparent)]
    Catalog(#[from] StoreError),
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("the queue did not answer within {ENQUEUE_TIMEOUT:?}")]
    Slow,
}

/// How a round ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    /// Nothing that is due is left, as far as this round went.
    Done,
    /// Another balancer has some of the ticks.
    Held,
}

/// Fires schedules of one catalog into one queue.
#[derive(Debug)]
pub struct Scheduler {
    catalog: Catalog,
    queue: Arc<dyn Queue>,
    routes: RouteReader,
    board: Board,
    /// Names this life of this balancer.
    holder: String,
}

impl Scheduler {
    /// Fires the schedules that `routes` knows, in the name of `balancer`. [`Self::run`] must run.
    pub fn new(catalog: Catalog, queue: Arc<dyn Queue>, routes: RouteReader, balancer: &str) -> Self {
        // Of two lives, or of two balancers of one name, each has its own.
        let holder = format!("{balancer}/{}", CallId::generate());
        Self { catalog, queue, routes, board: Board::default(), holder }
    }

    /// Fires until `stop`; what is under way is finished.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut is_failing = false;
        while !stop.is_cancelled() {
            let pause = match self.round(Timestamp::now()).await {
                Ok(round) => {
                    is_failing = false;
                    if round == Round::Held { RETRY_PAUSE } else { self.until_due(Timestamp::now()) }
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(%error, "schedules wait until they can be fired");
                    }
                    RETRY_PAUSE
                }
            };
            stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
    }

    fn until_due(&self, now: Timestamp) -> Duration {
        let next = self.board.next_due().map(|due| due.duration_since(now));
        next.map_or(LOOK, |left| Duration::try_from(left).unwrap_or_default().min(LOOK))
    }

    /// Fires what is due now.
    async fn round(&mut self, now: Timestamp) -> Result<Round, FireError> {
        self.board.follow(self.routes.routes().schedules());
        let mut due = self.board.due(now, CLAIMS_MAX);
        // Missed, and not to be made up for: nothing that others must agree on.
        due.retain(|(id, due)| {
            if due.ticks.is_empty() {
                metrics::counter!("kiln_schedule_ticks_total", "outcome" => "skipped").increment(1);
                self.board.dealt_with(*id, due.newest);
            }
            !due.ticks.is_empty()
        });
        if due.is_empty() {
            return Ok(Round::Done);
        }
        let claims: Vec<_> = due.iter().map(|(id, due)| (*id, due.newest)).collect();
        let answers = self.catalog.claim_ticks(&claims, &self.holder, now).await?;
        let (mut mine, mut round) = (Vec::new(), Round::Done);
        for ((id, due), answer) in due.into_iter().zip(answers) {
            match answer {
                Claimed::Given(None) => mine.push((id, due)),
                Claimed::Given(Some(last)) => {
                    self.board.dealt_with(id, last);
                    mine.extend(self.board.due_of(id, now).map(|due| (id, due)));
                }
                Claimed::Fired(last) => self.board.dealt_with(id, last),
                // The routes will tell that it is gone.
                Claimed::Held | Claimed::Gone => round = Round::Held,
            }
        }
        if !mine.is_empty() {
            self.fire(&mine).await?;
        }
        Ok(round)
    }

    async fn fire(&mut self, mine: &[(TriggerId, Due)]) -> Result<(), FireError> {
        let mut messages = Vec::new();
        for (id, due) in mine {
            let Some((route, call)) = self.board.call(*id) else { continue };
            for tick in &due.ticks {
                messages.push(message(route, call, *tick)?);
            }
        }
        let enqueueing = tokio::time::timeout(ENQUEUE_TIMEOUT, self.enqueue(messages));
        enqueueing.await.map_err(|_elapsed| FireError::Slow)??;
        let fired: Vec<_> = mine.iter().map(|(id, due)| (*id, due.newest)).collect();
        self.catalog.ticks_fired(&fired, &self.holder).await?;
        for (id, newest) in fired {
            self.board.dealt_with(id, newest);
        }
        Ok(())
    }

    async fn enqueue(&self, mut messages: Vec<NewMessage>) -> Result<(), QueueError> {
        while !messages.is_empty() {
            let later = messages.split_off(messages.len().min(BATCH_MAX));
            for stored in self.queue.enqueue(messages).await? {
                let outcome = if matches!(stored, Enqueued::New(_)) { "fired" } else { "known" };
                metrics::counter!("kiln_schedule_ticks_total", "outcome" => outcome).increment(1);
            }
            messages = later;
        }
        Ok(())
    }
}

/// The call for a tick. Made again for the same tick it is not stored again.
fn message(route: &ScheduleRoute, call: &ScheduledCall, tick: Timestamp) -> Result<NewMessage, QueueError> {
    let (trigger, spec) = (&route.trigger, &route.function.spec);
    let mut headers = HeaderBlock::new();
    if let Some(content_type) = &call.content_type {
        headers.push_valid(b"Content-Type", content_type.as_bytes());
    }
    headers.push_valid(b"Kiln-Schedule", trigger.name.as_bytes());
    headers.push_valid(b"Kiln-Tick", tick.to_string().as_bytes());
    let path = format!("/invoke/{}", spec.id);
    let url = format!("http://localhost{path}");
    let kind = CallKind::Trigger(trigger.id);
    let stored = StoredCall { kind, method: http::Method::POST, url, path, headers };
    Ok(NewMessage {
        // No caller can give a key with a space in it.
        idempotency_key: Some(format!(" schedule/{}/{}", trigger.id, tick.as_second())),
        retry: spec.detached.retry,
        envelope: stored.to_envelope()?,
        ..NewMessage::new(CallId::generate(), spec.id, spec.app_id, call.payload.clone())
    })
}
