//! Closed-loop load: each caller sends its next request when it has the answer to the last.
//!
//! Runs in the calling thread, so that pinning that thread pins the generator. Any answer but 200 ends the run with
//! an error: a benchmark of failures measures nothing.

use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::http::{Connection, Target};
use crate::process::interrupted;

/// No answer takes longer; what does is lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// What a run of load found.
#[derive(Debug, Clone)]
pub struct Load {
    /// Time from request to answer, sorted, in nanoseconds.
    latencies: Vec<u64>,
    /// How long the run took.
    pub elapsed: Duration,
}

impl Load {
    /// Number of answers.
    pub fn answers(&self) -> usize {
        self.latencies.len()
    }

    /// Answers per second.
    pub fn rate(&self) -> f64 {
        self.answers() as f64 / self.elapsed.as_secs_f64()
    }

    /// The latency that `share` (0 to 1) of the answers did not exceed, in microseconds.
    pub fn percentile_us(&self, share: f64) -> f64 {
        let last = self.latencies.len() - 1;
        self.latencies[(last as f64 * share).round() as usize] as f64 / 1000.0
    }
}

/// One caller on one connection, blocking, for `duration`.
///
/// # Errors
/// If the target cannot be reached, breaks off, or gives another answer than 200.
pub fn one_caller(target: &Target, request: &[u8], duration: Duration) -> Result<Load> {
    let mut connection = target.connect().with_context(|| format!("connecting to {target:?}"))?;
    connection.set_read_timeout(ANSWER_TIMEOUT)?;
    let mut latencies = Vec::with_capacity(1 << 16);
    let start = Instant::now();
    let mut sent = start;
    while sent - start < duration && !interrupted() {
        let status = connection.exchange(request).with_context(|| format!("calling {target:?}"))?;
        ensure!(status == 200, "{target:?} answered {status}");
        let now = Instant::now();
        latencies.push((now - sent).as_nanos() as u64);
        sent = now;
    }
    finish(latencies, start)
}

/// When callers send no more.
#[derive(Debug, Clone, Copy)]
enum End {
    After(Duration),
    Sent(usize),
}

/// `callers` callers, each with its own connection, served by one thread, for `duration`.
///
/// # Errors
/// As [`one_caller`].
pub fn many_callers(target: &Target, request: &[u8], callers: usize, duration: Duration) -> Result<Load> {
    drive(target, request, callers, End::After(duration), 200)
}

/// The same until `calls` detached calls were accepted.
///
/// # Errors
/// As [`one_caller`], with 202 in place of 200.
pub fn many_detached(target: &Target, request: &[u8], callers: usize, calls: usize) -> Result<Load> {
    drive(target, request, callers.min(calls), End::Sent(calls), 202)
}

fn drive(target: &Target, request: &[u8], callers: usize, end: End, wanted: u16) -> Result<Load> {
    struct Caller {
        connection: Connection,
        sent: Instant,
    }
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut all: Vec<Option<Caller>> = Vec::with_capacity(callers);
    let (mut waiting, mut sent) = (callers, callers);
    let start = Instant::now();
    for key in 0..callers as u64 {
        let mut connection = target.connect().with_context(|| format!("connecting to {target:?}"))?;
        connection.set_nonblocking()?;
        epoll.add(&connection, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP, key))?;
        let sent = Instant::now();
        connection.send(request).with_context(|| format!("calling {target:?}"))?;
        all.push(Some(Caller { connection, sent }));
    }
    let mut latencies = Vec::with_capacity(1 << 20);
    let mut events = vec![EpollEvent::empty(); callers];
    let timeout = EpollTimeout::try_from(ANSWER_TIMEOUT).context("a timeout fits")?;
    while waiting > 0 && !interrupted() {
        let ready = match epoll.wait(&mut events, timeout) {
            Err(nix::errno::Errno::EINTR) => continue,
            ready => ready?,
        };
        if ready == 0 {
            bail!("{waiting} of {callers} callers had no answer from {target:?} in {ANSWER_TIMEOUT:?}");
        }
        for event in &events[..ready] {
            let slot = &mut all[event.data() as usize];
            let Some(caller) = slot else { continue };
            let status = match caller.connection.receive() {
                Ok(Some(status)) => status,
                Ok(None) => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error).with_context(|| format!("calling {target:?}")),
            };
            ensure!(status == wanted, "{target:?} answered {status}");
            let now = Instant::now();
            latencies.push((now - caller.sent).as_nanos() as u64);
            let goes_on = match end {
                End::After(duration) => now - start < duration,
                End::Sent(calls) => sent < calls,
            };
            if goes_on {
                caller.sent = now;
                sent += 1;
                caller.connection.send(request).with_context(|| format!("calling {target:?}"))?;
            } else {
                *slot = None;
                waiting -= 1;
            }
        }
    }
    finish(latencies, start)
}

fn finish(mut latencies: Vec<u64>, start: Instant) -> Result<Load> {
    let elapsed = start.elapsed();
    ensure!(!interrupted(), "interrupted");
    ensure!(!latencies.is_empty(), "there was no answer at all");
    latencies.sort_unstable();
    Ok(Load { latencies, elapsed })
}

/// The middle value; of an even number the mean of the two in the middle.
///
/// # Panics
/// If there is no value.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// The value that `share` (0 to 1) of `values` do not exceed, between two of them by linear interpolation.
///
/// # Panics
/// If there is no value.
pub fn percentile(values: &[f64], share: f64) -> f64 {
    assert!(!values.is_empty(), "a percentile of nothing");
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = (sorted.len() - 1) as f64 * share;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * (place - place.floor())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http;
    use crate::stand_in::StandIn;

    #[test]
    fn percentiles_lie_between_values() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0]) - 2.5).abs() < 1e-9);
        assert!((percentile(&[0.0, 10.0], 0.25) - 2.5).abs() < 1e-9);
    }

    #[test]
    fn both_loops_count_the_answers_of_a_server() {
        let server = StandIn::start(None).expect("starts");
        let target = Target::loopback(server.port());
        let request = http::request("POST", "/x", &[], b"hello");
        let one = one_caller(&target, &request, Duration::from_millis(20)).expect("answers");
        let many = many_callers(&target, &request, 8, Duration::from_millis(20)).expect("answers");
        assert!(one.answers() > 0 && many.answers() >= 8);
        assert!(many.percentile_us(0.5) <= many.percentile_us(0.99));
    }
}
