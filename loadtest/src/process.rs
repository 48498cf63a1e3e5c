//! Server processes that a benchmark starts: on a core of their own, watched while they start, ended with it.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use crate::cost;
use crate::http::Target;

/// A server has this long to accept connections after its start.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// A server has this long to end after SIGTERM: more than Kiln gives to calls under way.
const STOP_TIMEOUT: Duration = Duration::from_mins(1);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// True once the benchmark was asked to stop.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Turns SIGINT and SIGTERM into [`interrupted`], so that a benchmark ends by cleaning up. Call before any other
/// thread is started.
///
/// # Errors
/// If signals cannot be blocked.
pub fn catch_interrupts() -> Result<()> {
    let signals = stop_signals();
    signals.thread_block().context("cannot block signals")?;
    thread::spawn(move || {
        while signals.wait().is_ok() {
            INTERRUPTED.store(true, Ordering::Relaxed);
        }
    });
    Ok(())
}

fn stop_signals() -> SigSet {
    SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM])
}

/// Starts a command on `core` alone if one is given. A child inherits affinity and blocked signals of the thread that
/// starts it: that is a thread of its own, in which neither is changed for anybody else.
///
/// # Errors
/// If it cannot be started.
pub fn spawn(mut command: Command, core: Option<usize>) -> Result<Child> {
    let program = command.get_program().to_string_lossy().into_owned();
    thread::scope(|scope| {
        scope
            .spawn(move || -> Result<Child> {
                core.map_or(Ok(()), cost::pin_to_core)?;
                stop_signals().thread_unblock()?;
                Ok(command.spawn()?)
            })
            .join()
            .expect("starting a process does not panic")
    })
    .with_context(|| format!("cannot start {program}; is it installed and built?"))
}

/// A running server; dropping it ends it and waits for that.
#[derive(Debug)]
pub struct Server {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts `command`, on `core` alone if one is given, with its output in `NAME.log` in `folder`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(name: &str, mut command: Command, core: Option<usize>, folder: &Path) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let output = File::create(&log).with_context(|| log.display().to_string())?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = spawn(command, core)?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until something accepts connections at `target`.
    ///
    /// # Errors
    /// With the last words of its log, if it ends or takes more than 30 s.
    pub fn wait_until_ready(&mut self, target: &Target) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        while target.connect().is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended at once ({status}):\n{}", self.name, self.last_words());
            }
            ensure!(!interrupted(), "interrupted");
            ensure!(
                Instant::now() < deadline,
                "{} accepts no connection at {target:?}:\n{}",
                self.name,
                self.last_words()
            );
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// The end of what it printed.
    pub fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn stop(&mut self) -> io::Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        // An error means that it ended in between; `wait` tells.
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).unwrap_or_default();
        let deadline = Instant::now() + STOP_TIMEOUT;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                eprintln!("{} does not end by itself; it is killed", self.name);
                self.child.kill()?;
                self.child.wait()?;
                return Ok(());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("cannot end {}: {error}", self.name);
        }
    }
}

/// A port of 127.0.0.1 on which nothing listens, not even a leftover that shares its port: binding without
/// `SO_REUSEPORT` fails where anyone else is bound.
///
/// # Errors
/// If no port is free.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("no port is free")?;
    let port = listener.local_addr()?.port();
    drop(listener);
    let everywhere =
        TcpListener::bind(("0.0.0.0", port)).with_context(|| format!("port {port} is not free"))?;
    drop(everywhere);
    Ok(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_ends_at_once_is_reported_with_its_last_words() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such flag >&2; exit 3"]);
        let mut server = Server::start("sh", command, None, folder.path()).expect("starts");
        let target = Target::loopback(free_port().expect("a port"));
        let error = server.wait_until_ready(&target).expect_err("ends").to_string();
        assert!(error.contains("no such flag") && error.contains("exit status: 3"), "{error}");
    }

    #[test]
    fn a_dropped_server_ends_by_itself_though_the_benchmark_catches_signals() {
        catch_interrupts().expect("blocks");
        let begin = Instant::now();
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = Command::new("sleep");
        command.arg("1000");
        let server = Server::start("sleep", command, Some(0), folder.path()).expect("starts");
        let pid = server.pid();
        drop(server);
        assert!(cost::cpu_time(pid).is_err());
        assert!(begin.elapsed() < STOP_TIMEOUT, "it was killed");
    }
}
