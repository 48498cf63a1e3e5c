//! Signals to processes that a test started.

use std::fs;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longest time for a server to end.
const END_MAX: Duration = Duration::from_secs(20);
/// How often it is looked whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Signals a process, unless it ended meanwhile.
pub(crate) fn send(process: u32, signal: Signal) {
    let sent = kill(Pid::from_raw(process.cast_signed()), signal);
    assert!(matches!(sent, Ok(()) | Err(Errno::ESRCH)), "{sent:?}");
}

/// The processes that a process started and that still run.
pub(crate) fn children(of: u32) -> Vec<u32> {
    let listed = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    listed.split_whitespace().filter_map(|id| id.parse().ok()).collect()
}

/// Waits until a process has ended.
pub(crate) fn ended(mut process: Child) {
    let deadline = Instant::now() + END_MAX;
    while process.try_wait().expect("it is ours").is_none() {
        assert!(Instant::now() < deadline, "the server does not end");
        thread::sleep(LOOK_EVERY);
    }
}
