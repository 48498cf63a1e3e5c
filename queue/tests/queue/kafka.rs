//! The queue in a topic of a broker that speaks Kafka's protocol.

use std::sync::Arc;
use std::time::Duration;

use kiln_queue::{Options, open};
use kiln_shared::ids::{AppId, CallId, FunctionId};
use kiln_shared::queue::{
    Depth, Enqueued, Held, NewMessage, Outcome, Queue, QueueError, Reserve, Reserved, Retry, Settled,
    Settlement, State,
};
use kiln_testkit::kafka::Server;
use kiln_testkit::until;
use rskafka::client::ClientBuilder;
use rskafka::client::partition::{Compression, PartitionClient, UnknownTopicHandling};

use crate::conformance::for_each_fact;
use crate::outage::{Killable, nothing_acknowledged_is_lost};

macro_rules! tests {
    ($($theme:ident { $($fact:ident)* })*) => {
        $(mod $theme {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $fact() {
                let server = super::Server::start().await;
                let name = concat!(stringify!($theme), "::", stringify!($fact));
                crate::conformance::run_one(name, crate::conformance::Bench::new(server.url("kiln"))).await;
            })*
        })*
    };
}
for_each_fact!(tests);

impl Killable for Server {
    async fn begin(&mut self) {
        Self::begin(self).await;
    }

    fn kill(&mut self) {
        Self::kill(self);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_killed_under_load_loses_nothing_acknowledged() {
    let mut server = Server::start_durable().await;
    let url = server.url("kiln");
    nothing_acknowledged_is_lost(&mut server, &url).await;
}

const LEASE: Duration = Duration::from_mins(5);

fn message() -> NewMessage {
    NewMessage::new(CallId::generate(), FunctionId::generate(), AppId::generate(), "hello")
}

async fn refused(url: &str) -> String {
    let said = open(url, Options::default()).await.expect_err(url).to_string();
    assert!(!said.contains('\n') && !said.contains("s3cret"), "{said}");
    said
}

async fn done(queue: &Arc<dyn Queue>, taken: &[Reserved]) {
    let settlements = taken.iter().map(|taken| Settlement { receipt: taken.receipt, outcome: Outcome::Done });
    let settled = queue.settle(settlements.collect()).await.expect("the broker answers");
    assert!(settled.iter().all(|settled| *settled == Settled::Done), "{settled:?}");
}

/// The topic itself.
async fn topic(server: &Server, topic: &str) -> PartitionClient {
    let client = ClientBuilder::new(vec![format!("127.0.0.1:{}", server.port())]).build().await;
    let client = client.expect("the broker answers");
    client.partition_client(topic, 0, UnknownTopicHandling::Error).await.expect("the topic is there")
}

async fn make_topic(server: &Server, topic: &str, partitions: i32) {
    let client = ClientBuilder::new(vec![format!("127.0.0.1:{}", server.port())]).build().await;
    let controller = client.expect("the broker answers").controller_client().expect("it has one");
    controller.create_topic(topic, partitions, 1, 3_000).await.expect("it is made");
}

/// The images that are complete in a topic: records of kind 3.
async fn images(topic: &PartitionClient) -> usize {
    let (records, _) = topic.fetch_records(0, 1..i32::MAX, 100).await.expect("the broker answers");
    let kinds = records.iter().filter_map(|read| read.record.value.as_ref()?.get(1));
    kinds.filter(|kind| **kind == 3).count()
}

#[tokio::test]
async fn a_broker_that_was_killed_has_what_waited_and_what_ran() {
    let mut server = Server::start_durable().await;
    let queue = open(&server.url("kiln"), Options::default()).await.expect("it opens");
    let mut acknowledged = Vec::new();
    for life in 0..2 {
        for _ in 0..20 {
            let message = message();
            queue.enqueue(vec![message.clone()]).await.expect("the broker answers");
            acknowledged.push(message.id);
        }
        let taken = queue.reserve(Reserve::new("worker", 10, LEASE)).await.expect("the broker answers");
        assert_eq!(taken.len(), 10, "in life {life}");
        done(&queue, &taken[..1]).await;
        server.kill();
        let refused = queue.enqueue(vec![message()]).await;
        assert!(matches!(refused, Err(QueueError::Unavailable(_))), "{refused:?}");
        assert!(matches!(queue.depth().await, Err(QueueError::Unavailable(_))));
        server.begin().await;
        until("the broker is found again", async || queue.depth().await.ok()).await;
        let renewed = queue.renew(taken.iter().map(|taken| taken.receipt).collect(), LEASE).await;
        let held = renewed.expect("the broker answers").into_iter().filter(|held| *held == Held::Held);
        assert_eq!(held.count(), 9, "what ran runs on");
    }
    // Also for a process that knows of nothing but the topic.
    for queue in [&queue, &open(&server.url("kiln"), Options::default()).await.expect("it opens")] {
        for id in &acknowledged {
            assert!(queue.inspect(*id).await.expect("the broker answers").is_some(), "{id} is lost");
        }
        let depth = queue.depth().await.expect("the broker answers");
        let sum = |count: fn(&Depth) -> u64| depth.iter().map(count).sum::<u64>();
        assert_eq!((sum(|depth| depth.queued), sum(|depth| depth.running)), (20, 18));
    }
}

#[tokio::test]
async fn who_waits_is_woken_after_the_broker_was_away() {
    let mut server = Server::start_durable().await;
    let here = open(&server.url("kiln"), Options::default()).await.expect("it opens");
    let there = open(&server.url("kiln"), Options::default()).await.expect("it opens");
    server.kill();
    server.begin().await;
    until("the broker is found again", async || there.depth().await.ok()).await;
    let mut wakeups = here.subscribe();
    let sent = message();
    there.enqueue(vec![sent.clone()]).await.expect("the broker answers");
    let woken = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            let taken = here.reserve(Reserve::new("worker", 1, LEASE)).await.expect("it answers");
            if let Some(taken) = taken.first() {
                return taken.receipt.id;
            }
            wakeups.next().await.expect("the queue is open");
        }
    });
    assert_eq!(woken.await, Ok(sent.id));
}

#[tokio::test]
async fn a_broker_that_hangs_is_given_up_and_found_again() {
    let server = Server::start().await;
    let queue = open(&server.url("kiln"), Options::default()).await.expect("it opens");
    server.freeze().await;
    let sent = message();
    let refused = queue.enqueue(vec![sent.clone()]).await;
    server.thaw();
    assert!(matches!(refused, Err(QueueError::Unavailable(_))), "{refused:?}");
    // It may have been stored; repeating it does no harm.
    let again =
        until("the broker is found again", async || queue.enqueue(vec![sent.clone()]).await.ok()).await;
    assert_eq!(again[0].id(), sent.id);
    assert_eq!(queue.reserve(Reserve::new("worker", 10, LEASE)).await.expect("it answers").len(), 1);
}

#[tokio::test]
async fn a_topic_that_lost_its_records_is_read_anew() {
    let mut server = Server::start().await;
    let queue = open(&server.url("kiln"), Options::default()).await.expect("it opens");
    let lost = message();
    for new in [lost.clone(), message(), message()] {
        queue.enqueue(vec![new]).await.expect("the broker answers");
    }
    // Its memory goes with it.
    server.kill();
    server.begin().await;
    let sent = message();
    let refused = queue.enqueue(vec![sent.clone()]).await;
    assert!(matches!(refused, Err(QueueError::Unavailable(_))), "{refused:?}");
    until("the topic is read anew", async || queue.enqueue(vec![sent.clone()]).await.ok()).await;
    assert_eq!(queue.inspect(lost.id).await, Ok(None));
    let taken = queue.reserve(Reserve::new("worker", 10, LEASE)).await.expect("it answers");
    assert_eq!(taken.iter().map(|taken| taken.receipt.id).collect::<Vec<_>>(), [sent.id]);
}

#[tokio::test]
async fn queues_of_one_broker_are_apart_by_prefix() {
    let server = Server::start().await;
    let one = open(&server.url("one"), Options::default()).await.expect("it opens");
    let other = open(&server.url("other"), Options::default()).await.expect("it opens");
    let sent = message();
    one.enqueue(vec![sent.clone()]).await.expect("the broker answers");
    assert!(one.inspect(sent.id).await.expect("the broker answers").is_some());
    assert_eq!(other.inspect(sent.id).await, Ok(None));
}

#[tokio::test]
async fn images_carry_on_what_waits_and_what_ended() {
    let server = Server::start().await;
    let url = format!("{}?image_mib=1", server.url("kiln"));
    let queue = open(&url, Options::default()).await.expect("it opens");
    let function = FunctionId::generate();
    let large = || NewMessage {
        function_id: function,
        idempotency_key: Some(CallId::generate().as_str().to_owned()),
        payload: vec![9; 100_000].into(),
        ..message()
    };
    let kept = large();
    queue.enqueue(vec![kept.clone()]).await.expect("the broker answers");
    let running = queue.reserve(Reserve::new("worker", 1, LEASE)).await.expect("the broker answers");
    let topic = topic(&server, "kiln.queue").await;
    let mut ended = Vec::new();
    for number in 1..3 {
        until("an image is complete", async || {
            let sent = large();
            queue.enqueue(vec![sent.clone()]).await.expect("the broker answers");
            let taken = queue.reserve(Reserve::new("worker", 1, LEASE)).await.expect("it answers");
            done(&queue, &taken).await;
            ended.push(sent);
            (images(&topic).await >= number).then_some(())
        })
        .await;
    }
    let waiting = large();
    queue.enqueue(vec![waiting.clone()]).await.expect("the broker answers");
    let again = open(&url, Options::default()).await.expect("it opens");
    for queue in [&queue, &again] {
        let state = async |id| queue.inspect(id).await.expect("it answers").map(|view| view.state);
        assert_eq!(state(kept.id).await, Some(State::Running));
        assert_eq!(state(waiting.id).await, Some(State::Queued));
        for sent in &ended {
            assert_eq!(state(sent.id).await, Some(State::Done));
            let same_key = NewMessage { id: CallId::generate(), ..sent.clone() };
            assert_eq!(queue.enqueue(vec![same_key]).await, Ok(vec![Enqueued::Known(sent.id)]));
        }
    }
    let failed = Outcome::Failed { error: "no".to_owned(), retry: Retry::After(Duration::ZERO) };
    let failed = Settlement { receipt: running[0].receipt, outcome: failed };
    assert_eq!(again.settle(vec![failed]).await, Ok(vec![Settled::Again { after: Duration::ZERO }]));
    let taken = again.reserve(Reserve::new("worker", 10, LEASE)).await.expect("the broker answers");
    let mut given: Vec<CallId> = taken.iter().map(|taken| taken.receipt.id).collect();
    given.sort_unstable();
    let mut expected = [kept.id, waiting.id];
    expected.sort_unstable();
    assert_eq!(given, expected);
    assert!(taken.iter().all(|taken| taken.payload.len() == 100_000));
}

#[tokio::test]
async fn memory_that_is_used_up_refuses_calls_but_lets_them_end() {
    let server = Server::start().await;
    let url = format!("{}?memory_mib=1", server.url("kiln"));
    let queue = open(&url, Options::default()).await.expect("it opens");
    let large = || NewMessage { payload: vec![9; 700_000].into(), ..message() };
    queue.enqueue(vec![large()]).await.expect("there is room");
    let refused = queue.enqueue(vec![large()]).await;
    assert!(
        matches!(&refused, Err(QueueError::Unavailable(why)) if why.contains("memory_mib")),
        "{refused:?}"
    );
    let telling = NewMessage { tells_an_end: true, ..large() };
    queue.enqueue(vec![telling]).await.expect("what tells an end makes room");
    let taken = queue.reserve(Reserve::new("worker", 10, LEASE)).await.expect("it answers");
    assert_eq!(taken.len(), 2);
    done(&queue, &taken).await;
    queue.enqueue(vec![large()]).await.expect("there is room again");
}

#[tokio::test]
async fn a_broker_that_is_away_is_told_by_its_address() {
    let mut server = Server::start().await;
    server.kill();
    let said = refused(&format!("kafka://me:s3cret@127.0.0.1:{}/kiln", server.port())).await;
    let expected = format!("queue kafka://127.0.0.1:{}/kiln.queue cannot be reached: ", server.port());
    assert!(said.starts_with(&expected) && said.contains("Connection refused"), "{said}");
    let said = refused("kafka://nowhere.invalid:9092/kiln").await;
    assert!(said.starts_with("queue kafka://nowhere.invalid:9092/kiln.queue cannot be reached: "), "{said}");
}

#[tokio::test]
async fn wrong_credentials_are_told_without_them() {
    let server = Server::start_closed().await;
    let address = format!("127.0.0.1:{}", server.port());
    let said = refused(&format!("kafka://me:s3cret@{address}/kiln?sasl=scram-sha-512")).await;
    assert!(said.starts_with(&format!("queue kafka://{address}/kiln.queue refuses: Sasl ")), "{said}");
    // This broker breaks off instead of telling, and so do those that want TLS. One that is dying does, too: so it
    // counts as away.
    for login in ["me:s3cret@", ""] {
        let said = refused(&format!("kafka://{login}{address}/kiln?")).await;
        let expected =
            format!("queue kafka://{address}/kiln.queue cannot be reached: it closes the connection; ");
        assert!(said.starts_with(&expected) && said.contains("another user and password"), "{said}");
    }
}

#[tokio::test]
async fn a_topic_that_cannot_hold_a_queue_is_told() {
    let server = Server::start().await;
    make_topic(&server, "wide.queue", 2).await;
    let said = refused(&server.url("wide")).await;
    assert!(said.contains("topic wide.queue has 2 partitions, and a queue needs exactly 1"), "{said}");
    make_topic(&server, "other.queue", 1).await;
    let record = rskafka::record::Record {
        key: None,
        value: Some(b"something else's".to_vec()),
        headers: std::collections::BTreeMap::new(),
        timestamp: chrono::DateTime::default(),
    };
    let written = topic(&server, "other.queue").await.produce(vec![record], Compression::NoCompression).await;
    written.expect("the broker answers");
    let said = refused(&server.url("other")).await;
    assert!(said.contains("cannot be brought to this version's schema: "), "{said}");
}
