//! What every backend must do: facts by theme, each on an empty queue of its own.
//!
//! A backend runs them all with [`run_all`], or has a test for each with `for_each_fact!`. Set `KILN_TEST_FACT` to a
//! part of a name to run those alone.

mod admin;
mod concurrency;
mod enqueue;
mod fairness;
mod leases;
mod order;
mod retries;
mod wake;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use kiln_queue::{Clock, ManualClock, Options};
use kiln_shared::ids::{AppId, CallId, FunctionId};
use kiln_shared::queue::{
    Enqueued, MessageView, NewMessage, Outcome, Queue, Receipt, Reserve, Reserved, Retry, Settled, Settlement,
};
use kiln_testkit::until;
use tokio::task::LocalSet;

/// Calls `$then!` with every theme and its facts.
macro_rules! for_each_fact {
    ($then:ident) => {
        $then! {
            enqueue {
                a_message_comes_out_as_it_went_in
                the_largest_payload_comes_out_as_it_went_in
                enqueuing_an_id_again_stores_nothing
                an_idempotency_key_gives_the_first_call_back
                an_idempotency_key_is_kept_until_its_message_is_purged
                a_thousand_messages_are_one_batch
                what_is_over_a_limit_is_refused_and_nothing_is_stored
                a_full_queue_refuses_until_something_is_done
                a_full_queue_knows_what_it_has
                what_was_enqueued_is_there_when_the_queue_is_opened_again
            }
            order {
                messages_of_a_function_come_in_the_order_of_enqueuing
                higher_priorities_come_first
                a_delayed_message_comes_when_its_time_has_come
                a_message_that_was_due_earlier_goes_first
                a_reserve_gives_no_more_than_was_asked_for
                a_reserve_gives_no_more_bytes_than_fit
            }
            fairness {
                a_burst_of_one_function_delays_the_others_by_few_messages
                a_batch_is_shared_between_functions
                preferred_functions_go_first_but_not_for_ever
                a_worker_gets_only_the_functions_it_wants
                a_worker_gets_no_more_of_a_function_than_it_wants
                functions_that_wait_for_their_time_hide_nobody
                very_many_functions_hide_nobody
            }
            leases {
                a_message_is_given_to_one_worker
                an_abandoned_message_comes_back_with_its_attempt_counted
                a_message_of_a_process_that_died_comes_back
                a_renewed_lease_holds
                an_old_receipt_does_nothing
                a_receipt_is_of_one_message
                done_may_be_said_again
                an_unstarted_message_goes_back_in_front_uncounted
            }
            retries {
                a_failed_message_is_tried_again_after_its_pause
                a_worker_may_choose_the_pause
                a_message_whose_attempts_are_used_up_is_dead
                a_message_that_shall_not_be_tried_again_is_dead
                a_message_that_is_abandoned_too_often_is_dead
                a_message_that_waits_beyond_its_deadline_is_dead
                no_attempt_begins_after_the_deadline
                an_error_is_cut_to_its_limit
                a_batch_is_settled_item_by_item
            }
            admin {
                each_state_can_be_inspected
                a_message_that_waits_can_be_cancelled
                a_message_that_runs_or_ended_cannot_be_cancelled
                a_dead_message_can_be_put_back
                dead_messages_of_a_function_can_be_put_back
                lists_are_by_function_and_state_and_have_pages
                depth_tells_what_each_function_has
                ended_messages_are_forgotten_when_purged
            }
            concurrency {
                many_workers_get_each_message_once
                many_callers_of_one_key_get_one_message
                nothing_is_lost_while_all_happens_at_once
            }
            wake {
                an_enqueued_message_wakes_who_waits
                a_message_enqueued_by_another_process_wakes_who_waits
                a_delayed_message_wakes_who_waits_when_its_time_has_come
                a_failed_message_wakes_who_waits_when_its_pause_is_over
                the_end_of_a_lease_wakes_who_waits
                a_closed_queue_says_so
            }
        }
    };
}
pub(crate) use for_each_fact;

/// A fact under way.
type Fact = fn(Bench) -> Pin<Box<dyn Future<Output = ()>>>;

macro_rules! facts {
    ($($theme:ident { $($fact:ident)* })*) => {
        /// All facts with their names.
        const FACTS: &[(&str, Fact)] =
            &[$($((concat!(stringify!($theme), "::", stringify!($fact)), |bench| Box::pin($theme::$fact(bench))),)*)*];
    };
}
for_each_fact!(facts);

/// Runs the fact of that name.
pub(crate) async fn run_one(name: &str, bench: Bench) {
    let fact = FACTS.iter().find(|(known, _)| *known == name).expect("a fact of the list").1;
    fact(bench).await;
}

/// Runs all facts, some at a time, each on the empty queue that `url` gives. Panics with the names of those that
/// do not hold.
pub(crate) async fn run_all<F: Future<Output = String>>(at_once: usize, url: impl Fn() -> F) {
    let wanted = std::env::var("KILN_TEST_FACT").unwrap_or_default();
    let tasks = LocalSet::new();
    let run = FACTS.iter().filter(|(name, _)| name.contains(&wanted)).map(|(name, fact)| {
        let (url, tasks) = (url(), &tasks);
        async move {
            let done = tasks.spawn_local(fact(Bench::new(url.await))).await;
            done.is_err().then_some(*name)
        }
    });
    let failed = stream::iter(run).buffer_unordered(at_once).filter_map(std::future::ready);
    let failed: Vec<&str> = tasks.run_until(failed.collect()).await;
    assert!(failed.is_empty(), "facts that do not hold: {failed:?}");
}

/// An empty queue, and the time.
#[derive(Clone)]
pub(crate) struct Bench {
    url: String,
    clock: ManualClock,
}

/// The lease of messages that tests reserve.
const LEASE: Duration = Duration::from_secs(30);

impl Bench {
    pub(crate) fn new(url: String) -> Self {
        Self { url, clock: ManualClock::default() }
    }

    /// Opens the queue; again, as another process would.
    async fn open(&self) -> Handle {
        self.open_with(Options::default()).await
    }

    async fn open_with(&self, options: Options) -> Handle {
        let options = Options { clock: Clock::Manual(self.clock.clone()), ..options };
        Handle { queue: kiln_queue::open(&self.url, options).await.expect("the queue opens") }
    }

    fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }
}

/// An open queue, with the words that facts are written in.
#[derive(Clone)]
struct Handle {
    queue: Arc<dyn Queue>,
}

impl Handle {
    async fn enqueue(&self, messages: Vec<NewMessage>) -> Vec<Enqueued> {
        self.queue.enqueue(messages).await.expect("they are stored")
    }

    /// Enqueues one new message.
    async fn put(&self, message: &NewMessage) -> CallId {
        assert_eq!(self.enqueue(vec![message.clone()]).await, [Enqueued::New(message.id)]);
        message.id
    }

    async fn reserve(&self, reserve: Reserve) -> Vec<Reserved> {
        self.queue.reserve(reserve).await.expect("the queue answers")
    }

    /// Reserves up to so many.
    async fn take(&self, messages_max: usize) -> Vec<Reserved> {
        self.reserve(Reserve::new("worker", messages_max, LEASE)).await
    }

    /// Reserves what there is, up to so many. Waits until there is any: others may be about to end leases.
    async fn take_due(&self, messages_max: usize) -> Vec<Reserved> {
        until("a message is due", async || {
            Some(self.take(messages_max).await).filter(|taken| !taken.is_empty())
        })
        .await
    }

    /// Reserves the one message that there is.
    async fn take_one(&self) -> Reserved {
        let mut taken = self.take_due(10).await;
        assert_eq!(taken.len(), 1, "more than one message is due: {taken:?}");
        taken.remove(0)
    }

    async fn settle(&self, receipt: Receipt, outcome: Outcome) -> Settled {
        let settled =
            self.queue.settle(vec![Settlement { receipt, outcome }]).await.expect("the queue answers");
        assert_eq!(settled.len(), 1);
        settled[0]
    }

    async fn done(&self, receipt: Receipt) -> Settled {
        self.settle(receipt, Outcome::Done).await
    }

    async fn fail(&self, receipt: Receipt, error: &str, retry: Retry) -> Settled {
        self.settle(receipt, Outcome::Failed { error: error.to_owned(), retry }).await
    }

    /// A message that is there.
    async fn view(&self, id: CallId) -> MessageView {
        self.queue.inspect(id).await.expect("the queue answers").expect("the message is there")
    }
}

/// A message of a function with an empty payload.
fn message(function: FunctionId) -> NewMessage {
    NewMessage::new(CallId::generate(), function, app(), "")
}

/// So many of them.
fn messages(function: FunctionId, count: usize) -> Vec<NewMessage> {
    (0..count).map(|_| message(function)).collect()
}

fn app() -> AppId {
    "01M2APP0000000000000000000".parse().expect("an id")
}

fn ids(reserved: &[Reserved]) -> Vec<CallId> {
    reserved.iter().map(|reserved| reserved.receipt.id).collect()
}
