//! What the command line says when it cannot go on: one line that names the thing, and a hint what to do next.
//!
//! Owns the exit codes: 0 done, 1 failed, 2 used wrongly (as clap's own).

use std::io::Write as _;
use std::process::ExitCode;

use owo_colors::OwoColorize as _;

use crate::client::ApiError;

/// Exit code of a command that was understood but failed.
pub const EXIT_FAILED: u8 = 1;
/// Exit code of a command that was used wrongly.
pub const EXIT_MISUSE: u8 = 2;

/// A failure with its remedy.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    message: String,
    hint: Option<String>,
    exit_code: u8,
}

impl Failure {
    /// The command was right but could not be done.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, exit_code: EXIT_FAILED }
    }

    /// The command line itself was wrong.
    pub fn misuse(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, exit_code: EXIT_MISUSE }
    }

    /// What to do next, as a sentence without a full stop.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Prints the error with its causes in one line and the hint below it; returns the exit code to end with.
pub fn report(error: &anyhow::Error) -> ExitCode {
    if is_broken_pipe(error) {
        // The reader of our output went away (`kiln list apps | head -1`): nothing to tell anyone.
        return ExitCode::SUCCESS;
    }
    let mut stderr = anstream::stderr().lock();
    // A failure to write to stderr has nowhere to be reported.
    drop(writeln!(stderr, "{} {}", "error:".red().bold(), one_line(error)));
    if let Some(hint) = hint_of(error) {
        drop(writeln!(stderr, "{} {hint}", "hint:".cyan()));
    }
    let failure = error.chain().find_map(|cause| cause.downcast_ref::<Failure>());
    ExitCode::from(failure.map_or(EXIT_FAILED, |failure| failure.exit_code))
}

/// The error and its causes, without saying a text twice.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let text = text.trim_end();
        if line.contains(text) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(text);
    }
    line
}

fn hint_of(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return failure.hint.clone();
        }
        cause.downcast_ref::<ApiError>().and_then(ApiError::hint)
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<OutputClosed>().is_some())
}

/// Whoever read our standard output went away.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
pub struct OutputClosed;

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn the_hint_of_an_inner_cause_is_found() {
        let error =
            Err::<(), _>(Failure::new("no such file").hint("make it")).context("cannot read x").unwrap_err();
        assert_eq!(one_line(&error), "cannot read x: no such file");
        assert_eq!(hint_of(&error).as_deref(), Some("make it"));
    }

    #[test]
    fn a_cause_that_repeats_its_parent_is_said_once() {
        let error = anyhow::anyhow!("refused").context("refused");
        assert_eq!(one_line(&error), "refused");
        let error = anyhow::anyhow!("refused").context("cannot connect: refused; start it");
        assert_eq!(one_line(&error), "cannot connect: refused; start it");
    }
}
