//! Writes to its log which call it was given and when, in microseconds since 1970: what shows how long calls waited.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use kiln_fdk::{Context, Result};

fn main() -> ExitCode {
    kiln_fdk::run(|context: &Context, _input: String| -> Result<String> {
        let called = SystemTime::now().duration_since(UNIX_EPOCH)?;
        // At once: `eprintln!` writes piece by piece, and the next call's log may get the rest.
        let line = format!("{} {}\n", context.call_id(), called.as_micros());
        io::stderr().write_all(line.as_bytes())?;
        Ok(String::new())
    })
}
