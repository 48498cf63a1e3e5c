//! A look at the queue now and then: what it holds, for the metrics, and which calls died with no node there to tell of it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kiln_shared::model::{QueueFunction, QueueResource};
use kiln_shared::queue::{Depth, Queue, QueueError};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Dispatcher;
use super::buried::Buried;

/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Longest time of a look.
const LOOK_WITHIN: Duration = Duration::from_secs(20);

/// Looks until `stop`.
pub(super) async fn watch(queue: Arc<dyn Queue>, dispatcher: Dispatcher, stop: CancellationToken) {
    let mut buried = Buried::new(dispatcher);
    loop {
        let looking = timeout(LOOK_WITHIN, look(&*queue, &mut buried));
        // What is dropped here has read, or has enqueued what enqueuing again does not double.
        let Some(looked) = stop.run_until_cancelled(looking).await else { return };
        let is_there = match looked {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::debug!(%error, "cannot look at the queue");
                false
            }
            Err(_elapsed) => {
                tracing::debug!("the queue did not answer in time");
                false
            }
        };
        metrics::gauge!("kiln_queue_up").set(f64::from(u8::from(is_there)));
        if stop.run_until_cancelled(sleep(LOOK_EVERY)).await.is_none() {
            return;
        }
    }
}

async fn look(queue: &dyn Queue, buried: &mut Buried) -> Result<(), QueueError> {
    let depths = queue.depth().await?;
    show(&depths);
    buried.look(queue, &depths).await
}

fn show(depths: &[Depth]) {
    let now = Timestamp::now();
    let whole = QueueResource::of(depths.iter().map(|depth| QueueFunction::of(depth, None, now)).collect());
    for (state, calls) in [
        ("queued", whole.queued),
        ("delayed", whole.delayed),
        ("running", whole.running),
        ("dead", whole.dead),
    ] {
        metrics::gauge!("kiln_queue_depth", "state" => state).set(calls as f64);
    }
    metrics::gauge!("kiln_queue_oldest_seconds").set(whole.oldest_seconds.unwrap_or_default());
}
