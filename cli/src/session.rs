//! What one run of a command works with: how it speaks, which server it speaks to.

use std::io::{self, BufRead as _, Write as _};

use anyhow::Result;

use crate::args::GlobalArgs;
use crate::client::{ApiError, Client};
use crate::contexts::{ContextStore, Settings};
use crate::failure::Failure;
use crate::output::Output;

/// One run of a command.
#[derive(Debug)]
pub struct Session {
    /// How it speaks.
    pub output: Output,
    /// What flags, environment and context say.
    pub settings: Settings,
}

impl Session {
    /// Reads the context and the options.
    pub fn new(global: &GlobalArgs, output: Output) -> Result<Self> {
        let settings = Settings::resolve(global, &ContextStore::of_user()?)?;
        Ok(Self { output, settings })
    }

    /// A client for the server of this run.
    pub fn client(&self) -> Result<Client, ApiError> {
        Client::new(&self.settings)
    }

    /// Says to people that there is nothing to show; programs see it from the empty list.
    pub fn note(&self, text: &str) -> Result<()> {
        if self.output.is_json() { Ok(()) } else { self.output.warn(text) }
    }

    /// Asks a yes-or-no question; the answer may come from a pipe.
    pub fn confirm(&self, question: &str) -> Result<bool> {
        let mut stderr = anstream::stderr().lock();
        write!(stderr, "{question}")?;
        stderr.flush()?;
        let mut answer = String::new();
        if io::stdin().lock().read_line(&mut answer)? == 0 {
            writeln!(stderr)?;
            return Err(Failure::misuse("nobody answered the question")
                .hint("add --force to go on without asking")
                .into());
        }
        Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
    }
}
