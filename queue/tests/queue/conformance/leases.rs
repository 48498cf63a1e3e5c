//! Who has a message, and how it is lost.

use std::time::Duration;

use kiln_shared::ids::FunctionId;
use kiln_shared::queue::{Held, Outcome, Receipt, Reserve, Retry, Settled, State};

use super::{Bench, LEASE, ids, message, messages};

pub(super) async fn a_message_is_given_to_one_worker(bench: Bench) {
    let queue = bench.open().await;
    let id = queue.put(&message(FunctionId::generate())).await;
    let receipt = queue.take_one().await.receipt;
    assert!(queue.take(10).await.is_empty());
    assert!(bench.open().await.take(10).await.is_empty());
    let view = queue.view(id).await;
    assert_eq!((view.state, view.attempts, view.worker.as_deref()), (State::Running, 1, Some("worker")));
    assert_eq!(view.leased_until, view.started_at.map(|started_at| started_at + LEASE));
    assert_eq!(queue.done(receipt).await, Settled::Done);
    bench.advance(LEASE * 2);
    assert!(queue.take(10).await.is_empty());
}

pub(super) async fn an_abandoned_message_comes_back_with_its_attempt_counted(bench: Bench) {
    let queue = bench.open().await;
    let id = queue.put(&message(FunctionId::generate())).await;
    let first = queue.take_one().await;
    bench.advance(LEASE.saturating_sub(Duration::from_millis(1)));
    assert!(queue.take(10).await.is_empty());
    bench.advance(Duration::from_secs(1));
    let second = queue.take_one().await;
    assert_eq!((first.attempt, second.attempt, second.receipt.id), (1, 2, id));
    assert_ne!(first.receipt, second.receipt);
    let error = queue.view(id).await.last_error.expect("a reason");
    assert!(error.contains("attempt 1 at worker did not end before its lease"), "{error}");
}

pub(super) async fn a_message_of_a_process_that_died_comes_back(bench: Bench) {
    let dying = bench.open().await;
    dying.enqueue(messages(FunctionId::generate(), 3)).await;
    let taken = ids(&dying.take(2).await);
    drop(dying);
    let queue = bench.open().await;
    assert_eq!(queue.take(10).await.len(), 1);
    bench.advance(LEASE);
    let mut back = queue.take_due(10).await;
    back.retain(|reserved| reserved.attempt == 2);
    let (mut back, mut taken) = (ids(&back), taken);
    back.sort_unstable();
    taken.sort_unstable();
    // The third one's lease, of the same length, ended as well.
    assert!(taken.iter().all(|id| back.contains(id)), "{taken:?} of {back:?}");
}

pub(super) async fn a_renewed_lease_holds(bench: Bench) {
    let queue = bench.open().await;
    queue.enqueue(messages(FunctionId::generate(), 2)).await;
    let taken = queue.take(2).await;
    for _ in 0..4 {
        bench.advance(LEASE / 2);
        let held = queue.queue.renew(vec![taken[0].receipt], LEASE).await.expect("the queue answers");
        assert_eq!(held, [Held::Held]);
    }
    let back = queue.take_one().await;
    assert_eq!(back.receipt.id, taken[1].receipt.id, "the other one's lease ended");
    let both = queue.queue.renew(vec![taken[1].receipt, taken[0].receipt], LEASE).await;
    assert_eq!(both, Ok(vec![Held::Lost, Held::Held]));
}

pub(super) async fn an_old_receipt_does_nothing(bench: Bench) {
    let queue = bench.open().await;
    let id = queue.put(&message(FunctionId::generate())).await;
    let old = queue.take_one().await.receipt;
    bench.advance(LEASE);
    let new = bench.open().await.take_one().await.receipt;
    let until = queue.view(id).await.leased_until;
    assert_eq!(queue.queue.renew(vec![old], LEASE * 2).await, Ok(vec![Held::Lost]));
    assert_eq!(queue.done(old).await, Settled::Lost);
    assert_eq!(queue.fail(old, "late", Retry::Never).await, Settled::Lost);
    assert_eq!(queue.settle(old, Outcome::Unstarted).await, Settled::Lost);
    let view = queue.view(id).await;
    assert_eq!((view.state, view.attempts, view.leased_until), (State::Running, 2, until));
    assert_eq!(queue.done(new).await, Settled::Done);
    assert_eq!(queue.done(old).await, Settled::Lost);
}

pub(super) async fn a_receipt_is_of_one_message(bench: Bench) {
    let queue = bench.open().await;
    queue.enqueue(messages(FunctionId::generate(), 1)).await;
    let receipt = queue.take_one().await.receipt;
    let unknown = Receipt { id: kiln_shared::ids::CallId::generate(), ..receipt };
    let wrong = Receipt { lease: receipt.lease + 1, ..receipt };
    assert_eq!(queue.done(unknown).await, Settled::Lost);
    assert_eq!(queue.done(wrong).await, Settled::Lost);
    assert_eq!(queue.queue.renew(vec![unknown, wrong], LEASE).await, Ok(vec![Held::Lost; 2]));
    assert_eq!(queue.done(receipt).await, Settled::Done);
}

pub(super) async fn done_may_be_said_again(bench: Bench) {
    let queue = bench.open().await;
    queue.put(&message(FunctionId::generate())).await;
    let receipt = queue.take_one().await.receipt;
    // As a worker does whose connection broke before the answer came.
    assert_eq!(queue.done(receipt).await, Settled::Done);
    assert_eq!(queue.done(receipt).await, Settled::Done);
    assert_eq!(queue.fail(receipt, "no", Retry::ByPolicy).await, Settled::Lost);
    assert_eq!(queue.queue.renew(vec![receipt], LEASE).await, Ok(vec![Held::Lost]));
}

pub(super) async fn an_unstarted_message_goes_back_in_front_uncounted(bench: Bench) {
    let queue = bench.open().await;
    let function = FunctionId::generate();
    let mut sent = Vec::new();
    for message in messages(function, 3) {
        sent.push(queue.put(&message).await);
        bench.advance(Duration::from_millis(1));
    }
    let first = queue.reserve(Reserve::new("worker", 1, LEASE)).await.remove(0);
    bench.advance(Duration::from_secs(1));
    let settled = queue.settle(first.receipt, Outcome::Unstarted).await;
    assert_eq!(settled, Settled::Again { after: Duration::ZERO });
    let view = queue.view(first.receipt.id).await;
    assert_eq!((view.state, view.attempts, view.last_error), (State::Queued, 0, None));
    let again = queue.take(10).await;
    assert_eq!(ids(&again), sent);
    assert_eq!(again[0].attempt, 1);
    assert_eq!(queue.done(first.receipt).await, Settled::Lost);
}
