//! Whose messages go next.

use std::collections::HashSet;
use std::time::Duration;

use kiln_shared::ids::FunctionId;
use kiln_shared::queue::{Functions, NewMessage, Preferred, Priority, Reserve, Reserved};

use super::{Bench, LEASE, ids, message, messages};

fn count(reserved: &[Reserved], function: FunctionId) -> usize {
    reserved.iter().filter(|reserved| reserved.function_id == function).count()
}

pub(super) async fn a_burst_of_one_function_delays_the_others_by_few_messages(bench: Bench) {
    let queue = bench.open().await;
    let burst = FunctionId::generate();
    for _ in 0..3 {
        queue.enqueue(messages(burst, 1000)).await;
    }
    let others = [FunctionId::generate(), FunctionId::generate(), FunctionId::generate()];
    for other in others {
        bench.advance(Duration::from_millis(1));
        queue.enqueue(messages(other, 2)).await;
    }
    let mut given = Vec::new();
    for _ in 0..12 {
        given.extend(queue.take(1).await);
    }
    for other in others {
        assert_eq!(count(&given, other), 2, "{:?}", ids(&given));
    }
}

pub(super) async fn a_batch_is_shared_between_functions(bench: Bench) {
    let queue = bench.open().await;
    let (many, few, more) = (FunctionId::generate(), FunctionId::generate(), FunctionId::generate());
    queue.enqueue(messages(many, 500)).await;
    queue.enqueue(messages(few, 2)).await;
    queue.enqueue(messages(more, 500)).await;
    let given = queue.take(60).await;
    assert_eq!((given.len(), count(&given, few)), (60, 2));
    assert!(count(&given, many) >= 20 && count(&given, more) >= 20, "{}", count(&given, many));
}

pub(super) async fn preferred_functions_go_first_but_not_for_ever(bench: Bench) {
    let queue = bench.open().await;
    let (warm, cold) = (FunctionId::generate(), FunctionId::generate());
    queue.enqueue(messages(cold, 5)).await;
    queue.enqueue(messages(warm, 50)).await;
    let reserve = Reserve {
        preferred: vec![Preferred { function: warm, messages_max: 100 }],
        preferred_for: Duration::from_secs(10),
        ..Reserve::new("worker", 10, LEASE)
    };
    let given = queue.reserve(reserve.clone()).await;
    assert_eq!((given.len(), count(&given, warm)), (10, 10));
    bench.advance(Duration::from_secs(11));
    let given = queue.reserve(reserve.clone()).await;
    assert_eq!((given.len(), count(&given, cold)), (10, 5));
    // Where nothing of theirs waits the others come at once.
    let last = Reserve { messages_max: 100, ..reserve };
    queue.enqueue(messages(cold, 1)).await;
    let given = queue.reserve(last).await;
    assert_eq!((count(&given, warm), count(&given, cold)), (35, 1));
}

pub(super) async fn a_worker_gets_no_more_of_a_function_than_it_wants(bench: Bench) {
    let queue = bench.open().await;
    let (burst, other) = (FunctionId::generate(), FunctionId::generate());
    queue.enqueue(messages(burst, 50)).await;
    queue.enqueue(messages(other, 50)).await;
    let reserve = Reserve {
        preferred: vec![Preferred { function: burst, messages_max: 9 }],
        each_max: 3,
        ..Reserve::new("worker", 100, LEASE)
    };
    for _ in 0..2 {
        let given = queue.reserve(reserve.clone()).await;
        assert_eq!((count(&given, burst), count(&given, other)), (9, 3));
    }
}

pub(super) async fn a_worker_gets_only_the_functions_it_wants(bench: Bench) {
    let queue = bench.open().await;
    let (one, other, third) = (FunctionId::generate(), FunctionId::generate(), FunctionId::generate());
    for function in [one, other, third] {
        queue.enqueue(messages(function, 2)).await;
    }
    let reserve = |functions| Reserve { functions, ..Reserve::new("worker", 100, LEASE) };
    let given = queue.reserve(reserve(Functions::Only(vec![one, FunctionId::generate()]))).await;
    assert_eq!((given.len(), count(&given, one)), (2, 2));
    let given = queue.reserve(reserve(Functions::Except(vec![third]))).await;
    assert_eq!((given.len(), count(&given, other)), (2, 2));
    assert!(queue.reserve(reserve(Functions::Only(Vec::new()))).await.is_empty());
    assert_eq!(count(&queue.take(100).await, third), 2);
}

pub(super) async fn functions_that_wait_for_their_time_hide_nobody(bench: Bench) {
    let queue = bench.open().await;
    let hidden = FunctionId::generate();
    let delayed =
        (0..200).map(|_| NewMessage { delay: Duration::from_hours(1), ..message(FunctionId::generate()) });
    queue.enqueue(delayed.collect()).await;
    let due = queue.put(&message(hidden)).await;
    assert_eq!(queue.take_one().await.receipt.id, due);
}

pub(super) async fn very_many_functions_hide_nobody(bench: Bench) {
    // More than one reserve looks at.
    const FUNCTIONS: usize = 10_200;
    let queue = bench.open().await;
    for _ in 0..FUNCTIONS / 600 {
        queue.enqueue((0..600).map(|_| message(FunctionId::generate())).collect()).await;
    }
    bench.advance(Duration::from_millis(1));
    let mut given = Vec::new();
    for priority in [1, 2] {
        let priority = Priority::try_from(priority).expect("a priority");
        let urgent = NewMessage { priority, ..message(FunctionId::generate()) };
        given.extend(queue.take(1).await);
        queue.put(&urgent).await;
        assert_eq!(ids(&queue.take(1).await), [urgent.id]);
        given.extend(queue.take(3).await);
    }
    let functions: HashSet<FunctionId> = given.iter().map(|given| given.function_id).collect();
    assert_eq!((given.len(), functions.len()), (8, 8), "there is always another one");
}
