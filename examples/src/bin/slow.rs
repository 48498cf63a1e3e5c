//! Sleeps as long as the input says (`250ms`, `2s`; one second if it says nothing).

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use kiln_fdk::{Context, Result};

fn main() -> ExitCode {
    kiln_fdk::run(|context: &Context, text: String| -> Result<String> {
        let duration = parse(text.trim())?;
        eprintln!("sleeping {duration:?}; {:?} left", context.time_left().unwrap_or_default());
        thread::sleep(duration);
        Ok(format!("slept {duration:?}\n"))
    })
}

fn parse(text: &str) -> Result<Duration> {
    if text.is_empty() {
        return Ok(Duration::from_secs(1));
    }
    if let Some(millis) = text.strip_suffix("ms") {
        return Ok(Duration::from_millis(millis.parse()?));
    }
    Ok(Duration::try_from_secs_f64(text.strip_suffix('s').unwrap_or(text).parse()?)?)
}
