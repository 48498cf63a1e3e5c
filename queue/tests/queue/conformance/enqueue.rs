//! What is stored, and what is not.

use std::time::Duration;

use kiln_queue::Options;
use kiln_shared::ids::{CallId, FunctionId};
use kiln_shared::queue::{
    BATCH_MAX, Enqueued, NewMessage, PAYLOAD_BYTES_MAX, Priority, Purge, QueueError, RetryPolicy,
};
use kiln_testkit::until;
use serde_json::value::RawValue;

use super::{Bench, app, message, messages};

pub(super) async fn a_message_comes_out_as_it_went_in(bench: Bench) {
    let queue = bench.open().await;
    let function = FunctionId::generate();
    let envelope = r#"{"content-type": "text/plain", "x":[1, "ä€😀\u0000"]}"#;
    let sent = NewMessage {
        priority: Priority::MAX,
        deadline: Some(Duration::from_mins(1)),
        idempotency_key: Some("key ä'\"\\%_".to_owned()),
        retry: RetryPolicy {
            attempts_max: 7,
            pause_min: Duration::from_millis(1),
            pause_max: Duration::from_hours(1),
            jitter_percent: 33,
        },
        envelope: RawValue::from_string(envelope.to_owned()).expect("JSON"),
        payload: (0..=255).collect::<Vec<u8>>().into(),
        ..message(function)
    };
    queue.put(&sent).await;
    let got = queue.take_one().await;
    assert_eq!(got.receipt.id, sent.id);
    assert_eq!((got.function_id, got.app_id, got.priority), (function, app(), Priority::MAX));
    assert_eq!((got.attempt, got.retry), (1, sent.retry));
    assert_eq!((got.envelope.get(), got.payload), (envelope, sent.payload));
    let view = queue.view(sent.id).await;
    assert_eq!((view.created_at, view.payload_bytes, view.attempts_max), (got.created_at, 256, 7));
}

pub(super) async fn the_largest_payload_comes_out_as_it_went_in(bench: Bench) {
    let queue = bench.open().await;
    let payload: Vec<u8> = (0..PAYLOAD_BYTES_MAX).map(|place| (place % 251) as u8).collect();
    let sent = NewMessage { payload: payload.into(), ..message(FunctionId::generate()) };
    queue.put(&sent).await;
    assert!(queue.take_one().await.payload == sent.payload, "the payload is another");
}

pub(super) async fn enqueuing_an_id_again_stores_nothing(bench: Bench) {
    let queue = bench.open().await;
    let sent = message(FunctionId::generate());
    let other = message(sent.function_id);
    queue.put(&sent).await;
    let again = queue.enqueue(vec![sent.clone(), other.clone(), sent.clone()]).await;
    assert_eq!(again, [Enqueued::Known(sent.id), Enqueued::New(other.id), Enqueued::Known(sent.id)]);
    assert_eq!(queue.take(10).await.len(), 2);
    assert_eq!(queue.enqueue(vec![sent.clone()]).await, [Enqueued::Known(sent.id)], "also while it runs");
    assert_eq!(queue.enqueue(Vec::new()).await, []);
}

pub(super) async fn an_idempotency_key_gives_the_first_call_back(bench: Bench) {
    let queue = bench.open().await;
    let (one, other) = (FunctionId::generate(), FunctionId::generate());
    let keyed = |function| NewMessage { idempotency_key: Some("order-7".to_owned()), ..message(function) };
    let first = keyed(one);
    let elsewhere = keyed(other);
    let enqueued = queue.enqueue(vec![first.clone(), keyed(one), elsewhere.clone(), message(one)]).await;
    assert_eq!(
        enqueued[..3],
        [Enqueued::New(first.id), Enqueued::Known(first.id), Enqueued::New(elsewhere.id)]
    );
    assert_eq!(queue.enqueue(vec![keyed(one)]).await, [Enqueued::Known(first.id)]);
    assert_eq!(queue.take(10).await.len(), 3);
}

pub(super) async fn an_idempotency_key_is_kept_until_its_message_is_purged(bench: Bench) {
    let queue = bench.open().await;
    let function = FunctionId::generate();
    let keyed = || NewMessage { idempotency_key: Some("k".to_owned()), ..message(function) };
    let first = queue.put(&keyed()).await;
    let receipt = queue.take_one().await.receipt;
    queue.done(receipt).await;
    assert_eq!(queue.enqueue(vec![keyed()]).await, [Enqueued::Known(first)]);
    bench.advance(Duration::from_secs(2));
    assert_eq!(queue.queue.purge(Purge::Finished(Duration::from_secs(1))).await, Ok(1));
    queue.put(&keyed()).await;
}

pub(super) async fn a_thousand_messages_are_one_batch(bench: Bench) {
    let queue = bench.open().await;
    let sent = messages(FunctionId::generate(), BATCH_MAX);
    let ids: Vec<CallId> = sent.iter().map(|message| message.id).collect();
    let enqueued = queue.enqueue(sent).await;
    assert!(enqueued.iter().zip(&ids).all(|(enqueued, id)| *enqueued == Enqueued::New(*id)));
    assert_eq!(super::ids(&queue.take(BATCH_MAX).await), ids);
}

pub(super) async fn what_is_over_a_limit_is_refused_and_nothing_is_stored(bench: Bench) {
    let queue = bench.open().await;
    let function = FunctionId::generate();
    let large = NewMessage { payload: vec![0; PAYLOAD_BYTES_MAX + 1].into(), ..message(function) };
    let refused = queue.queue.enqueue(vec![message(function), large]).await;
    assert!(matches!(refused, Err(QueueError::TooLarge { .. })), "{refused:?}");
    let refused = queue.queue.enqueue(messages(function, BATCH_MAX + 1)).await;
    assert!(matches!(refused, Err(QueueError::Invalid(_))), "{refused:?}");
    assert!(queue.take(1).await.is_empty());
}

pub(super) async fn a_full_queue_refuses_until_something_is_done(bench: Bench) {
    let queue = bench.open_with(Options { messages_max: Some(3), ..Options::default() }).await;
    let function = FunctionId::generate();
    queue.enqueue(messages(function, 2)).await;
    let refused = queue.queue.enqueue(messages(function, 2)).await;
    assert_eq!(refused, Err(QueueError::Full { messages_max: 3 }), "both or none");
    until("the third is taken", async || queue.queue.enqueue(vec![message(function)]).await.ok()).await;
    let taken = queue.take(3).await;
    assert_eq!(taken.len(), 3);
    let refused = queue.queue.enqueue(vec![message(function)]).await;
    assert_eq!(refused, Err(QueueError::Full { messages_max: 3 }), "what runs counts");
    let telling = NewMessage { tells_an_end: true, ..message(FunctionId::generate()) };
    queue.put(&telling).await;
    queue.done(queue.take_one().await.receipt).await;
    queue.done(taken[0].receipt).await;
    until("there is room again", async || queue.queue.enqueue(vec![message(function)]).await.ok()).await;
}

pub(super) async fn a_full_queue_knows_what_it_has(bench: Bench) {
    let queue = bench.open_with(Options { messages_max: Some(3), ..Options::default() }).await;
    let function = FunctionId::generate();
    let keyed = || NewMessage { idempotency_key: Some("order-7".to_owned()), ..message(function) };
    let (plain, first) = (message(function), keyed());
    queue.enqueue(vec![plain.clone(), first.clone()]).await;
    let third = message(function);
    let known = [Enqueued::Known(plain.id), Enqueued::Known(first.id)];
    let repeated = queue.enqueue(vec![plain.clone(), keyed(), third.clone()]).await;
    assert_eq!(repeated, [known[0], known[1], Enqueued::New(third.id)], "there is room for one");
    assert_eq!(queue.enqueue(vec![plain.clone(), first.clone()]).await, known, "by id");
    assert_eq!(queue.enqueue(vec![keyed()]).await, [Enqueued::Known(first.id)], "by key");
    let refused = queue.queue.enqueue(vec![plain, message(function)]).await;
    assert_eq!(refused, Err(QueueError::Full { messages_max: 3 }), "one of them is new");
    assert_eq!(queue.take(10).await.len(), 3);
}

pub(super) async fn what_was_enqueued_is_there_when_the_queue_is_opened_again(bench: Bench) {
    let sent = message(FunctionId::generate());
    let queue = bench.open().await;
    queue.put(&sent).await;
    queue.queue.close().await;
    drop(queue);
    let queue = bench.open().await;
    assert_eq!(queue.take_one().await.receipt.id, sent.id);
}
