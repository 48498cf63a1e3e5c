//! The `kiln` binary: parses, runs, reports. Everything else is in the library.

use std::process::ExitCode;

use clap::Parser;
use kiln_cli::args::Cli;

fn main() -> ExitCode {
    match kiln_cli::run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => kiln_cli::failure::report(&error),
    }
}
