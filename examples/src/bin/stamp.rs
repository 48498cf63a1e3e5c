//! Writes to its log when it was called, in microseconds since 1970: what shows how long a call waited.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use kiln_fdk::{Context, Result};

fn main() -> ExitCode {
    kiln_fdk::run(|_context: &Context, _input: String| -> Result<String> {
        eprintln!("{}", SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros());
        Ok(String::new())
    })
}
