//! Greets whoever the input names.

use std::process::ExitCode;

use kiln_fdk::{Context, Result};

fn main() -> ExitCode {
    kiln_fdk::run(|_: &Context, name: String| -> Result<String> {
        let name = if name.trim().is_empty() { "world" } else { name.trim() };
        Ok(format!("Hello {name}!\n"))
    })
}
