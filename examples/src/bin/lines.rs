//! Writes as many lines to its log as the input says, each with the call's id and its number.

use std::io::{self, Write as _};
use std::process::ExitCode;

use kiln_fdk::{Context, Result};

fn main() -> ExitCode {
    kiln_fdk::run(|context: &Context, text: String| -> Result<String> {
        let lines: u64 = text.trim().parse()?;
        let call = context.call_id();
        let log: String = (1..=lines).fold(String::new(), |log, line| log + &format!("{call} {line}\n"));
        // At once: `eprintln!` writes piece by piece, and the next call's log may get the rest.
        io::stderr().write_all(log.as_bytes())?;
        Ok(String::new())
    })
}
