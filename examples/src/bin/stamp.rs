//! Remembers which calls it was given and when, in microseconds since 1970: what shows how long calls waited. Asked for
//! `stamps`, it answers with a line for each.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kiln_fdk::{Context, Result};

/// Calls that are remembered.
const STAMPS_MAX: usize = 50_000;
/// How long an answer takes, so that who asks several times at once reaches all containers.
const ANSWER_AFTER: Duration = Duration::from_millis(200);

static STAMPS: Mutex<VecDeque<(String, u128)>> = Mutex::new(VecDeque::new());

fn main() -> ExitCode {
    kiln_fdk::run(|context: &Context, input: String| -> Result<String> {
        let called = SystemTime::now().duration_since(UNIX_EPOCH)?;
        if input.trim() == "stamps" {
            thread::sleep(ANSWER_AFTER);
            let mut lines = String::new();
            for (call, micros) in &*STAMPS.lock().unwrap_or_else(PoisonError::into_inner) {
                writeln!(lines, "{call} {micros}")?;
            }
            return Ok(lines);
        }
        let mut stamps = STAMPS.lock().unwrap_or_else(PoisonError::into_inner);
        if stamps.len() == STAMPS_MAX {
            stamps.pop_front();
        }
        stamps.push_back((context.call_id().to_owned(), called.as_micros()));
        Ok(String::new())
    })
}
