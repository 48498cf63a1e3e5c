//! How those who wait learn that there is something.

use std::time::Duration;

use kiln_shared::ids::FunctionId;
use kiln_shared::queue::{NewMessage, QueueError, Reserved, Retry, Wakeups};
use tokio::time::timeout;

use super::{Bench, Handle, LEASE, message};

/// What workers do: ask, and wait for a wake-up before asking again.
async fn wait_for_one(queue: &Handle, wakeups: &mut Wakeups) -> Reserved {
    let waited = timeout(Duration::from_secs(20), async {
        loop {
            if let Some(reserved) = queue.take(1).await.pop() {
                return reserved;
            }
            wakeups.next().await.expect("the queue is open");
        }
    });
    waited.await.expect("somebody wakes")
}

pub(super) async fn an_enqueued_message_wakes_who_waits(bench: Bench) {
    let queue = bench.open().await;
    for _ in 0..3 {
        let mut wakeups = queue.queue.subscribe();
        assert!(queue.take(1).await.is_empty());
        let sender = queue.clone();
        let sent = tokio::spawn(async move { sender.put(&message(FunctionId::generate())).await });
        let got = wait_for_one(&queue, &mut wakeups).await;
        assert_eq!(got.receipt.id, sent.await.expect("it is enqueued"));
    }
}

pub(super) async fn a_message_enqueued_by_another_process_wakes_who_waits(bench: Bench) {
    let (here, there) = (bench.open().await, bench.open().await);
    let mut wakeups = here.queue.subscribe();
    assert!(here.take(1).await.is_empty());
    let sent = tokio::spawn(async move { there.put(&message(FunctionId::generate())).await });
    let got = wait_for_one(&here, &mut wakeups).await;
    assert_eq!(got.receipt.id, sent.await.expect("it is enqueued"));
}

pub(super) async fn a_delayed_message_wakes_who_waits_when_its_time_has_come(bench: Bench) {
    let queue = bench.open().await;
    let mut wakeups = queue.queue.subscribe();
    let id =
        queue.put(&NewMessage { delay: Duration::from_hours(1), ..message(FunctionId::generate()) }).await;
    assert!(queue.take(1).await.is_empty());
    bench.advance(Duration::from_hours(1));
    wakeups.next().await.expect("the queue is open");
    assert_eq!(wait_for_one(&queue, &mut wakeups).await.receipt.id, id);
}

pub(super) async fn a_failed_message_wakes_who_waits_when_its_pause_is_over(bench: Bench) {
    let queue = bench.open().await;
    queue.put(&message(FunctionId::generate())).await;
    let mut wakeups = queue.queue.subscribe();
    let receipt = queue.take_one().await.receipt;
    queue.fail(receipt, "no", Retry::After(Duration::from_mins(1))).await;
    bench.advance(Duration::from_mins(1));
    assert_eq!(wait_for_one(&queue, &mut wakeups).await.attempt, 2);
}

pub(super) async fn the_end_of_a_lease_wakes_who_waits(bench: Bench) {
    let queue = bench.open().await;
    queue.put(&message(FunctionId::generate())).await;
    queue.take_one().await;
    let mut wakeups = queue.queue.subscribe();
    bench.advance(LEASE);
    assert!(timeout(Duration::from_secs(20), wakeups.next()).await.is_ok(), "nobody wakes");
    assert_eq!(wait_for_one(&queue, &mut wakeups).await.attempt, 2);
}

pub(super) async fn a_closed_queue_says_so(bench: Bench) {
    let queue = bench.open().await;
    queue.queue.close().await;
    let refused = queue.queue.enqueue(vec![message(FunctionId::generate())]).await;
    assert!(matches!(refused, Err(QueueError::Unavailable(_))), "{refused:?}");
    assert!(queue.queue.depth().await.is_err());
    queue.queue.close().await;
}
