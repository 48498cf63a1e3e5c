//! What the parts share: a fleet of one node with its queue, functions that say when they were called, and waiting.

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use super::Bench;
use crate::docker::Image;
use crate::http::Connection;
use crate::kiln::{self, Kiln};
use crate::process::interrupted;
use crate::redis::Redis;

/// Calls have been made by then.
const STAMPED_WITHIN: Duration = Duration::from_secs(20);
/// A function has hardly more containers.
const CONTAINERS_MAX: usize = 8;
/// Fewer than one in so many may be lost, with a container that was removed.
const LOST_PART: usize = 100;
/// A burst is drained by then.
const DRAINED_WITHIN: Duration = Duration::from_mins(5);

/// A fleet of one node with its queue.
pub(super) struct Stage {
    // Ended in this order.
    pub(super) kiln: Kiln,
    pub(super) redis: Redis,
    pub(super) echo: Image,
    stamp: Image,
}

/// A detached call of a function that says when it was called.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub(super) function: String,
    pub(super) call: String,
    /// In microseconds since 1970.
    pub(super) at_us: u64,
    /// How long it took until it was accepted: until it was durable.
    pub(super) accepted_ms: f64,
}

/// How long a call waited.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wait {
    /// When it was sent, in microseconds since 1970.
    pub(super) sent_us: u64,
    /// From before it was sent until its function had it.
    pub(super) ms: f64,
    /// From before it was sent until it was accepted.
    pub(super) accepted_ms: f64,
}

impl Stage {
    /// Starts it.
    pub(super) fn start(bench: &Bench) -> Result<Self> {
        let (engine, echo) = bench.image()?;
        let stamp = engine.image_of(&bench.function.with_file_name("stamp"), "stamp")?;
        let redis = Redis::start(&bench.results, &bench.folder)?;
        let kiln = Kiln::two_processes_with_queue(&bench.binaries, &bench.folder, &redis.url())?;
        Ok(Self { kiln, redis, echo, stamp })
    }

    /// An app with one function of an image, warm. Returns the function's id.
    pub(super) fn function(&self, app: &str, image: &Image) -> Result<String> {
        let app = self.kiln.create_app(app)?;
        let function = self.kiln.create_function(&app, "f", &image.reference)?;
        let request = kiln::call(&function);
        self.kiln.wait_for_node(&request)?;
        for _ in 0..10 {
            let status = self.kiln.target.connect()?.exchange(&request)?;
            ensure!(status == 200, "the function answers with {status}");
        }
        Ok(function)
    }

    /// The same of a function that says when it was called.
    pub(super) fn stamping(&self, app: &str) -> Result<String> {
        self.function(app, &self.stamp)
    }

    /// Process ids of balancer and agent.
    pub(super) fn balancer_and_agent(&self) -> [u32; 2] {
        let pids = self.kiln.pids();
        [pids[0], pids[1]]
    }

    /// Waits until nothing of the function is in the queue. Calls `look` with how many calls wait each time that it has
    /// looked.
    pub(super) fn drained(&self, function: &str, mut look: impl FnMut(u64)) -> Result<()> {
        let begun = Instant::now();
        loop {
            let (waiting, running) = self.kiln.queued(function)?;
            look(waiting);
            if waiting + running == 0 {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < DRAINED_WITHIN,
                "{waiting} calls wait and {running} run after all that time"
            );
            rest(Duration::from_millis(100))?;
        }
    }

    /// How long these calls waited, as their functions said.
    pub(super) fn waits(&self, sent: &[Sent]) -> Result<Vec<Wait>> {
        let mut functions: Vec<&str> = sent.iter().map(|sent| &*sent.function).collect();
        functions.sort_unstable();
        functions.dedup();
        let mut called_us: HashMap<String, u64> = HashMap::new();
        let begun = Instant::now();
        loop {
            for function in &functions {
                called_us.extend(self.stamps(function)?);
            }
            let missing = sent.iter().filter(|sent| !called_us.contains_key(&sent.call)).count();
            if missing == 0 {
                break;
            }
            if begun.elapsed() > STAMPED_WITHIN {
                ensure!(missing * LOST_PART < sent.len(), "{missing} of {} calls left no stamp", sent.len());
                println!("({missing} of {} calls left no stamp)", sent.len());
                break;
            }
            rest(Duration::from_millis(200))?;
        }
        let wait = |sent: &Sent| {
            let called_us = *called_us.get(&sent.call)?;
            let ms = (called_us as f64 - sent.at_us as f64) / 1000.0;
            Some(Wait { sent_us: sent.at_us, ms, accepted_ms: sent.accepted_ms })
        };
        Ok(sent.iter().filter_map(wait).collect())
    }

    /// When a function got its calls. It is asked several times at once, to reach all of its containers.
    fn stamps(&self, function: &str) -> Result<Vec<(String, u64)>> {
        let request = kiln::call_with(function, b"stamps");
        let ask = || -> Result<Vec<(String, u64)>> {
            let answer = self.kiln.target.connect()?.fetch(&request)?;
            ensure!(
                answer.status == 200,
                "a function that was asked for its stamps answers with {}",
                answer.status
            );
            let text = String::from_utf8(answer.body).context("stamps that are no text")?;
            let stamp = |line: &str| {
                let (call, at) = line.split_once(' ').context("a stamp without a call and its time")?;
                Ok((call.to_owned(), at.parse().context("a stamp without a time")?))
            };
            text.lines().map(stamp).collect()
        };
        thread::scope(|scope| {
            let asking: Vec<_> = (0..CONTAINERS_MAX).map(|_| scope.spawn(ask)).collect();
            let stamps = asking.into_iter().map(|asking| asking.join().expect("asking does not panic"));
            Ok(stamps.collect::<Result<Vec<_>>>()?.concat())
        })
    }
}

/// Sends a detached call.
pub(super) fn send(connection: &mut Connection, function: &str, request: &[u8]) -> Result<Sent> {
    let (at_us, begun) = (now_us(), Instant::now());
    let answer = connection.fetch(request)?;
    ensure!(answer.status == 202, "a detached call was answered with {}", answer.status);
    let accepted_ms = begun.elapsed().as_secs_f64() * 1000.0;
    let call = answer.call_id.context("an accepted call without an id")?;
    Ok(Sent { function: function.to_owned(), call, at_us, accepted_ms })
}

/// Microseconds since 1970.
pub(super) fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

/// Pauses, unless the benchmark is interrupted.
pub(super) fn rest(duration: Duration) -> Result<()> {
    let until = Instant::now() + duration;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        ensure!(!interrupted(), "interrupted");
        thread::sleep(left.min(Duration::from_millis(50)));
    }
    Ok(())
}
