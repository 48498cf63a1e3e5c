//! A program of the fleet as a process on a host of its own.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fleet::PATIENCE;
use crate::network::Host;

/// How often it is looked whether it takes calls.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A program of the fleet: what it is started with, and its process while it lives.
pub(crate) struct Part {
    pub(crate) host: Host,
    folder: PathBuf,
    program: PathBuf,
    arguments: Vec<String>,
    child: Option<Child>,
    /// Where in the log this life begins.
    log_begin: usize,
}

impl Part {
    pub(crate) fn new(host: Host, folder: PathBuf, program: &str, arguments: Vec<String>) -> Self {
        fs::create_dir_all(&folder).expect("a folder");
        Self { host, folder, program: built(program), arguments, child: None, log_begin: 0 }
    }

    /// Starts it and waits until it says that it takes calls.
    pub(crate) fn start(&mut self) {
        self.begin();
        self.until_logged(" takes calls; ");
    }

    /// Starts it.
    pub(crate) fn begin(&mut self) {
        assert!(self.child.is_none(), "it lives already");
        self.log_begin = self.whole_log().len();
        let log = File::options().create(true).append(true).open(self.log_file()).expect("a log");
        let mut command = self.host.command(&self.program);
        command.args(&self.arguments).args(["--log-format", "json", "--data-dir"]).arg(self.data());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().expect("starts"));
    }

    /// Waits until this life has said `words`.
    pub(crate) fn until_logged(&mut self, words: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.log().contains(words) {
            let ended = self.child.as_mut().expect("was started").try_wait().expect("is ours");
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "it did not say {words:?}:\n{}",
                self.log()
            );
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until it has ended with an error, for a reason that names `words`.
    pub(crate) fn until_failed(&mut self, words: &str) {
        let mut child = self.child.take().expect("was started");
        let deadline = Instant::now() + PATIENCE;
        while child.try_wait().expect("is ours").is_none() {
            assert!(Instant::now() < deadline, "it did not end:\n{}", self.log());
            std::thread::sleep(LOOK_EVERY);
        }
        let status = child.wait().expect("is ours");
        assert!(!status.success() && self.log().contains(words), "{status}:\n{}", self.log());
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it lives");
        kill(Pid::from_raw(child.id().cast_signed()), signal).expect("it lives");
    }

    /// Kills it at once.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.take().expect("it lived").wait().expect("it is ours");
    }

    /// Lets it end by itself.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.child.take().expect("it lived").wait().expect("it is ours");
        assert!(status.success(), "{status}:\n{}", self.log());
    }

    /// What its folder is called: an agent's node.
    pub(crate) fn name(&self) -> String {
        self.folder.file_name().expect("a name").to_string_lossy().into_owned()
    }

    /// Its data folder.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// What it said in this life.
    pub(crate) fn log(&self) -> String {
        self.whole_log().split_off(self.log_begin)
    }

    fn log_file(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn whole_log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("== {}\n{}", self.folder.display(), self.whole_log());
        }
        if let Some(mut child) = self.child.take() {
            // A stopped process is killed all the same; it is gone if that fails.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// A program of the workspace's build.
pub(crate) fn built(name: &str) -> PathBuf {
    let path = Path::new(assert_cmd::cargo::cargo_bin!("kiln")).with_file_name(name);
    assert!(path.exists(), "{} is missing: build it with `cargo build --workspace`", path.display());
    path
}
