//! What Kiln's servers have in common as programs: options, data folder, signals, the last word on standard error.

#![allow(clippy::doc_markdown, reason = "documentation of options is the help text that people read")]

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::telemetry::{LogFormat, TelemetryError, start_logs};

/// How a server writes its own log.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// Form of Kiln's own log
    #[arg(long, env = "FN_LOG_FORMAT", value_enum, value_name = "FORMAT", default_value_t)]
    pub log_format: LogFormat,
    /// What is logged: error, warn, info, debug or trace, also per module as in info,kiln_agent=debug
    #[arg(long, env = "FN_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
}

impl LogArgs {
    /// Sends the process's log to standard error.
    ///
    /// # Errors
    /// See [`start_logs`].
    pub fn start(&self) -> Result<(), TelemetryError> {
        start_logs(self.log_format, &self.log_level)
    }
}

/// A server's folder: ours alone, and locked while the process lives.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    _lock: File,
}

impl DataFolder {
    /// Makes the folder if it is missing, for its owner alone, and locks it.
    ///
    /// # Errors
    /// It cannot be made or written to, or another process has it.
    pub fn open(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path)?;
        let hint =
            || format!("cannot use the data folder {}; choose another with --data-dir", path.display());
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).with_context(hint)?;
        let file = path.join("lock");
        let lock = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(file)
            .with_context(hint)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => bail!(
                "another Kiln uses the data folder {}; stop it or choose another folder with --data-dir",
                path.display()
            ),
            Err(TryLockError::Error(error)) => Err(error).with_context(hint),
        }
    }

    /// Where it is, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What `name` holds, made by `make` and kept when it is asked for first.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn remembered(&self, name: &str, make: impl FnOnce() -> String) -> Result<String> {
        let path = self.path.join(name);
        match fs::read_to_string(&path) {
            Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
        let value = make();
        fs::write(&path, format!("{value}\n")).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(value)
    }
}

/// A token that is cancelled when the process is told to stop, by SIGTERM or Ctrl-C. Needs a runtime.
///
/// # Errors
/// The signals cannot be caught.
pub fn stop_on_signals() -> io::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        // Both are cancel-safe; either ends the process.
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        told.cancel();
    });
    Ok(stop)
}

/// Runs a server to its end on a runtime of its own, and says in one line why it could not, if so.
pub fn run(name: &str, server: impl Future<Output = Result<()>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let ended = runtime.context("cannot make a runtime").and_then(|runtime| runtime.block_on(server));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_user_at_a_time() {
        let parent = tempfile::tempdir().expect("a folder");
        let path = parent.path().join("deep/down");
        let first = DataFolder::open(&path).expect("opens");
        let error = DataFolder::open(&path).expect_err("is locked");
        assert!(error.to_string().contains("another Kiln"), "{error}");
        drop(first);
        DataFolder::open(&path).expect("opens again");
    }

    #[test]
    fn what_was_made_once_is_remembered() {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = DataFolder::open(parent.path()).expect("opens");
        assert_eq!(folder.remembered("name", || "first".to_owned()).expect("is made"), "first");
        assert_eq!(folder.remembered("name", || "second".to_owned()).expect("is read"), "first");
    }
}
