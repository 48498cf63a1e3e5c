//! The queue in a Redis server.

use std::time::Duration;

use kiln_queue::{OpenError, Options, open};
use kiln_shared::ids::{AppId, CallId, FunctionId};
use kiln_shared::queue::{Held, NewMessage, Outcome, Purge, QueueError, Reserve, Retry, Settled, Settlement};
use kiln_testkit::redis::Server;
use kiln_testkit::until;

use crate::conformance::for_each_fact;
use crate::outage::{Killable, nothing_acknowledged_is_lost};

macro_rules! tests {
    ($($theme:ident { $($fact:ident)* })*) => {
        $(mod $theme {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $fact() {
                let server = super::Server::start().await;
                let name = concat!(stringify!($theme), "::", stringify!($fact));
                crate::conformance::run_one(name, crate::conformance::Bench::new(server.url())).await;
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
async fn a_server_killed_under_load_loses_nothing_acknowledged() {
    let mut server = Server::start().await;
    let url = server.url();
    nothing_acknowledged_is_lost(&mut server, &url).await;
}

const LEASE: Duration = Duration::from_mins(5);

fn message() -> NewMessage {
    NewMessage::new(CallId::generate(), FunctionId::generate(), AppId::generate(), "hello")
}

async fn refused(url: &str) -> String {
    open(url, Options::default()).await.expect_err(url).to_string()
}

/// Asks the server itself.
async fn ask(server: &Server, words: &[&str]) -> redis::Value {
    let client = redis::Client::open(server.url()).expect("a URL");
    let mut connection = client.get_multiplexed_async_connection().await.expect("the server answers");
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]).query_async(&mut connection).await.expect("the server does it")
}

#[tokio::test]
async fn a_server_that_was_killed_has_what_waited_and_what_ran() {
    let mut server = Server::start().await;
    let queue = open(&server.url(), Options::default()).await.expect("it opens");
    let mut acknowledged = Vec::new();
    for life in 0..3 {
        for _ in 0..40 {
            let message = message();
            queue.enqueue(vec![message.clone()]).await.expect("the server answers");
            acknowledged.push(message.id);
        }
        // Some run and one is done when the server dies.
        let taken = queue.reserve(Reserve::new("worker", 10, LEASE)).await.expect("the server answers");
        assert_eq!(taken.len(), 10, "in life {life}");
        let done = Settlement { receipt: taken[0].receipt, outcome: Outcome::Done };
        assert_eq!(queue.settle(vec![done]).await, Ok(vec![Settled::Done]));
        server.kill();
        let refused = queue.enqueue(vec![message()]).await;
        assert!(matches!(refused, Err(QueueError::Unavailable(_))), "{refused:?}");
        server.begin().await;
        until("the server is found again", async || queue.depth().await.ok()).await;
        let renewed = queue.renew(taken.iter().map(|taken| taken.receipt).collect(), LEASE).await;
        let held = renewed.expect("the server answers").into_iter().filter(|held| *held == Held::Held);
        assert_eq!(held.count(), 9, "what ran runs on");
    }
    for id in acknowledged {
        assert!(queue.inspect(id).await.expect("the server answers").is_some(), "{id} is lost");
    }
    let depth = queue.depth().await.expect("the server answers");
    let (queued, running): (u64, u64) = depth
        .iter()
        .fold((0, 0), |(queued, running), depth| (queued + depth.queued, running + depth.running));
    assert_eq!((queued, running), (90, 27));
}

#[tokio::test]
async fn who_waits_is_woken_after_the_server_was_away() {
    let mut server = Server::start().await;
    let here = open(&server.url(), Options::default()).await.expect("it opens");
    let there = open(&server.url(), Options::default()).await.expect("it opens");
    server.kill();
    server.begin().await;
    until("the server is found again", async || here.depth().await.ok()).await;
    until("the server is found again", async || there.depth().await.ok()).await;
    let mut wakeups = here.subscribe();
    let sent = message();
    there.enqueue(vec![sent.clone()]).await.expect("the server answers");
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
async fn queues_of_one_server_are_apart_by_prefix_and_database() {
    let server = Server::start().await;
    let url = server.url();
    let urls = [url.clone(), format!("{url}?prefix=other"), format!("{url}1")];
    let mut queues = Vec::new();
    for url in &urls {
        queues.push(open(url, Options::default()).await.expect(url));
    }
    let sent = message();
    queues[0].enqueue(vec![sent.clone()]).await.expect("the server answers");
    for (queue, there) in queues.iter().zip([true, false, false]) {
        assert_eq!(queue.inspect(sent.id).await.expect("the server answers").is_some(), there);
    }
}

#[tokio::test]
async fn all_keys_of_a_queue_are_in_one_slot_of_a_cluster() {
    let server = Server::start().await;
    let queue = open(&format!("{}?prefix=mine", server.url()), Options::default()).await.expect("it opens");
    let sent = NewMessage {
        idempotency_key: Some("key {brace}".to_owned()),
        deadline: Some(Duration::from_mins(1)),
        ..message()
    };
    queue.enqueue(vec![sent, message(), message()]).await.expect("the server answers");
    let taken = queue.reserve(Reserve::new("worker", 1, LEASE)).await.expect("it answers");
    let done = Settlement { receipt: taken[0].receipt, outcome: Outcome::Done };
    queue.settle(vec![done]).await.expect("the server answers");
    let keys: Vec<String> =
        redis::from_redis_value(ask(&server, &["KEYS", "*"]).await).expect("names of keys");
    assert!(keys.len() > 10 && keys.iter().all(|key| key.starts_with("{mine}:")), "{keys:?}");
}

#[tokio::test]
async fn memory_that_is_used_up_refuses_calls_but_lets_them_end() {
    let server = Server::start().await;
    let queue = open(&server.url(), Options::default()).await.expect("it opens");
    queue.enqueue(vec![message()]).await.expect("the server answers");
    ask(&server, &["CONFIG", "SET", "maxmemory", "1mb"]).await;
    let refused = queue.enqueue(vec![message()]).await;
    assert!(matches!(&refused, Err(QueueError::Unavailable(why)) if why.contains("memory")), "{refused:?}");
    let taken = queue.reserve(Reserve::new("worker", 10, LEASE)).await.expect("it answers");
    assert_eq!(taken.len(), 1);
    let done = Settlement { receipt: taken[0].receipt, outcome: Outcome::Done };
    assert_eq!(queue.settle(vec![done]).await, Ok(vec![Settled::Done]));
    let opened_meanwhile = open(&server.url(), Options::default()).await.expect("it opens");
    assert_eq!(opened_meanwhile.depth().await, Ok(Vec::new()));
    ask(&server, &["CONFIG", "SET", "maxmemory", "0"]).await;
    queue.enqueue(vec![message()]).await.expect("there is room again");
}

#[tokio::test]
async fn wrong_credentials_are_told_without_them() {
    let server = Server::start_with(&["--requirepass", "right"]).await;
    let address = format!("127.0.0.1:{}", server.port);
    open(&format!("redis://:right@{address}/"), Options::default()).await.expect("it opens");
    for given in ["", ":wr0ng@", "me:wr0ng@"] {
        let said = refused(&format!("redis://{given}{address}/")).await;
        let expected = format!("queue redis://{address}/0 refuses: ");
        assert!(said.starts_with(&expected) && said.contains("check user, password"), "{said}");
        assert!(!said.contains("wr0ng") && !said.contains('\n'), "{said}");
    }
}

#[tokio::test]
async fn a_server_that_is_away_is_told_by_its_address() {
    let mut server = Server::start().await;
    server.kill();
    let said = refused(&format!("redis://:secret@127.0.0.1:{}/2", server.port)).await;
    assert!(
        said.starts_with(&format!("queue redis://127.0.0.1:{}/2 cannot be reached: ", server.port)),
        "{said}"
    );
    assert!(!said.contains("secret") && !said.contains('\n'), "{said}");
}

#[tokio::test]
async fn a_server_that_cannot_serve_yet_is_waited_for() {
    let of_one_that_is_away = ["--replicaof", "127.0.0.1 1", "--replica-serve-stale-data", "no"];
    let server = Server::start_with(&of_one_that_is_away).await;
    for (why, change) in [
        ("Link with MASTER is down", ["CONFIG", "SET", "replica-serve-stale-data", "yes"].as_slice()),
        ("read only replica", &["REPLICAOF", "NO", "ONE"]),
    ] {
        let told = open(&server.url(), Options::default()).await.expect_err(why);
        assert!(matches!(&told, OpenError::Unreachable { reason, .. } if reason.contains(why)), "{told}");
        ask(&server, change).await;
    }
    open(&server.url(), Options::default()).await.expect("it opens");
}

#[tokio::test]
async fn a_prefix_that_is_something_elses_is_told() {
    let server = Server::start().await;
    ask(&server, &["RPUSH", "{kiln}:schema", "a", "b"]).await;
    let said = refused(&server.url()).await;
    assert!(said.contains("the key {kiln}:schema is something else's; choose another prefix"), "{said}");
    ask(&server, &["SET", "{next}:schema", "2"]).await;
    let said = refused(&format!("{}?prefix=next", server.url())).await;
    assert!(said.contains("it is of schema \"2\", not 1"), "{said}");
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_and_found_again() {
    let server = Server::start().await;
    let queue = open(&server.url(), Options::default()).await.expect("it opens");
    server.freeze();
    let sent = message();
    let refused = queue.enqueue(vec![sent.clone()]).await;
    server.thaw();
    assert!(matches!(refused, Err(QueueError::Unavailable(_))), "{refused:?}");
    // It may have been stored; repeating it does no harm.
    let again =
        until("the server is found again", async || queue.enqueue(vec![sent.clone()]).await.ok()).await;
    assert_eq!(again[0].id(), sent.id);
    assert_eq!(queue.reserve(Reserve::new("worker", 10, LEASE)).await.expect("it answers").len(), 1);
}

#[tokio::test]
async fn a_user_needs_no_more_than_is_documented() {
    let server = Server::start().await;
    let words = "ACL SETUSER kiln on >secret ~{kiln}:* &{kiln}:due:* \
                 +@read +@write +@scripting +@pubsub +@connection +time";
    ask(&server, &words.split(' ').collect::<Vec<_>>()).await;
    let url = format!("redis://kiln:secret@127.0.0.1:{}/", server.port);
    let queue = open(&url, Options::default()).await.expect("it opens");
    queue.enqueue(vec![message()]).await.expect("it may");
    let taken = queue.reserve(Reserve::new("worker", 1, LEASE)).await.expect("it may");
    let failed = Outcome::Failed { error: "no".to_owned(), retry: Retry::ByPolicy };
    let failed = Settlement { receipt: taken[0].receipt, outcome: failed };
    assert!(matches!(queue.settle(vec![failed]).await.expect("it may")[..], [Settled::Again { .. }]));
    assert_eq!(queue.depth().await.expect("it may").len(), 1);
    assert_eq!(queue.purge(Purge::Finished(Duration::ZERO)).await, Ok(0));
    // A prefix that is not this user's.
    let said = refused(&format!("{url}?prefix=other")).await;
    assert!(said.contains(" refuses: ") && !said.contains("secret"), "{said}");
}

#[tokio::test]
async fn a_server_is_spoken_to_with_tls_if_its_certificate_is_known() {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let server = Server::start_with_tls(&certificate, &key).await;
    let folder = tempfile::tempdir().expect("a folder");
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, certificate).expect("written");
    let url = format!("rediss://127.0.0.1:{}/", server.port);
    let queue = open(&format!("{url}?ca={}", ca.display()), Options::default()).await.expect("it opens");
    queue.enqueue(vec![message()]).await.expect("the server answers");
    let said = refused(&url).await;
    assert!(said.starts_with(&format!("queue {url}0 cannot be reached: ")), "{said}");
    let said = refused(&format!("{url}?ca=/nowhere/ca.pem")).await;
    assert!(said.contains("its ca, /nowhere/ca.pem, cannot be read"), "{said}");
}
