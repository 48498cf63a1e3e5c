//! What operators and callers see and do.

use std::time::Duration;

use kiln_shared::ids::{CallId, FunctionId};
use kiln_shared::queue::{
    Cancelled, List, NewMessage, PAGE_MAX, Purge, QueueError, Redrive, Retry, Settled, State,
};

use super::{Bench, Handle, ids, message, messages};

/// Enqueues a message and has it die; its id.
async fn die(queue: &Handle, function: FunctionId) -> CallId {
    let id = queue.put(&message(function)).await;
    let taken = queue.take_one().await;
    assert_eq!(taken.receipt.id, id);
    assert_eq!(queue.fail(taken.receipt, "poison", Retry::Never).await, Settled::Dead);
    id
}

pub(super) async fn each_state_can_be_inspected(bench: Bench) {
    let queue = bench.open().await;
    let function = FunctionId::generate();
    assert_eq!(queue.queue.inspect(CallId::generate()).await, Ok(None));
    let delayed = NewMessage { delay: Duration::from_secs(5), ..message(function) };
    let id = queue.put(&delayed).await;
    let view = queue.view(id).await;
    assert_eq!((view.state, view.due_at), (State::Delayed, view.created_at + Duration::from_secs(5)));
    bench.advance(Duration::from_secs(5));
    assert_eq!(queue.view(id).await.state, State::Queued);
    let receipt = queue.take_one().await.receipt;
    let view = queue.view(id).await;
    assert_eq!(
        (view.state, view.started_at),
        (State::Running, Some(view.created_at + Duration::from_secs(5)))
    );
    bench.advance(Duration::from_secs(2));
    queue.done(receipt).await;
    let view = queue.view(id).await;
    assert_eq!((view.state, view.ended_at), (State::Done, Some(view.created_at + Duration::from_secs(7))));
    assert_eq!((view.leased_until, view.function_id), (None, function));
}

pub(super) async fn a_message_that_waits_can_be_cancelled(bench: Bench) {
    let queue = bench.open().await;
    let function = FunctionId::generate();
    let due = queue.put(&message(function)).await;
    let delayed = queue.put(&NewMessage { delay: Duration::from_secs(5), ..message(function) }).await;
    for id in [due, delayed] {
        assert_eq!(queue.queue.cancel(id).await, Ok(Cancelled::Cancelled));
        let view = queue.view(id).await;
        assert_eq!((view.state, view.attempts), (State::Cancelled, 0));
    }
    bench.advance(Duration::from_secs(5));
    assert!(queue.take(10).await.is_empty());
    assert_eq!(queue.queue.cancel(due).await, Ok(Cancelled::Ended));
}

pub(super) async fn a_message_that_runs_or_ended_cannot_be_cancelled(bench: Bench) {
    let queue = bench.open().await;
    let id = queue.put(&message(FunctionId::generate())).await;
    let receipt = queue.take_one().await.receipt;
    assert_eq!(queue.queue.cancel(id).await, Ok(Cancelled::Running));
    assert_eq!(queue.done(receipt).await, Settled::Done);
    assert_eq!(queue.queue.cancel(id).await, Ok(Cancelled::Ended));
    assert_eq!(queue.queue.cancel(CallId::generate()).await, Ok(Cancelled::Unknown));
    assert_eq!(queue.view(id).await.state, State::Done);
}

pub(super) async fn a_dead_message_can_be_put_back(bench: Bench) {
    let queue = bench.open().await;
    let function = FunctionId::generate();
    let brief =
        NewMessage { deadline: Some(Duration::from_secs(5)), payload: "kept".into(), ..message(function) };
    queue.put(&brief).await;
    let receipt = queue.take_one().await.receipt;
    assert_eq!(queue.fail(receipt, "poison", Retry::Never).await, Settled::Dead);
    bench.advance(Duration::from_mins(1));
    assert_eq!(queue.queue.redrive(Redrive::Message(brief.id)).await, Ok(1));
    let view = queue.view(brief.id).await;
    assert_eq!((view.state, view.attempts, view.deadline_at), (State::Queued, 0, None));
    assert_eq!(view.last_error.as_deref(), Some("poison"), "until it fails anew");
    assert_eq!(queue.done(receipt).await, Settled::Lost, "its old lease is over");
    let again = queue.take_one().await;
    assert_eq!((again.attempt, &again.payload[..]), (1, &b"kept"[..]));
    assert_eq!(queue.queue.redrive(Redrive::Message(brief.id)).await, Ok(0), "it is not dead");
    assert_eq!(queue.queue.redrive(Redrive::Message(CallId::generate())).await, Ok(0));
    assert_eq!(queue.done(again.receipt).await, Settled::Done);
}

pub(super) async fn dead_messages_of_a_function_can_be_put_back(bench: Bench) {
    let queue = bench.open().await;
    let (one, other) = (FunctionId::generate(), FunctionId::generate());
    let mut dead = Vec::new();
    for _ in 0..3 {
        dead.push(die(&queue, one).await);
    }
    die(&queue, other).await;
    let redrive = |messages_max| queue.queue.redrive(Redrive::Function { function_id: one, messages_max });
    assert_eq!(redrive(2).await, Ok(2));
    let mut back = ids(&queue.take(10).await);
    back.sort_unstable();
    assert_eq!(back, dead[..2], "the oldest");
    assert_eq!(redrive(1000).await, Ok(1));
    assert_eq!(redrive(1000).await, Ok(0));
    assert!(matches!(redrive(1001).await, Err(QueueError::Invalid(_))));
}

pub(super) async fn lists_are_by_function_and_state_and_have_pages(bench: Bench) {
    let queue = bench.open().await;
    let (one, other) = (FunctionId::generate(), FunctionId::generate());
    let dead = die(&queue, one).await;
    let mut all = vec![dead];
    for _ in 0..4 {
        all.push(queue.put(&message(one)).await);
        queue.put(&message(other)).await;
    }
    let delayed = queue.put(&NewMessage { delay: Duration::from_secs(5), ..message(one) }).await;
    all.push(delayed);
    let list = async |list: List| {
        let page = queue.queue.list(list).await.expect("the queue answers");
        (page.messages.iter().map(|view| view.id).collect::<Vec<_>>(), page.next)
    };
    let page = |after| List { function_id: Some(one), after, messages_max: 4, ..List::default() };
    let (mut listed, next) = list(page(None)).await;
    assert_eq!(listed.len(), 4);
    let (more, next) = list(page(next)).await;
    listed.extend(more);
    assert_eq!((listed, next), (all.clone(), None));
    let of = |state| List { state: Some(state), messages_max: PAGE_MAX, ..List::default() };
    assert_eq!(list(of(State::Dead)).await, (vec![dead], None));
    assert_eq!(list(of(State::Delayed)).await, (vec![delayed], None));
    assert_eq!(list(of(State::Queued)).await.0.len(), 8);
    assert_eq!(list(List { function_id: Some(one), ..of(State::Queued) }).await.0, all[1..5]);
    assert_eq!(list(of(State::Running)).await, (vec![], None));
    assert!(matches!(queue.queue.list(List::default()).await, Err(QueueError::Invalid(_))));
    let nonsense = List { after: Some("'; --".to_owned()), ..of(State::Queued) };
    assert!(matches!(queue.queue.list(nonsense).await, Err(QueueError::Invalid(_))));
}

pub(super) async fn depth_tells_what_each_function_has(bench: Bench) {
    let queue = bench.open().await;
    assert_eq!(queue.queue.depth().await, Ok(vec![]));
    let (one, other) = (FunctionId::generate(), FunctionId::generate());
    die(&queue, one).await;
    queue.put(&message(one)).await;
    queue.take_one().await;
    let oldest = queue.put(&message(one)).await;
    bench.advance(Duration::from_secs(9));
    queue.enqueue(messages(one, 2)).await;
    queue.put(&NewMessage { delay: Duration::from_secs(5), ..message(one) }).await;
    queue.put(&NewMessage { delay: Duration::from_secs(5), ..message(other) }).await;
    let depth = queue.queue.depth().await.expect("the queue answers");
    let counts: Vec<_> = depth
        .iter()
        .map(|depth| (depth.function_id, depth.queued, depth.delayed, depth.running, depth.dead))
        .collect();
    let mut expected = vec![(one, 3, 1, 1, 1), (other, 0, 1, 0, 0)];
    expected.sort_unstable();
    assert_eq!(counts, expected);
    let oldest = queue.view(oldest).await.due_at;
    for depth in depth {
        assert_eq!(depth.oldest_due_at, (depth.function_id == one).then_some(oldest));
    }
}

pub(super) async fn ended_messages_are_forgotten_when_purged(bench: Bench) {
    let queue = bench.open().await;
    let function = FunctionId::generate();
    let dead = die(&queue, function).await;
    let done = queue.put(&message(function)).await;
    let receipt = queue.take_one().await.receipt;
    queue.done(receipt).await;
    let cancelled = queue.put(&message(function)).await;
    queue.queue.cancel(cancelled).await.expect("the queue answers");
    let waiting = queue.put(&message(function)).await;
    bench.advance(Duration::from_mins(1));
    let purge = |purge| queue.queue.purge(purge);
    assert_eq!(purge(Purge::Finished(Duration::from_secs(61))).await, Ok(0));
    assert_eq!(purge(Purge::Finished(Duration::from_secs(59))).await, Ok(2));
    for id in [done, cancelled] {
        assert_eq!(queue.queue.inspect(id).await, Ok(None));
    }
    assert_eq!(queue.view(dead).await.state, State::Dead);
    assert_eq!(purge(Purge::Dead(Duration::ZERO)).await, Ok(1));
    assert_eq!(queue.queue.inspect(dead).await, Ok(None));
    assert_eq!(queue.take_one().await.receipt.id, waiting);
}
