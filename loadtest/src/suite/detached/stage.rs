//! What the parts share: a fleet of one node with its queue, functions that say when they were called, and waiting.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use super::Bench;
use crate::docker::Image;
use crate::http::Connection;
use crate::kiln::{self, Kiln};
use crate::process::interrupted;
use crate::redis::Redis;

/// Records and logs of calls are stored by then.
const STORED_WITHIN: Duration = Duration::from_secs(20);
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
}

/// How long a call waited.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wait {
    /// When it was sent, in microseconds since 1970.
    pub(super) sent_us: u64,
    /// From before it was sent until its function had it.
    pub(super) ms: f64,
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
        let begun = Instant::now();
        let wait = |sent: &Sent| loop {
            if let Some(log) = self.kiln.log(&sent.function, &sent.call)? {
                let called_us: u64 = log
                    .trim()
                    .lines()
                    .next_back()
                    .unwrap_or_default()
                    .parse()
                    .context("a log without the time")?;
                let ms = (called_us as f64 - sent.at_us as f64) / 1000.0;
                return Ok(Wait { sent_us: sent.at_us, ms });
            }
            ensure!(begun.elapsed() < STORED_WITHIN, "call {} left no log", sent.call);
            rest(Duration::from_millis(50))?;
        };
        sent.iter().map(wait).collect()
    }
}

/// Sends a detached call.
pub(super) fn send(connection: &mut Connection, function: &str, request: &[u8]) -> Result<Sent> {
    let at_us = now_us();
    let answer = connection.fetch(request)?;
    ensure!(answer.status == 202, "a detached call was answered with {}", answer.status);
    let call = answer.call_id.context("an accepted call without an id")?;
    Ok(Sent { function: function.to_owned(), call, at_us })
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
