//! A real Postgres server of a test's own, in a folder of its own, that ends with the test.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::{Uid, User, chown};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tempfile::TempDir;

use crate::process::{children, ended, send};

/// The server refuses to run as root; Debian's package makes this user.
const USER: &str = "postgres";
/// Longest time for a server to start.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is looked whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Where a server listens: a folder with its socket.
#[derive(Debug, Clone)]
pub struct Address(
    /// The folder.
    pub PathBuf,
);

impl Address {
    /// The URL of a database.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}@localhost/{database}?host={}", self.0.display())
    }

    /// Makes an empty schema, which serves as a database and takes less time; its URL.
    pub async fn database(&self) -> String {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let name = format!("kiln_{}_{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let mut admin = self.connect("postgres").await.expect("the server answers");
        admin.execute(AssertSqlSafe(format!("CREATE SCHEMA {name}"))).await.expect("a schema");
        format!("{}&options=-csearch_path%3D{name}", self.url("postgres"))
    }

    /// A connection beside Kiln's.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn connect(&self, database: &str) -> Result<PgConnection, sqlx::Error> {
        PgConnection::connect(&self.url(database)).await
    }
}

/// A server. Killed when dropped, and when the test's process dies.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: Address,
    /// What its `fsync` is.
    fsync: &'static str,
    home: TempDir,
    process: Option<Child>,
}

impl Server {
    /// Makes a server with its files and starts it. What it acknowledges survives its own death, not the machine's.
    pub async fn start() -> Self {
        Self::start_with("off").await
    }

    /// The same, with the settings of a server in production: what it acknowledges is on disk.
    pub async fn start_durable() -> Self {
        Self::start_with("on").await
    }

    async fn start_with(fsync: &'static str) -> Self {
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
        let mut server = Self { address: Address(home.path().to_owned()), fsync, home, process: None };
        server.begin().await;
        server
    }

    /// Starts it again after [`Self::stop`].
    pub async fn begin(&mut self) {
        self.begin_with(&[], "").await;
    }

    /// The same, with a certificate and a port on loopback.
    pub async fn begin_with_tls(&mut self, certificate: &str, key: &str, port: u16) {
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
        command.args(["-c", &format!("fsync={}", self.fsync)]);
        let always = ["shared_buffers=32MB", "max_connections=200", "logging_collector=off"];
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
    pub fn stop(&mut self) {
        if self.process.is_some() {
            self.thaw();
        }
        let Some(process) = self.process.take() else { return };
        // The server's immediate shutdown: its own processes go with it.
        send(process.id(), Signal::SIGQUIT);
        ended(process);
    }

    /// Kills all its processes, as a power cut would. Its files stay.
    pub fn kill(&mut self) {
        self.signal_all(Signal::SIGKILL);
        ended(self.process.take().expect("it runs"));
    }

    /// Stops all its processes where they are: connections stay and nobody answers.
    pub fn freeze(&self) {
        self.signal_all(Signal::SIGSTOP);
    }

    /// Lets them go on.
    pub fn thaw(&self) {
        self.signal_all(Signal::SIGCONT);
    }

    /// What a query gives, a row a line; asked with the server's own client.
    pub fn query(&self, sql: &str) -> String {
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
