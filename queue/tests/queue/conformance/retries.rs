//! What becomes of messages that fail.

use std::time::Duration;

use kiln_shared::ids::FunctionId;
use kiln_shared::queue::{
    ERROR_BYTES_MAX, NewMessage, Outcome, Retry, RetryPolicy, Settled, Settlement, State,
};
use kiln_testkit::until;

use super::{Bench, LEASE, ids, message, messages};

/// Three attempts, pauses of exactly 1 s and 2 s.
const POLICY: RetryPolicy = RetryPolicy {
    attempts_max: 3,
    pause_min: Duration::from_secs(1),
    pause_max: Duration::from_mins(1),
    jitter_percent: 0,
};

fn failing() -> NewMessage {
    NewMessage { retry: POLICY, ..message(FunctionId::generate()) }
}

fn again(seconds: u64) -> Settled {
    Settled::Again { after: Duration::from_secs(seconds) }
}

pub(super) async fn a_failed_message_is_tried_again_after_its_pause(bench: Bench) {
    let queue = bench.open().await;
    let id = queue.put(&failing()).await;
    for (attempt, pause) in [(1, 1), (2, 2)] {
        let taken = queue.take_one().await;
        assert_eq!(taken.attempt, attempt);
        assert_eq!(queue.fail(taken.receipt, "it failed", Retry::ByPolicy).await, again(pause));
        let view = queue.view(id).await;
        assert_eq!((view.state, view.attempts), (State::Delayed, attempt));
        assert_eq!(view.last_error.as_deref(), Some("it failed"));
        bench.advance(Duration::from_millis(pause * 1000 - 1));
        assert!(queue.take(10).await.is_empty());
        bench.advance(Duration::from_millis(1));
    }
    let last = queue.take_one().await;
    assert_eq!(last.attempt, 3);
    assert_eq!(queue.done(last.receipt).await, Settled::Done);
}

pub(super) async fn a_worker_may_choose_the_pause(bench: Bench) {
    let queue = bench.open().await;
    queue.put(&failing()).await;
    let after = |seconds| Retry::After(Duration::from_secs(seconds));
    let receipt = queue.take_one().await.receipt;
    assert_eq!(queue.fail(receipt, "busy", after(0)).await, again(0));
    let receipt = queue.take_one().await.receipt;
    assert_eq!(queue.fail(receipt, "busy", after(7)).await, again(7));
    bench.advance(Duration::from_secs(6));
    assert!(queue.take(10).await.is_empty());
    bench.advance(Duration::from_secs(1));
    assert_eq!(queue.take_one().await.attempt, 3);
}

pub(super) async fn a_message_whose_attempts_are_used_up_is_dead(bench: Bench) {
    let queue = bench.open().await;
    let id = queue.put(&failing()).await;
    for error in ["one", "two", "three"] {
        let receipt = queue.take_one().await.receipt;
        let settled = queue.fail(receipt, error, Retry::ByPolicy).await;
        assert_eq!(settled == Settled::Dead, error == "three");
        bench.advance(Duration::from_secs(5));
    }
    assert!(queue.take(10).await.is_empty());
    let view = queue.view(id).await;
    assert_eq!((view.state, view.attempts, view.last_error.as_deref()), (State::Dead, 3, Some("three")));
    assert!(view.ended_at.is_some());
}

pub(super) async fn a_message_that_shall_not_be_tried_again_is_dead(bench: Bench) {
    let queue = bench.open().await;
    let id = queue.put(&failing()).await;
    let receipt = queue.take_one().await.receipt;
    assert_eq!(queue.fail(receipt, "no such function", Retry::Never).await, Settled::Dead);
    assert_eq!(queue.view(id).await.state, State::Dead);
    assert_eq!(queue.fail(receipt, "no such function", Retry::Never).await, Settled::Lost);
}

pub(super) async fn a_message_that_is_abandoned_too_often_is_dead(bench: Bench) {
    let queue = bench.open().await;
    let id = queue.put(&failing()).await;
    for attempt in 1..4 {
        assert_eq!(queue.take_one().await.attempt, attempt);
        bench.advance(LEASE);
    }
    assert!(queue.take(10).await.is_empty());
    let view = queue.view(id).await;
    assert_eq!(view.state, State::Dead);
    assert!(view.last_error.is_some_and(|error| error.contains("attempt 3 at worker")));
}

pub(super) async fn a_message_that_waits_beyond_its_deadline_is_dead(bench: Bench) {
    let queue = bench.open().await;
    let brief = NewMessage { deadline: Some(Duration::from_secs(10)), ..failing() };
    let delayed =
        NewMessage { delay: Duration::from_secs(20), ..NewMessage { id: failing().id, ..brief.clone() } };
    queue.enqueue(vec![brief.clone(), delayed.clone()]).await;
    bench.advance(Duration::from_secs(10));
    assert!(queue.take(10).await.is_empty());
    // Nobody has to ask for messages for it to happen.
    for id in [brief.id, delayed.id] {
        let view =
            until("it is dead", async || Some(queue.view(id).await).filter(|view| view.state == State::Dead));
        let error = view.await.last_error.expect("a reason");
        assert!(error.contains("deadline passed"), "{error}");
    }
}

pub(super) async fn no_attempt_begins_after_the_deadline(bench: Bench) {
    let queue = bench.open().await;
    let id = queue.put(&NewMessage { deadline: Some(Duration::from_secs(10)), ..failing() }).await;
    let receipt = queue.take_one().await.receipt;
    // What runs is not disturbed.
    bench.advance(Duration::from_secs(9));
    assert_eq!(queue.view(id).await.state, State::Running);
    assert_eq!(queue.fail(receipt, "no", Retry::ByPolicy).await, Settled::Dead);
    let error = queue.view(id).await.last_error.expect("a reason");
    assert!(error.starts_with("no (") && error.contains("deadline"), "{error}");
}

pub(super) async fn an_error_is_cut_to_its_limit(bench: Bench) {
    let queue = bench.open().await;
    let id = queue.put(&failing()).await;
    let receipt = queue.take_one().await.receipt;
    queue.fail(receipt, &format!("a\0{}", "ä€😀".repeat(2_000)), Retry::ByPolicy).await;
    let kept = queue.view(id).await.last_error.expect("a reason");
    assert!(kept.starts_with("a\u{2400}ä€😀ä") && kept.len() <= ERROR_BYTES_MAX, "{kept}");
    assert!(kept.len() > ERROR_BYTES_MAX - 4);
}

pub(super) async fn a_batch_is_settled_item_by_item(bench: Bench) {
    let queue = bench.open().await;
    let function = FunctionId::generate();
    queue.enqueue(messages(function, 4)).await;
    let taken = queue.take(4).await;
    assert_eq!(queue.done(taken[3].receipt).await, Settled::Done);
    let failed = |retry| Outcome::Failed { error: "no".to_owned(), retry };
    let late = failed(Retry::After(Duration::from_secs(3)));
    let outcomes = [Outcome::Done, failed(Retry::Never), Outcome::Unstarted, late];
    let settlements = taken
        .iter()
        .zip(outcomes)
        .map(|(reserved, outcome)| Settlement { receipt: reserved.receipt, outcome });
    let settled = queue.queue.settle(settlements.collect()).await.expect("the queue answers");
    assert_eq!(settled, [Settled::Done, Settled::Dead, again(0), Settled::Lost]);
    assert_eq!(ids(&queue.take(10).await), [taken[2].receipt.id]);
}
