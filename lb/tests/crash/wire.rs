//! What is between an agent and a balancer: delays, answers that get lost, and the death of either.

use std::sync::Arc;
use std::time::Duration;

use kiln_shared::ids::CallId;
use kiln_shared::queue::{
    Finished, Held, QueueError, QueueFuture, Receipt, Reserve, Settled, Work, WorkSource,
};
use rand::RngExt as _;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::model::now;
use crate::world::{Fault, Life, Shared};

/// Longest time of a question or an answer on its way.
const DELAY_MAX: Duration = Duration::from_millis(10);
/// The share of answers that get lost.
const LOST_SHARE: f64 = 0.02;

pub(crate) struct Wire {
    pub(crate) shared: Arc<Shared>,
    pub(crate) life: Life,
    pub(crate) node: String,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Wire").finish_non_exhaustive()
    }
}

fn broken() -> QueueError {
    QueueError::Unavailable("the link broke".to_owned())
}

impl Wire {
    async fn delay(&self) {
        let part = self.shared.book().draws.random::<f64>();
        sleep(DELAY_MAX.mul_f64(part)).await;
    }

    async fn ask<T>(&self, calls: Vec<CallId>, asked: QueueFuture<'_, T>) -> Result<T, QueueError> {
        self.delay().await;
        let answer = tokio::select! {
            answer = asked => answer,
            () = self.life.dead.cancelled() => return Err(broken()),
        };
        self.delay().await;
        let mut book = self.shared.book();
        if book.happens(LOST_SHARE) {
            let (node, calls) = (Some(self.node.clone()), Some(calls));
            book.faults.push(Fault { at: now(), what: "an answer was lost", node, calls });
            return Err(broken());
        }
        answer
    }
}

impl WorkSource for Wire {
    fn take(
        &self,
        reserve: Reserve,
        wait: Duration,
        enough: CancellationToken,
    ) -> QueueFuture<'_, Vec<Work>> {
        Box::pin(self.ask(Vec::new(), self.life.dispatcher.take(reserve, wait, enough)))
    }

    fn renew(&self, receipts: Vec<Receipt>, lease: Duration) -> QueueFuture<'_, Vec<Held>> {
        let calls = receipts.iter().map(|receipt| receipt.id).collect();
        Box::pin(self.ask(calls, self.life.dispatcher.renew(receipts, lease)))
    }

    fn finish(&self, finished: Vec<Finished>) -> QueueFuture<'_, Vec<Settled>> {
        let calls = finished.iter().map(|finished| finished.receipt.id).collect();
        Box::pin(self.ask(calls, self.life.dispatcher.finish(finished)))
    }
}
