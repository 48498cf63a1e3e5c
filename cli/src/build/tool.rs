//! Running a tool: its output goes straight through in verbose mode; else it is summed up, and its end shown if it fails.

use std::collections::VecDeque;
use std::io;
use std::process::{ExitStatus, Stdio};

use anyhow::{Context as _, Result};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::Command;

use crate::failure::Failure;
use crate::output::{Output, Step};

/// Lines of a failed tool that are shown.
const LINES_SHOWN_MAX: usize = 40;

/// Runs `command`; what it prints on standard output is dropped unless verbose.
pub(super) async fn run(output: Output, step: &Step, what: &str, mut command: Command) -> Result<()> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    if output.verbose {
        // Standard output may have to stay clean for JSON.
        command.stdout(io::stderr());
        let status = command.status().await.with_context(|| format!("cannot run {what}"))?;
        return check(status, what, &VecDeque::new());
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {what}"))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let last = tokio::sync::Mutex::new(VecDeque::new());
    let (status, from_stdout, from_stderr) =
        tokio::join!(child.wait(), follow(stdout, step, &last), follow(stderr, step, &last));
    from_stdout.and(from_stderr).with_context(|| format!("cannot read what {what} says"))?;
    check(status?, what, &*last.lock().await)
}

/// Runs `command` and returns its standard output. What it prints on standard error is handled as in [`run`].
pub(super) async fn capture(
    output: Output,
    step: &Step,
    what: &str,
    mut command: Command,
) -> Result<Vec<u8>> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    command.stderr(if output.verbose { Stdio::inherit() } else { Stdio::piped() });
    let mut child = command.spawn().with_context(|| format!("cannot run {what}"))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let last = tokio::sync::Mutex::new(VecDeque::new());
    let read = async {
        let mut bytes = Vec::new();
        if let Some(mut stdout) = stdout {
            tokio::io::AsyncReadExt::read_to_end(&mut stdout, &mut bytes).await?;
        }
        io::Result::Ok(bytes)
    };
    let (status, bytes, followed) = tokio::join!(child.wait(), read, follow(stderr, step, &last));
    followed.with_context(|| format!("cannot read what {what} says"))?;
    check(status?, what, &*last.lock().await)?;
    Ok(bytes?)
}

/// Shows each line as the step's present doing and keeps the last ones.
async fn follow(
    stream: Option<impl AsyncRead + Unpin>,
    step: &Step,
    last: &tokio::sync::Mutex<VecDeque<String>>,
) -> io::Result<()> {
    let Some(stream) = stream else { return Ok(()) };
    let mut lines = BufReader::new(stream).split(b'\n');
    while let Some(line) = lines.next_segment().await? {
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        if line.is_empty() {
            continue;
        }
        step.now(&line);
        let mut last = last.lock().await;
        if last.len() == LINES_SHOWN_MAX {
            last.pop_front();
        }
        last.push_back(line);
    }
    Ok(())
}

fn check(status: ExitStatus, what: &str, last: &VecDeque<String>) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    let mut stderr = anstream::stderr().lock();
    for line in last {
        io::Write::write_fmt(&mut stderr, format_args!("{line}\n"))?;
    }
    let failure = Failure::new(format!("{what} failed ({status})"));
    Err(if last.is_empty() {
        failure
    } else {
        failure.hint("mend what is shown above; --verbose shows all of it")
    }
    .into())
}
