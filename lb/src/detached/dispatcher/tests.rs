//! What is given out, and what is not.

use kiln_shared::ids::{AppId, CallId};
use kiln_shared::model::{AppInput, FunctionInput};
use kiln_shared::queue::{List, NewMessage};
use serde_json::json;

use super::*;
use crate::detached::testing::{demo, queue_in};
use crate::fleet::{Fleet, FleetConfig, Limits};

#[tokio::test]
async fn a_failure_is_told_only_of_calls_that_are_dead() {
    let folder = tempfile::tempdir().expect("a folder");
    let queue = queue_in(&folder).await;
    let (table, function) = demo(&json!({ "kiln.dev/on-failure": "http://localhost:9/failed" }));
    let dispatcher = Dispatcher::new(Arc::clone(&queue), Known::of(table.reader()));
    let new = NewMessage::new(CallId::generate(), function, AppId::generate(), "x");
    queue.enqueue(vec![new]).await.expect("stored");
    let reserve = Reserve::new("n", 1, Duration::from_mins(1));
    let message = queue.reserve(reserve).await.expect("answers").remove(0);
    let failed = |receipt| Finished {
        receipt,
        function_id: function,
        attempt: 3,
        outcome: Outcome::Failed { error: "no".to_owned(), retry: Retry::Never },
        answer: None,
    };
    let told = async || {
        let list = List { function_id: Some(*DELIVERIES), messages_max: 9, ..List::default() };
        queue.list(list).await.expect("a page").messages.len()
    };
    // Its lease ended, and another node has the call.
    let lost = Receipt { lease: message.receipt.lease + 1, ..message.receipt };
    assert_eq!(dispatcher.finish(vec![failed(lost)]).await, Ok(vec![Settled::Lost]));
    assert_eq!(told().await, 0);
    assert_eq!(dispatcher.finish(vec![failed(message.receipt)]).await, Ok(vec![Settled::Dead]));
    assert_eq!(told().await, 1);
}

#[tokio::test]
async fn one_who_leaves_functions_out_and_finds_nothing_does_not_keep_others_from_asking() {
    let folder = tempfile::tempdir().expect("a folder");
    let queue = queue_in(&folder).await;
    let (table, function) = demo(&json!({}));
    let dispatcher = Dispatcher::new(Arc::clone(&queue), Known::of(table.reader()));
    let new = NewMessage::new(CallId::generate(), function, AppId::generate(), "x");
    queue.enqueue(vec![new]).await.expect("stored");
    let take = async |functions| {
        let reserve = Reserve { functions, ..Reserve::new("n", 1, Duration::from_mins(1)) };
        // Nobody passes on the queue's wake-ups: what is not found at once is not found.
        dispatcher.take(reserve, Duration::ZERO, CancellationToken::new()).await.expect("answers").len()
    };
    assert_eq!(take(Functions::Except(vec![function])).await, 0);
    assert_eq!(take(Functions::All).await, 1);
}

#[tokio::test]
async fn one_who_wants_little_of_each_function_does_not_keep_others_from_asking() {
    let folder = tempfile::tempdir().expect("a folder");
    let queue = queue_in(&folder).await;
    let (table, function) = demo(&json!({}));
    let dispatcher = Dispatcher::new(Arc::clone(&queue), Known::of(table.reader()));
    let new = || NewMessage::new(CallId::generate(), function, AppId::generate(), "x");
    queue.enqueue((0..4).map(|_| new()).collect()).await.expect("stored");
    for left in [3, 2, 1] {
        let reserve = Reserve { each_max: 1, ..Reserve::new("n", 9, Duration::from_mins(1)) };
        let taken = dispatcher.take(reserve, Duration::ZERO, CancellationToken::new()).await;
        assert_eq!(taken.expect("answers").len(), 1, "with {left} behind it");
    }
}

#[tokio::test]
async fn of_a_function_with_a_limit_no_more_is_given_out_than_may_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let queue = queue_in(&folder).await;
    let (table, function) = demo(&json!({ "kiln.dev/concurrency-max": 2 }));
    let limits: Arc<Limits> = Arc::default();
    let fleet = Fleet::new(FleetConfig::default(), Instant::now().into_std()).reader();
    let concurrency = Some(Concurrency::new(Arc::clone(&limits), fleet));
    let known = Known { concurrency, ..Known::of(table.reader()) };
    let dispatcher = Dispatcher::new(Arc::clone(&queue), known);
    let new = || NewMessage::new(CallId::generate(), function, AppId::generate(), "x");
    queue.enqueue((0..5).map(|_| new()).collect()).await.expect("stored");
    let take = async |wait| {
        let reserve = Reserve::new("n", 10, Duration::from_mins(1));
        dispatcher.take(reserve, wait, CancellationToken::new()).await.expect("answers")
    };
    let end = async |work: &Work| {
        let Reserved { receipt, function_id, attempt, .. } = work.message;
        let finished = Finished { receipt, function_id, attempt, outcome: Outcome::Done, answer: None };
        assert_eq!(dispatcher.finish(vec![finished]).await, Ok(vec![Settled::Done]));
    };
    let call = limits.of(&function, 2).enter(0).expect("a place");
    let first = take(Duration::ZERO).await;
    assert_eq!(first.len(), 1, "a caller has the other place");
    assert!(take(Duration::ZERO).await.is_empty());
    drop(call);
    let second = take(Duration::ZERO).await;
    assert_eq!(second.len(), 1);
    // One who waits hears of the place that comes free, long before the time is over.
    let (third, ()) = tokio::join!(take(TAKE_WAIT_MAX), end(&first[0]));
    assert_eq!(third.len(), 1);
    end(&second[0]).await;
    end(&third[0]).await;
    assert_eq!(take(Duration::ZERO).await.len(), 2, "the others");
}

#[tokio::test]
async fn a_function_is_gone_only_if_the_catalog_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("sqlite://{}", folder.path().join("kiln.db").display());
    let catalog = Catalog::open(&url).await.expect("opens");
    let app = AppInput { name: "a".to_owned(), ..AppInput::default() };
    let app_id = catalog.create_app(&app).await.expect("created").id.to_string();
    let image = "hello:1".to_owned();
    let input = FunctionInput { app_id, name: "f".to_owned(), image, ..FunctionInput::default() };
    let there = catalog.create_function(&input).await.expect("created").id;
    let (table, _) = demo(&json!({}));
    let dispatcher = Dispatcher::new(
        queue_in(&folder).await,
        Known { catalog: Some(catalog.clone()), ..Known::of(table.reader()) },
    );
    assert!(!dispatcher.shared.is_gone(there).await, "it has not come here yet");
    assert!(dispatcher.shared.is_gone(FunctionId::generate()).await);
    catalog.close().await;
    assert!(!dispatcher.shared.is_gone(FunctionId::generate()).await, "nobody can tell");
}

#[test]
fn functions_are_left_out_of_what_is_asked_for() {
    let [one, other] = [FunctionId::generate(), FunctionId::generate()];
    assert_eq!(leave_out(Functions::All, vec![one]), Functions::Except(vec![one]));
    let except = leave_out(Functions::Except(vec![other]), vec![one]);
    assert_eq!(except, Functions::Except(vec![other, one]));
    assert_eq!(leave_out(Functions::Only(vec![one, other]), vec![one]), Functions::Only(vec![other]));
}
