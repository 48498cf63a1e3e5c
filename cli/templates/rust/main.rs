//! The function {{name}}: says hello to the name in the call's body.

use std::process::ExitCode;

use kiln_fdk::{Context, Result};

fn main() -> ExitCode {
    kiln_fdk::run(hello)
}

fn hello(_call: &Context, body: String) -> Result<String> {
    let name = match body.trim() {
        "" => "World",
        name => name,
    };
    // What a function prints is the log of the call: `kiln logs APP {{name}}` shows it.
    eprintln!("saying hello to {name}");
    Ok(format!("Hello, {name}!\n"))
}
