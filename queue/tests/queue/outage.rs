//! A server that goes away and comes back: what is said meanwhile, and that nothing acknowledged is lost.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kiln_queue::{Options, open};
use kiln_shared::ids::{AppId, CallId, FunctionId};
use kiln_shared::queue::{NewMessage, Outcome, Queue, QueueError, Reserve, Settled, Settlement};
use kiln_testkit::until;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A server that can be killed and started again.
pub(crate) trait Killable {
    async fn begin(&mut self);
    fn kill(&mut self);
}

/// Kills the server under load, several times; each message that was acknowledged is given out, and who waits for
/// messages needs no help to go on.
pub(crate) async fn nothing_acknowledged_is_lost(server: &mut impl Killable, url: &str) {
    let queue = open(url, Options::default()).await.expect("the queue opens");
    let stop = CancellationToken::new();
    let taken = Arc::new(AtomicUsize::new(0));
    let caller = || tokio::spawn(call(Arc::clone(&queue), Arc::clone(&taken), stop.clone()));
    let callers: Vec<JoinHandle<Vec<CallId>>> = (0..4).map(|_| caller()).collect();
    let worker = tokio::spawn(work(Arc::clone(&queue), stop.clone()));
    for _ in 0..3 {
        let before = taken.load(Ordering::Relaxed);
        until("calls are taken", async || (taken.load(Ordering::Relaxed) > before + 50).then_some(())).await;
        server.kill();
        let refused = queue.enqueue(vec![message(FunctionId::generate())]).await;
        assert!(matches!(refused, Err(QueueError::Unavailable(_))), "{refused:?}");
        server.begin().await;
    }
    let before = taken.load(Ordering::Relaxed);
    until("calls are taken again", async || (taken.load(Ordering::Relaxed) > before).then_some(())).await;
    stop.cancel();
    let mut acknowledged = HashSet::new();
    for caller in callers {
        acknowledged.extend(caller.await.expect("a caller"));
    }
    let mut done = worker.await.expect("the worker");
    // What the worker held as the server died comes back when its lease ends.
    until("all were given out", async || {
        take(&queue, &mut done).await;
        acknowledged.iter().all(|id| done.contains(id)).then_some(())
    })
    .await;
    assert!(!acknowledged.is_empty());
    queue.close().await;
}

fn message(function: FunctionId) -> NewMessage {
    let app: AppId = "01M2APP0000000000000000000".parse().expect("an id");
    NewMessage::new(CallId::generate(), function, app, "hello")
}

/// Enqueues until `stop`; what was acknowledged. A message of which that is not known is enqueued again.
async fn call(queue: Arc<dyn Queue>, taken: Arc<AtomicUsize>, stop: CancellationToken) -> Vec<CallId> {
    let function = FunctionId::generate();
    let mut acknowledged = Vec::new();
    while !stop.is_cancelled() {
        let message = message(function);
        let id = message.id;
        if queue.enqueue(vec![message.clone()]).await.is_ok() || queue.enqueue(vec![message]).await.is_ok() {
            acknowledged.push(id);
            taken.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    acknowledged
}

/// Works as agents do: asks, and waits to be woken. What was done.
async fn work(queue: Arc<dyn Queue>, stop: CancellationToken) -> HashSet<CallId> {
    let mut done = HashSet::new();
    let mut wakeups = queue.subscribe();
    while !stop.is_cancelled() {
        if take(&queue, &mut done).await == 0 {
            tokio::select! {
                () = stop.cancelled() => {}
                woken = wakeups.next() => woken.expect("the queue is open"),
            }
        }
    }
    done
}

/// Reserves and settles some; how many.
async fn take(queue: &Arc<dyn Queue>, done: &mut HashSet<CallId>) -> usize {
    let Ok(taken) = queue.reserve(Reserve::new("worker", 50, Duration::from_secs(2))).await else { return 0 };
    let settlements: Vec<Settlement> = taken
        .iter()
        .map(|reserved| Settlement { receipt: reserved.receipt, outcome: Outcome::Done })
        .collect();
    // A server that dies before it answers may have done it: say it again, or nobody knows.
    let settled = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            match queue.settle(settlements.clone()).await {
                Ok(settled) => return settled,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    });
    let settled = settled.await.expect("the queue answers again");
    let settled = taken.iter().zip(settled).filter(|(_, settled)| *settled == Settled::Done);
    done.extend(settled.map(|(reserved, _)| reserved.receipt.id));
    taken.len()
}
