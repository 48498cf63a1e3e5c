//! Everything that goes to standard output: sentences and tables for people, JSON for programs.
//!
//! In JSON mode standard output holds exactly one JSON value; what is said on the way goes to standard error, so
//! that `kiln ... --output json | jq` always works. Colours and progress appear on terminals only.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::Result;
use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::args::OutputFormat;
use crate::failure::OutputClosed;

/// Where and how a command speaks.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    format: OutputFormat,
    /// Show everything that tools say, instead of a summary.
    pub verbose: bool,
}

impl Output {
    /// Speaks in `format`.
    pub fn new(format: OutputFormat, verbose: bool) -> Self {
        Self { format, verbose }
    }

    /// True if standard output is to hold one JSON value.
    pub fn is_json(self) -> bool {
        self.format == OutputFormat::Json
    }

    /// Says a line to people: on standard output, or on standard error in JSON mode.
    pub fn say(self, line: impl Display) -> Result<()> {
        match self.format {
            OutputFormat::Text => checked(writeln!(anstream::stdout().lock(), "{line}")),
            OutputFormat::Json => checked(writeln!(anstream::stderr().lock(), "{line}")),
        }
    }

    /// Says a line that is no result, such as a warning: always on standard error.
    pub fn warn(self, line: impl Display) -> Result<()> {
        use owo_colors::OwoColorize as _;
        checked(writeln!(anstream::stderr().lock(), "{} {line}", "warning:".yellow().bold()))
    }

    /// The result of a command: a sentence for people or a value for programs.
    pub fn result(self, line: impl Display, value: &impl Serialize) -> Result<()> {
        if self.is_json() { self.json(value) } else { self.say(line) }
    }

    /// Prints `value` as indented JSON, whatever the format.
    pub fn json(self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value)?;
        checked(writeln!(io::stdout().lock(), "{text}"))
    }

    /// Prints rows under upper-case headings, or `values` in JSON mode.
    pub fn table<const N: usize>(
        self,
        headings: [&str; N],
        rows: impl IntoIterator<Item = [Cow<'static, str>; N]>,
        values: &impl Serialize,
    ) -> Result<()> {
        if self.is_json() {
            return self.json(values);
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(headings);
        for row in rows {
            table.add_row(row);
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let text = table.to_string();
        let mut stdout = anstream::stdout().lock();
        for line in text.lines() {
            checked(writeln!(stdout, "{}", line.trim_end()))?;
        }
        Ok(())
    }

    /// Writes raw bytes to standard output and flushes them.
    pub fn raw(self, bytes: &[u8]) -> Result<()> {
        let mut stdout = io::stdout().lock();
        checked(stdout.write_all(bytes).and_then(|()| stdout.flush()))
    }

    /// Starts a step that takes a while. It ends when the returned value is dropped.
    pub fn step(self, doing: impl Into<Cow<'static, str>>) -> Step {
        if self.verbose || !io::stderr().is_terminal() {
            return Step { bar: None };
        }
        let bar = ProgressBar::new_spinner().with_message(doing);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>4} {wide_msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Step { bar: Some(bar) }
    }
}

/// A running step, shown as a spinner when standard error is a terminal.
#[derive(Debug)]
pub struct Step {
    bar: Option<ProgressBar>,
}

impl Step {
    /// Shows what the step is doing right now.
    pub fn now(&self, doing: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(doing.trim().to_owned());
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn checked(written: io::Result<()>) -> Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        other => Ok(other?),
    }
}
