//! In which order messages are given out.

use std::time::Duration;

use kiln_shared::ids::{CallId, FunctionId};
use kiln_shared::queue::{BATCH_BYTES_MAX, NewMessage, PAYLOAD_BYTES_MAX, Priority};

use super::{Bench, ids, message, messages};

pub(super) async fn messages_of_a_function_come_in_the_order_of_enqueuing(bench: Bench) {
    let queue = bench.open().await;
    let function = FunctionId::generate();
    let mut sent = Vec::new();
    for batch in 0..5 {
        // Ids do not tell the order.
        let mut messages = messages(function, 10);
        messages.reverse();
        sent.extend(messages.iter().map(|message| message.id));
        queue.enqueue(messages).await;
        if batch == 2 {
            bench.advance(Duration::from_millis(1));
        }
    }
    let mut got = ids(&queue.take(7).await);
    got.extend(ids(&queue.take(100).await));
    assert_eq!(got, sent);
}

pub(super) async fn higher_priorities_come_first(bench: Bench) {
    let queue = bench.open().await;
    let (one, other) = (FunctionId::generate(), FunctionId::generate());
    let mut sent = Vec::new();
    for (function, priority) in [(one, 0), (other, 1), (one, 2), (other, 0), (one, 1), (other, 2)] {
        let priority = Priority::try_from(priority).expect("a priority");
        let message = NewMessage { priority, ..message(function) };
        bench.advance(Duration::from_millis(1));
        sent.push((priority, queue.put(&message).await));
    }
    sent.sort_by_key(|(priority, id)| (std::cmp::Reverse(*priority), *id));
    let taken = queue.take(4).await;
    let mut got: Vec<(Priority, CallId)> =
        taken.iter().map(|reserved| (reserved.priority, reserved.receipt.id)).collect();
    assert!(got.is_sorted_by_key(|(priority, _)| std::cmp::Reverse(*priority)), "{got:?}");
    // Between functions of one priority the order is nobody's right.
    got.sort_by_key(|(priority, id)| (std::cmp::Reverse(*priority), *id));
    assert_eq!(got, sent[..4]);
}

pub(super) async fn a_delayed_message_comes_when_its_time_has_come(bench: Bench) {
    let queue = bench.open().await;
    let function = FunctionId::generate();
    let late = NewMessage { delay: Duration::from_hours(1), ..message(function) };
    queue.put(&late).await;
    let now = queue.put(&message(function)).await;
    let taken = queue.take_one().await;
    assert_eq!(taken.receipt.id, now);
    queue.done(taken.receipt).await;
    bench.advance(Duration::from_millis(3_599_999));
    assert!(queue.take(10).await.is_empty());
    bench.advance(Duration::from_millis(1));
    assert_eq!(queue.take_one().await.receipt.id, late.id);
}

pub(super) async fn a_message_that_was_due_earlier_goes_first(bench: Bench) {
    let queue = bench.open().await;
    let function = FunctionId::generate();
    let later = NewMessage { delay: Duration::from_secs(2), ..message(function) };
    let sooner = NewMessage { delay: Duration::from_secs(1), ..message(function) };
    queue.enqueue(vec![later.clone(), sooner.clone()]).await;
    bench.advance(Duration::from_secs(3));
    let last = queue.put(&message(function)).await;
    assert_eq!(ids(&queue.take(10).await), [sooner.id, later.id, last]);
}

pub(super) async fn a_reserve_gives_no_more_than_was_asked_for(bench: Bench) {
    let queue = bench.open().await;
    for _ in 0..3 {
        queue.enqueue(messages(FunctionId::generate(), 3)).await;
    }
    let mut got = Vec::new();
    for messages_max in [1, 2, 5] {
        let taken = queue.take(messages_max).await;
        assert_eq!(taken.len(), messages_max);
        got.extend(ids(&taken));
    }
    got.extend(ids(&queue.take(5).await));
    got.sort_unstable();
    got.dedup();
    assert_eq!(got.len(), 9);
}

pub(super) async fn a_reserve_gives_no_more_bytes_than_fit(bench: Bench) {
    let queue = bench.open().await;
    let function = FunctionId::generate();
    let fit = BATCH_BYTES_MAX / PAYLOAD_BYTES_MAX;
    for _ in 0..=fit {
        queue.put(&NewMessage { payload: vec![0; PAYLOAD_BYTES_MAX].into(), ..message(function) }).await;
    }
    let taken = queue.take(10).await;
    assert_eq!(taken.len(), fit);
    let left = queue.take_one().await;
    assert_eq!(left.attempt, 1, "what did not fit was not tried");
}
