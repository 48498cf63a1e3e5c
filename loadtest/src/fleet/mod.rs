//! A fleet of agents without containers on this machine: one process is the balancer's link, one is all the agents'.
//!
//! Both are Kiln's own code, as `kiln-lb` and `kiln-agent` run it; only what stands behind the link is missing. They
//! are steered by lines on their standard input and answer each with one on their standard output. They end with it.

pub mod agents;
pub mod balancer;

use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use kiln_shared::identity::{CertificateAuthority, Credentials, Peer, Role};
use nix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc;

/// Certificates of the fleet are good for this long.
const VALID_FOR: Duration = Duration::from_hours(1);
/// Lines of the harness that may wait.
const LINES_MAX: usize = 16;

/// The moment in units of 10 us, as all processes of this machine see it; begins anew after half a day.
///
/// Agents report it as their number of calls, so that whoever sees the report knows when it was made.
///
/// # Errors
/// The machine has no monotonic clock.
pub fn moment() -> Result<u32> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).context("no clock")?);
    Ok((now.as_micros() / 10) as u32)
}

/// Time since such a moment.
pub fn since(moment: u32, now: u32) -> Duration {
    Duration::from_micros(10 * u64::from(now.wrapping_sub(moment)))
}

/// A certificate of `name` from the CA in `folder`, which is made if there is none.
///
/// # Errors
/// The folder cannot be used.
pub fn credentials(folder: &Path, role: Role, name: &str) -> Result<Credentials> {
    let (ca_folder, now) = (folder.join("ca"), SystemTime::now());
    let authority = if ca_folder.exists() {
        CertificateAuthority::open(&ca_folder, now)?
    } else {
        CertificateAuthority::init(&ca_folder, now)?
    };
    let own = folder.join(name);
    authority.issue(&Peer::new(role, name)?, VALID_FOR, now)?.save(&own)?;
    Ok(Credentials::open(&own, role, now)?)
}

/// The lines of standard input; the channel ends with it.
pub fn lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(LINES_MAX);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Answers the harness.
///
/// # Errors
/// It has gone away.
pub fn answer(line: &str) -> Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}")?;
    Ok(output.flush()?)
}
