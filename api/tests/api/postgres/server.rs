//! A real Postgres server of a test's own, in a folder of its own, that ends with the test.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User, chown};
use tempfile::TempDir;

/// The server refuses to run as root; Debian's package makes this user.
const USER: &str = "postgres";
/// Longest time for a server to start or to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is looked whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Where a server listens: a folder with its socket.
#[derive(Debug, Clone)]
pub(crate) struct Address(pub(crate) PathBuf);

impl Address {
    /// The URL of a database.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://{USER}@localhost/{database}?host={}", self.0.display())
    }
}

/// A server. Killed when dropped, and when the test's process dies.
pub(crate) struct Server {
    pub(crate) address: Address,
    home: TempDir,
    process: Option<Child>,
}

impl Server {
    /// Makes a server with its files and starts it.
    pub(crate) async fn start() -> Self {
        let home = tempfile::tempdir().expect("a folder");
        if Uid::effective().is_root() {
            let user = User::from_name(USER).expect("users can be read").expect("postgresql is installed");
            chown(home.path(), Some(user.uid), Some(user.gid)).expect("the folder is ours");
        }
        let data = home.path().join("data").display().to_string();
        let made = as_user("initdb", home.path())
            .args(["-D", &data, "-A", "trust", "-U", USER, "-E", "UTF8"])
            // A collation that is not that of bytes, as servers often have.
            .args(["--locale=C", "--lc-collate=C.UTF-8", "--lc-ctype=C.UTF-8"])
            .args(["--no-sync", "--no-instructions"])
            .output()
            .expect("initdb runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut server = Self { address: Address(home.path().to_owned()), home, process: None };
        server.begin().await;
        server
    }

    /// Starts it again after [`Self::stop`].
    pub(crate) async fn begin(&mut self) {
        self.begin_with(&[], "").await;
    }

    /// The same, with a certificate and a port on loopback.
    pub(crate) async fn begin_with_tls(&mut self, certificate: &str, key: &str, port: u16) {
        let data = self.home.path().join("data");
        for (name, pem) in [("server.crt", certificate), ("server.key", key)] {
            let path = data.join(name);
            fs::write(&path, pem).expect("written");
            fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("ours");
            let owner = fs::metadata(&data).expect("the server's folder").uid();
            chown(&path, Some(owner.into()), None).expect("the file is ours");
        }
        self.begin_with(&["ssl=on", &format!("port={port}")], "127.0.0.1").await;
    }

    async fn begin_with(&mut self, settings: &[&str], listen: &str) {
        let log = File::create(self.home.path().join("log")).expect("a log");
        let data = self.home.path().join("data").display().to_string();
        let mut command = as_user("postgres", self.home.path());
        command.args(["-D", &data, "-h", listen, "-k", &self.home.path().display().to_string()]);
        let always = ["fsync=off", "shared_buffers=32MB", "max_connections=200", "logging_collector=off"];
        for setting in always.iter().chain(settings) {
            command.args(["-c", setting]);
        }
        let process = command.stderr(log.try_clone().expect("a log")).stdout(log).spawn();
        let process = process.expect("postgres runs");
        // Its first line is the process, its eighth the state; the file of one that was killed is there still.
        let (own, file) = (process.id().to_string(), self.home.path().join("data/postmaster.pid"));
        self.process = Some(process);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = fs::read_to_string(&file).unwrap_or_default();
            let lines: Vec<&str> = text.lines().map(str::trim).collect();
            if lines.first() == Some(&own.as_str()) && lines.get(7) == Some(&"ready") {
                return;
            }
            assert!(Instant::now() < deadline, "the server does not answer:\n{}", self.log());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }

    /// Ends the server at once; connections break. Its files stay.
    pub(crate) fn stop(&mut self) {
        if self.process.is_some() {
            self.thaw();
        }
        let Some(process) = self.process.take() else { return };
        // The server's immediate shutdown: its own processes go with it.
        send(process.id(), Signal::SIGQUIT);
        ended(process);
    }

    /// Kills all its processes, as a power cut would. Its files stay.
    pub(crate) fn kill(&mut self) {
        self.signal_all(Signal::SIGKILL);
        ended(self.process.take().expect("it runs"));
    }

    /// Stops all its processes where they are: connections stay and nobody answers.
    pub(crate) fn freeze(&self) {
        self.signal_all(Signal::SIGSTOP);
    }

    /// Lets them go on.
    pub(crate) fn thaw(&self) {
        self.signal_all(Signal::SIGCONT);
    }

    /// What a query gives, a row a line; asked with the server's own client.
    pub(crate) fn query(&self, sql: &str) -> String {
        let mut command = as_user("psql", self.home.path());
        command.args([
            "-h",
            &self.home.path().display().to_string(),
            "-U",
            USER,
            "-d",
            "postgres",
            "-Atqc",
            sql,
        ]);
        let output = command.output().expect("psql runs");
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }

    fn signal_all(&self, signal: Signal) {
        let process = self.process.as_ref().expect("it runs");
        // The parent first: it makes no new ones then.
        for process in [process.id()].into_iter().chain(children(process.id())) {
            send(process, signal);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn ended(mut process: Child) {
    let deadline = Instant::now() + PATIENCE;
    while process.try_wait().expect("it is ours").is_none() {
        assert!(Instant::now() < deadline, "the server does not end");
        thread::sleep(LOOK_EVERY);
    }
}

/// Signals a process, unless it ended meanwhile.
fn send(process: u32, signal: Signal) {
    let sent = kill(Pid::from_raw(process.cast_signed()), signal);
    assert!(matches!(sent, Ok(()) | Err(Errno::ESRCH)), "{sent:?}");
}

fn children(of: u32) -> Vec<u32> {
    let listed = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    listed.split_whitespace().filter_map(|id| id.parse().ok()).collect()
}

/// A program of the server as its user, in `folder`, which ends with this process.
fn as_user(program: &str, folder: &Path) -> Command {
    let mut command = Command::new("setpriv");
    if Uid::effective().is_root() {
        command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]);
    }
    command.args(["--pdeathsig", "QUIT"]).arg(program_path(program));
    command.current_dir(folder).stdin(Stdio::null()).process_group(0);
    command
}

/// Debian keeps the server's programs off the path, by version.
fn program_path(program: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions
        .map(|version| version.path().join("bin").join(program))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found.pop().unwrap_or_else(|| program.into())
}
