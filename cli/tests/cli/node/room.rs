//! Many callers and many functions on little memory.

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};
use reqwest::Method;
use serde_json::{Value, json};

use super::images::example;
use super::{Kiln, Node, eventually};

/// How often a node that works is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Beginnings and ends of a node's function containers, told by the engine in the order in which they were.
struct Watch {
    events: Child,
    seen: Arc<Mutex<Vec<(String, String)>>>,
}

impl Watch {
    /// Watches from now on.
    fn of(node: &Node) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        // The engine repeats what was between this moment and the one in which it is asked.
        let mut events = Command::new("docker")
            .args(["events", "--since", &now.to_string(), "--format", "{{.Action}} {{.ID}}"])
            .args(["--filter", "event=start", "--filter", "event=die"])
            .args(["--filter", &node.label(), "--filter", "label=kiln.role=function"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(events.stdout.take().unwrap()).lines();
        let seen = Arc::<Mutex<Vec<_>>>::default();
        let writer = Arc::clone(&seen);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let (action, id) = line.split_once(' ').unwrap();
                writer.lock().unwrap().push((action.to_owned(), id.to_owned()));
            }
        });
        Self { events, seen }
    }

    /// When every container has ended: how many there were, and how many at most at the same time.
    async fn total_and_peak(self) -> (usize, usize) {
        let mut counted = (0, 0);
        eventually("the engine has told the end of every container", async || {
            let (mut running, mut total, mut peak) = (HashSet::new(), 0, 0);
            for (action, id) in &*self.seen.lock().unwrap() {
                if action == "start" {
                    assert!(running.insert(id.clone()), "{id} started twice");
                    total += 1;
                } else {
                    running.remove(id);
                }
                peak = peak.max(running.len());
            }
            counted = (total, peak);
            total > 0 && running.is_empty()
        })
        .await;
        counted
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.events.kill().unwrap();
        self.events.wait().unwrap();
    }
}

/// A call as its record tells it.
#[derive(Debug)]
struct Ran {
    created: Timestamp,
    started: Timestamp,
    completed: Timestamp,
    cold: bool,
}

/// The records of all `calls` calls of a function.
async fn records(kiln: &Kiln<'_>, function_id: &str, calls: usize) -> Vec<Ran> {
    let mut ran = Vec::new();
    eventually("every call has its record", async || {
        let listed =
            kiln.api(Method::GET, &format!("/v2/fns/{function_id}/calls?per_page=100"), json!({})).await;
        let time = |call: &Value, name: &str| call[name].as_str().unwrap().parse().unwrap();
        let items = listed["items"].as_array().unwrap();
        ran = items
            .iter()
            .map(|call| Ran {
                created: time(call, "created_at"),
                started: time(call, "started_at"),
                completed: time(call, "completed_at"),
                cold: call["cold"].as_bool().unwrap_or_default(),
            })
            .collect();
        ran.len() == calls
    })
    .await;
    ran
}

/// Which part of the time that containers were there was used by calls, while others waited: from the moment in
/// which the last call came to the one in which the last began. A container is there from its first call on.
fn used_while_calls_waited(ran: &[Ran]) -> f64 {
    let all_came = ran.iter().map(|call| call.created).max().unwrap();
    let none_waits = ran.iter().map(|call| call.started).max().unwrap();
    let within = |from: Timestamp, to: Timestamp| {
        let (from, to) = (from.max(all_came), to.min(none_waits));
        to.duration_since(from).max(SignedDuration::ZERO).as_secs_f64()
    };
    let there: f64 = ran.iter().filter(|call| call.cold).map(|call| within(call.started, none_waits)).sum();
    let used: f64 = ran.iter().map(|call| within(call.started, call.completed)).sum();
    assert!(there > 0.0, "nobody waited");
    used / there
}

#[tokio::test]
async fn many_callers_share_the_few_containers_that_memory_allows() {
    const CALLERS: usize = 64;
    const CONTAINERS: usize = 4;
    let node = Node::with_memory_mib(64 * CONTAINERS as u64);
    let kiln = node.start();
    let app = kiln.create_app("crowd").await;
    let function = kiln.create_function(&app, "slow", &example("slow"), json!({})).await;
    let watch = Watch::of(&node);

    let calls = join_all((0..CALLERS).map(async |_| {
        let answer = kiln.invoke(&function, "200ms").await;
        (answer.status(), answer.text().await.unwrap())
    }));
    let done = Mutex::new(false);
    let look = async {
        // The agent publishes both at the same moment, but may do so between the two reads of one look.
        let mut suspect = false;
        while !*done.lock().unwrap() {
            let idle = kiln.metric("kiln_slots{state=\"idle\"}").await;
            let both = idle > 0.0 && kiln.metric("kiln_calls_waiting").await > 0.0;
            assert!(!(suspect && both), "calls wait while a container is idle");
            suspect = both;
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    };
    let (answers, ()) = tokio::join!(
        async {
            let answers = calls.await;
            *done.lock().unwrap() = true;
            answers
        },
        look
    );
    for (status, text) in answers {
        assert_eq!((status.as_u16(), text.as_str()), (200, "slept 200ms\n"));
    }
    let ran = records(&kiln, &function, CALLERS).await;
    assert_eq!(ran.iter().filter(|call| call.cold).count(), CONTAINERS);
    let used = used_while_calls_waited(&ran);
    // How much exactly is for the benchmarks to say.
    assert!(used > 0.5, "containers were idle while calls waited: {used:.2} of their time was used");
    kiln.stop();
    assert_eq!(watch.total_and_peak().await, (CONTAINERS, CONTAINERS));
}

#[tokio::test]
async fn more_functions_than_memory_holds_take_turns() {
    const FUNCTIONS: usize = 20;
    const CONTAINERS: usize = 5;
    let node = Node::with_memory_mib(64 * CONTAINERS as u64);
    let kiln = node.start();
    let app = kiln.create_app("turns").await;
    let image = example("hello");
    let functions = join_all(
        (0..FUNCTIONS)
            .map(async |number| kiln.create_function(&app, &format!("f{number}"), &image, json!({})).await),
    )
    .await;
    let watch = Watch::of(&node);

    let call = async |(number, function): (usize, &String)| {
        let answer = kiln.invoke(function, number.to_string()).await;
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let expected: Vec<_> = (0..FUNCTIONS).map(|number| (200, format!("Hello {number}!\n"))).collect();
    assert_eq!(join_all(functions.iter().enumerate().map(call)).await, expected);
    let evicted = kiln.metric("kiln_evictions_total").await;
    assert!(evicted >= (FUNCTIONS - CONTAINERS) as f64, "{evicted} idle containers were evicted");
    assert!(node.function_containers().len() <= CONTAINERS);
    kiln.stop();
    let (total, peak) = watch.total_and_peak().await;
    assert!(total >= FUNCTIONS && peak == CONTAINERS, "{total} containers, {peak} at the same time");
}
