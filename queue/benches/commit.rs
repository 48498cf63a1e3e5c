//! What a durable enqueue costs: many callers beside one write that is waited for per message, in one run.
//!
//! Prints medians over rounds that alternate, and their ratios. `cargo bench -p kiln-queue` measures SQLite, with
//! `KILN_BENCH_QUEUE=redis://...` the empty queue of that URL. `KILN_BENCH_JSON=FILE` has the figures written there too,
//! for the report of `make bench NAME=async`.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_queue::{Options, open};
use kiln_shared::ids::{AppId, CallId, FunctionId};
use kiln_shared::queue::{NewMessage, Outcome, Queue, Reserve, Settlement};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

const ROUNDS: usize = 7;
const CALLERS: usize = 64;
/// Messages per round, of all callers.
const MESSAGES: usize = 6_400;
/// Messages per round where each waits for the disk alone.
const MESSAGES_ALONE: usize = 300;
const PAYLOAD_BYTES: usize = 256;

/// Rate per second, and the 50th and 99th percentile of one message's time.
#[derive(Clone, Copy)]
struct Measured {
    rate: f64,
    p50: Duration,
    p99: Duration,
}

fn measured(mut each: Vec<Duration>, whole: Duration) -> Measured {
    each.sort_unstable();
    let at = |percent: usize| each[(each.len() * percent / 100).min(each.len() - 1)];
    Measured { rate: each.len() as f64 / whole.as_secs_f64(), p50: at(50), p99: at(99) }
}

fn message(function: FunctionId) -> NewMessage {
    let app: AppId = "01M2APP0000000000000000000".parse().expect("an id");
    NewMessage::new(CallId::generate(), function, app, vec![7; PAYLOAD_BYTES])
}

/// A record of a message's size appended and forced to the disk, again and again.
fn bare(folder: &Path) -> Measured {
    let mut file = File::create(folder.join("bare")).expect("a file");
    let record = vec![7; PAYLOAD_BYTES + 256];
    let (mut each, begun) = (Vec::new(), Instant::now());
    for _ in 0..MESSAGES_ALONE {
        let one = Instant::now();
        file.write_all(&record).expect("written");
        file.sync_data().expect("on the disk");
        each.push(one.elapsed());
    }
    measured(each, begun.elapsed())
}

async fn enqueue(queue: &Arc<dyn Queue>, callers: usize, messages: usize) -> Measured {
    let function = FunctionId::generate();
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let queue = Arc::clone(queue);
        tasks.spawn(async move {
            let mut each = Vec::with_capacity(messages / callers);
            for _ in 0..messages / callers {
                let one = Instant::now();
                queue.enqueue(vec![message(function)]).await.expect("stored");
                each.push(one.elapsed());
            }
            each
        });
    }
    let each = tasks.join_all().await.concat();
    measured(each, begun.elapsed())
}

/// Reserves and settles all there is, in batches; messages per second.
async fn drain(queue: &Arc<dyn Queue>) -> f64 {
    let (mut messages, begun) = (0, Instant::now());
    loop {
        let reserve = Reserve::new("bench", 64, Duration::from_mins(1));
        let taken = queue.reserve(reserve).await.expect("the queue answers");
        if taken.is_empty() {
            return f64::from(messages) / begun.elapsed().as_secs_f64();
        }
        messages += taken.len() as u32;
        let done = |reserved: &kiln_shared::queue::Reserved| Settlement {
            receipt: reserved.receipt,
            outcome: Outcome::Done,
        };
        queue.settle(taken.iter().map(done).collect()).await.expect("the queue answers");
    }
}

/// From before an enqueue until a worker that slept has the message.
async fn start(queue: &Arc<dyn Queue>) -> Measured {
    let (mut each, begun) = (Vec::new(), Instant::now());
    for _ in 0..200 {
        let mut wakeups = queue.subscribe();
        let worker = Arc::clone(queue);
        let waiting = tokio::task::spawn(async move {
            loop {
                let reserve = Reserve::new("bench", 1, Duration::from_mins(1));
                if let Some(reserved) = worker.reserve(reserve).await.expect("the queue answers").pop() {
                    return (reserved, Instant::now());
                }
                wakeups.next().await.expect("the queue is open");
            }
        });
        tokio::time::sleep(Duration::from_millis(5)).await;
        let one = Instant::now();
        queue.enqueue(vec![message(FunctionId::generate())]).await.expect("stored");
        let (reserved, started) = waiting.await.expect("a message");
        each.push(started - one);
        let outcome = Outcome::Done;
        queue
            .settle(vec![Settlement { receipt: reserved.receipt, outcome }])
            .await
            .expect("the queue answers");
    }
    measured(each, begun.elapsed())
}

fn cpu_millis() -> i64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("it is ours");
    (usage.user_time() + usage.system_time()).num_milliseconds()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn row(name: &str, rounds: &[Measured]) -> Measured {
    let of = |value: fn(&Measured) -> f64| median(rounds.iter().map(value).collect());
    let measured = Measured {
        rate: of(|round| round.rate),
        p50: Duration::from_secs_f64(of(|round| round.p50.as_secs_f64())),
        p99: Duration::from_secs_f64(of(|round| round.p99.as_secs_f64())),
    };
    println!(
        "{name:<34} {:>9.0} /s   p50 {:>9.1?}   p99 {:>9.1?}",
        measured.rate, measured.p50, measured.p99
    );
    measured
}

fn main() {
    // In the folder of the build, which is on a disk where /tmp may not be.
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let runtime = Runtime::new().expect("a runtime");
    let file = format!("sqlite://{}", home.path().join("queue.db").display());
    let url = std::env::var("KILN_BENCH_QUEUE").unwrap_or(file);
    runtime.block_on(async {
        let queue = open(&url, Options::default()).await.expect("the queue opens");
        let (mut bare_rounds, mut alone, mut together, mut drained) = (vec![], vec![], vec![], vec![]);
        let begun = cpu_millis();
        for _ in 0..ROUNDS {
            bare_rounds.push(bare(home.path()));
            alone.push(enqueue(&queue, 1, MESSAGES_ALONE).await);
            together.push(enqueue(&queue, CALLERS, MESSAGES).await);
            drained.push(drain(&queue).await);
        }
        let bare = row("a write and fdatasync", &bare_rounds);
        let alone = row("enqueue, 1 caller", &alone);
        let together = row(&format!("enqueue, {CALLERS} callers"), &together);
        println!("{:<34} {:>9.0} /s", "reserved and done, batches of 64", median(drained));
        let messages = (ROUNDS * (MESSAGES + MESSAGES_ALONE)) as i64;
        let cpu_micros = (cpu_millis() - begun) * 1_000;
        println!("{:<34} {:>9} us", "CPU of a message, from end to end", cpu_micros / messages);
        row("from enqueue to start, idle", &[start(&queue).await]);
        if let Some(path) = std::env::var_os("KILN_BENCH_JSON") {
            let json = |of: &Measured| {
                let micros = |time: Duration| time.as_secs_f64() * 1e6;
                serde_json::json!({ "rate": of.rate, "p50_us": micros(of.p50), "p99_us": micros(of.p99) })
            };
            let figures = [("bare", &bare), ("alone", &alone), ("together", &together)];
            let figures: serde_json::Map<_, _> =
                figures.iter().map(|(name, of)| ((*name).to_owned(), json(of))).collect();
            std::fs::write(path, serde_json::Value::Object(figures).to_string()).expect("written");
        }
        println!("rate against a write per message: {:.1} x", together.rate / bare.rate);
        println!("rate against an enqueue at a time: {:.1} x", together.rate / alone.rate);
        println!("p99 against one write's p50: {:.1} x", together.p99.as_secs_f64() / bare.p50.as_secs_f64());
        println!(
            "p99 against one enqueue's p50: {:.1} x",
            together.p99.as_secs_f64() / alone.p50.as_secs_f64()
        );
        let before = cpu_millis();
        tokio::time::sleep(Duration::from_secs(10)).await;
        println!("CPU of an idle queue: {} ms in 10 s", cpu_millis() - before);
        queue.close().await;
    });
}
