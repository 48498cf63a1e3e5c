//! Many at once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kiln_shared::ids::{CallId, FunctionId};
use kiln_shared::queue::{
    Enqueued, NewMessage, Outcome, Priority, Reserve, Retry, RetryPolicy, Settled, Settlement,
};
use tokio::task::JoinSet;

use super::{Bench, LEASE, message, messages};

pub(super) async fn many_workers_get_each_message_once(bench: Bench) {
    let queue = bench.open().await;
    let functions: Vec<FunctionId> = (0..5).map(|_| FunctionId::generate()).collect();
    for function in &functions {
        queue.enqueue(messages(*function, 100)).await;
    }
    let mut workers = JoinSet::new();
    for worker in 0..8 {
        // Two processes of four workers each.
        let queue = if worker % 2 == 0 { queue.clone() } else { bench.open().await };
        workers.spawn(async move {
            let mut got = Vec::new();
            loop {
                let taken = queue.reserve(Reserve::new(format!("worker-{worker}"), 7, LEASE)).await;
                if taken.is_empty() {
                    return got;
                }
                got.extend(taken.iter().map(|reserved| (reserved.receipt.id, reserved.attempt)));
            }
        });
    }
    let got: Vec<(CallId, u32)> = workers.join_all().await.concat();
    let once: HashSet<CallId> = got.iter().map(|(id, _)| *id).collect();
    // A worker may find nothing while others hold locks on the last; then these take them.
    assert_eq!((got.len(), once.len()), (500, 500));
    assert!(got.iter().all(|(_, attempt)| *attempt == 1));
}

pub(super) async fn many_callers_of_one_key_get_one_message(bench: Bench) {
    let function = FunctionId::generate();
    let mut callers = JoinSet::new();
    for _ in 0..3 {
        let queue = bench.open().await;
        for _ in 0..8 {
            let queue = queue.clone();
            let keyed = NewMessage { idempotency_key: Some("one".to_owned()), ..message(function) };
            // Others in the same batches, whose order could have them wait for each other.
            callers.spawn(async move { queue.enqueue(vec![keyed, message(function)]).await });
        }
    }
    let answers: Vec<Vec<Enqueued>> = callers.join_all().await;
    let ids: HashSet<CallId> = answers.iter().map(|answer| answer[0].id()).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    let new = answers.iter().filter(|answer| matches!(answer[0], Enqueued::New(_))).count();
    assert_eq!(new, 1);
    assert_eq!(bench.open().await.take(100).await.len(), 25);
}

pub(super) async fn nothing_is_lost_while_all_happens_at_once(bench: Bench) {
    const CALLERS: usize = 6;
    const CALLS: usize = 40;
    let functions: Arc<Vec<FunctionId>> = Arc::new((0..4).map(|_| FunctionId::generate()).collect());
    let done = Arc::new(AtomicUsize::new(0));
    let processes = [bench.open().await, bench.open().await, bench.open().await];
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let (queue, functions) = (processes[caller % 2].clone(), Arc::clone(&functions));
        callers.spawn(async move {
            let mut ids = Vec::new();
            for call in 0..CALLS {
                let function = functions[(caller + call) % functions.len()];
                let priority = Priority::ALL[call % 3];
                let retry = RetryPolicy { attempts_max: 50, ..RetryPolicy::default() };
                ids.push(queue.put(&NewMessage { priority, retry, ..message(function) }).await);
            }
            ids
        });
    }
    let mut workers = JoinSet::new();
    for worker in 0..4_usize {
        let (queue, done) = (processes[1 + worker % 2].clone(), Arc::clone(&done));
        workers.spawn(async move {
            let mut finished: HashMap<CallId, usize> = HashMap::new();
            let mut step = worker;
            while done.load(Ordering::Relaxed) < CALLERS * CALLS {
                let taken = queue.reserve(Reserve::new(format!("worker-{worker}"), 5, LEASE)).await;
                let settlements = taken.iter().map(|reserved| {
                    step += 1;
                    let outcome = match step % 5 {
                        0 => Outcome::Unstarted,
                        1 => Outcome::Failed {
                            error: "again".to_owned(),
                            retry: Retry::After(std::time::Duration::ZERO),
                        },
                        _ => Outcome::Done,
                    };
                    Settlement { receipt: reserved.receipt, outcome }
                });
                let settlements: Vec<Settlement> = settlements.collect();
                let settled = queue.queue.settle(settlements.clone()).await.expect("the queue answers");
                for (settlement, settled) in settlements.iter().zip(settled) {
                    assert_ne!(settled, Settled::Lost);
                    if settled == Settled::Done {
                        *finished.entry(settlement.receipt.id).or_default() += 1;
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                }
                tokio::task::yield_now().await;
            }
            finished
        });
    }
    let mut sent: Vec<CallId> = callers.join_all().await.concat();
    let mut finished: Vec<(CallId, usize)> = workers.join_all().await.into_iter().flatten().collect();
    sent.sort_unstable();
    finished.sort_unstable();
    assert_eq!(finished, sent.into_iter().map(|id| (id, 1)).collect::<Vec<_>>());
    assert!(bench.open().await.take(1).await.is_empty());
}
