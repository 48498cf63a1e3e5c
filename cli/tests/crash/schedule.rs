//! A schedule: who is killed and started when, drawn from a seed, and what must hold at its end.

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::backend::Backend;
use crate::clients::{Book, Clients};
use crate::fleet::{FUNCTION_MIB, Fleet};
use crate::images::image;
use crate::network::Network;
use crate::verdict::{self, Outage, What};
use crate::witness::Witness;

const AGENTS: usize = 2;
const FUNCTIONS: usize = 3;
/// How long things are broken.
const ROUGH: Duration = Duration::from_secs(20);
/// Longest pause between two events.
const PAUSE_MAX: Duration = Duration::from_millis(1200);
/// How often an event is that something starts again, while something is down.
const BEGIN_SHARE: f64 = 0.6;
/// In which the queue must run empty once everything works: what a killed node had comes back when its lease ends.
const EMPTY_WITHIN: Duration = Duration::from_mins(1);
/// How often the queue is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Calls on a page.
const PAGE: usize = 500;

/// What is played on.
struct World {
    fleet: Fleet,
    queue: Backend,
    /// Begun and not over.
    down: Vec<(What, Duration)>,
    outages: Vec<Outage>,
}

fn now() -> Duration {
    SystemTime::UNIX_EPOCH.elapsed().expect("after 1970")
}

/// What [`play`] prints in its line.
pub(crate) const HEAD: &str = "\
queue     seed  killed: agents balancer queue  calls: accepted 503 unanswered (ran)  runs again  seconds until empty, in all  why again";

/// Plays the schedule of a seed on a queue, and prints what happened.
pub(crate) async fn play(queue: Backend, seed: u64) {
    let (begun, name) = (Instant::now(), queue.name());
    println!("make test-crash QUEUE={name} SEED={seed}");
    let options: Vec<_> = queue.url().into_iter().map(|url| format!("--queue-url={url}")).collect();
    let fleet = Fleet::start_on(Network::loopback(), 1, AGENTS, &options).await;
    let witness = Witness::start(fleet.agents.iter().map(crate::part::Part::data).collect());
    let urls = functions(&fleet).await;
    let mut world = World { fleet, queue, down: Vec::new(), outages: Vec::new() };

    let calls_begin = now();
    let clients = Clients::start(seed, &urls);
    let (mut draws, rough) = (StdRng::seed_from_u64(seed), Instant::now());
    while rough.elapsed() < ROUGH {
        tokio::time::sleep(PAUSE_MAX.mul_f64(draws.random())).await;
        world.break_something(&mut draws).await;
    }
    let book = clients.stop().await;
    world.calm().await;
    let settling = Instant::now();
    world.until_empty().await;
    let settled = settling.elapsed();
    world.all_done(&book).await;

    let mut runs = witness.runs();
    // Before, each function was called until it could be.
    runs.retain(|_, runs| runs[0].begun >= calls_begin);
    let lost = verdict::lost(&book.accepted, &runs);
    assert!(lost.is_empty(), "{} of {} accepted calls never ran: {lost:?}", lost.len(), book.accepted.len());
    let again =
        verdict::again(&runs, &world.outages).unwrap_or_else(|calls| panic!("{calls}{:#?}", world.outages));
    let accepted: HashSet<_> = book.accepted.iter().collect();
    let unacknowledged = runs.keys().filter(|call| !accepted.contains(call)).count();
    let kills = |is: fn(&Outage) -> bool| world.outages.iter().filter(|outage| is(outage)).count();
    println!(
        "{name:<9} {seed:>4}  {:>14} {:>8} {:>5}  {:>15} {:>3} {:>10} {unacknowledged:>5}  {:>4} {:>5}  {:>19.0} {:>7.0}  {}",
        kills(|outage| matches!(outage.what, What::Agent(_))),
        kills(|outage| outage.what == What::Balancer),
        kills(|outage| outage.what == What::Queue),
        book.accepted.len(),
        book.refused,
        book.unanswered,
        runs.values().map(Vec::len).sum::<usize>(),
        again.values().sum::<usize>(),
        settled.as_secs_f64(),
        begun.elapsed().as_secs_f64(),
        again.iter().map(|(reason, count)| format!("{reason}: {count}")).collect::<Vec<_>>().join(", "),
    );
}

/// Makes functions that trace their calls; their URLs.
async fn functions(fleet: &Fleet) -> Vec<String> {
    let (status, app) = fleet.api(0, reqwest::Method::POST, "/v2/apps", &json!({ "name": "crash" })).await;
    assert!(status.is_success(), "{app}");
    let mut urls = Vec::new();
    for number in 0..FUNCTIONS {
        let function = json!({
            "app_id": app["id"],
            "name": format!("f{number}"),
            "image": image("function"),
            "memory": FUNCTION_MIB,
            "config": { "BEHAVIOUR": "traced" },
            "annotations": {
                "kiln.dev/retry": { "attempts_max": 100, "backoff_ms": 100, "backoff_max_ms": 1000 },
            },
        });
        let id = fleet.create_function(0, &function).await;
        fleet.until_callable(0, &id).await;
        urls.push(fleet.url(0, &format!("/invoke/{id}")));
    }
    urls
}

impl World {
    /// Kills something, or starts something again.
    async fn break_something(&mut self, draws: &mut StdRng) {
        if !self.down.is_empty() && draws.random_bool(BEGIN_SHARE) {
            return self.begin(draws.random_range(0..self.down.len())).await;
        }
        let what = match draws.random_range(0..8) {
            0..4 => What::Agent(draws.random_range(0..AGENTS)),
            4 | 5 => What::Balancer,
            _ if matches!(self.queue, Backend::Sqlite) => What::Balancer,
            _ => What::Queue,
        };
        if self.down.iter().all(|(other, _)| *other != what) {
            self.kill(what);
        }
    }

    fn kill(&mut self, what: What) {
        self.down.push((what, now()));
        match what {
            What::Agent(number) => self.fleet.agents[number].kill(),
            What::Balancer => self.fleet.balancers[0].kill(),
            What::Queue => assert!(self.queue.kill(), "it has a server"),
        }
    }

    async fn begin(&mut self, at: usize) {
        let (what, from) = self.down.remove(at);
        match what {
            What::Agent(number) => self.fleet.agents[number].begin(),
            What::Balancer => self.fleet.balancers[0].begin(),
            What::Queue => self.queue.begin().await,
        }
        self.outages.push(Outage { what, from, until: now() });
    }

    /// Everything works again.
    async fn calm(&mut self) {
        while !self.down.is_empty() {
            self.begin(0).await;
        }
        for part in self.fleet.balancers.iter_mut().chain(&mut self.fleet.agents) {
            part.until_logged(" takes calls; ");
        }
        self.fleet.until_all_up("all nodes are up").await;
    }

    async fn queue_status(&self) -> Value {
        let answer = self.fleet.client.get(self.fleet.url(0, "/kiln/v1/queue")).send().await;
        match answer {
            Ok(answer) => answer.json().await.unwrap_or_default(),
            Err(error) => Value::String(error.to_string()),
        }
    }

    /// Waits until nothing waits or runs; nothing may be dead.
    async fn until_empty(&self) {
        let deadline = Instant::now() + EMPTY_WITHIN;
        loop {
            let status = self.queue_status().await;
            assert_eq!(status["dead"].as_u64().unwrap_or_default(), 0, "calls are dead: {status}");
            if ["queued", "delayed", "running"].iter().all(|state| status[state] == 0) {
                return;
            }
            assert!(Instant::now() < deadline, "the queue does not run empty: {status}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The queue says of every accepted call that it is done.
    async fn all_done(&self, book: &Book) {
        let (mut done, mut cursor) = (HashSet::new(), String::new());
        loop {
            let path = format!("/kiln/v1/queue/calls?state=done&per_page={PAGE}{cursor}");
            let (status, page) = self.fleet.api(0, reqwest::Method::GET, &path, &Value::Null).await;
            assert!(status.is_success(), "{page}");
            let ids = page["items"].as_array().expect("a page").iter();
            done.extend(ids.map(|call| call["id"].as_str().expect("an id").to_owned()));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        let missing: Vec<_> = book.accepted.iter().filter(|call| !done.contains(*call)).collect();
        assert!(missing.is_empty(), "{} accepted calls are not done: {missing:?}", missing.len());
    }
}
