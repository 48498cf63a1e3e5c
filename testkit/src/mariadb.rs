//! A real MariaDB server of a test's own, in a folder of its own, that ends with the test.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::signal::Signal;
use nix::unistd::{Uid, User, chown};
use sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection};
use tempfile::TempDir;

use crate::process::{ended, send};
use crate::until;

/// Debian's package makes this user; the server does not like to be root.
const USER: &str = "mysql";

/// Where a server listens: its socket.
#[derive(Debug, Clone)]
pub struct Address(
    /// The socket.
    pub PathBuf,
);

impl Address {
    /// The URL of a database.
    pub fn url(&self, database: &str) -> String {
        format!("mysql://root@localhost/{database}?socket={}", self.0.display())
    }

    /// Makes an empty database; its URL.
    pub async fn database(&self) -> String {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let name = format!("kiln_{}_{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let mut admin = self.connect("mysql").await.expect("the server answers");
        admin.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.expect("a database");
        self.url(&name)
    }

    /// A connection beside Kiln's.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn connect(&self, database: &str) -> Result<MySqlConnection, sqlx::Error> {
        MySqlConnection::connect(&self.url(database)).await
    }
}

/// A server. Killed when dropped, and when the test's process dies.
#[derive(Debug)]
pub struct Server {
    /// What its `innodb-flush-log-at-trx-commit` is.
    flush: u8,
    home: TempDir,
    process: Option<Child>,
}

impl Server {
    /// Makes a server with its files and starts it. Its root needs no password. What it acknowledges survives its own
    /// death, not the machine's.
    pub async fn start() -> Self {
        Self::start_with(2).await
    }

    /// The same, with the settings of a server in production: what it acknowledges is on disk.
    pub async fn start_durable() -> Self {
        Self::start_with(1).await
    }

    async fn start_with(flush: u8) -> Self {
        let home = tempfile::tempdir().expect("a folder");
        if Uid::effective().is_root() {
            let user =
                User::from_name(USER).expect("users can be read").expect("mariadb-server is installed");
            chown(home.path(), Some(user.uid), Some(user.gid)).expect("the folder is ours");
        }
        let made = as_user("mariadb-install-db", home.path())
            .args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"])
            .arg(format!("--datadir={}", home.path().join("data").display()))
            // Its names of temporary tables are not its own in a folder that several use.
            .arg(format!("--tmpdir={}", home.path().display()))
            .output()
            .expect("mariadb-install-db runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut server = Self { flush, home, process: None };
        server.begin().await;
        server
    }

    /// Where it listens.
    pub fn address(&self) -> Address {
        Address(self.socket())
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.home.path().join("socket")
    }

    /// The URL of a database.
    pub fn url(&self, database: &str) -> String {
        self.address().url(database)
    }

    /// Makes an empty database; its URL.
    pub async fn database(&self) -> String {
        self.address().database().await
    }

    /// A connection beside Kiln's.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn connect(&self, database: &str) -> Result<MySqlConnection, sqlx::Error> {
        self.address().connect(database).await
    }

    /// Starts it again after [`Self::stop`].
    pub async fn begin(&mut self) {
        self.begin_with(&["--skip-networking".to_owned()]).await;
    }

    /// The same, with a certificate and a port on loopback.
    pub async fn begin_with_tls(&mut self, certificate: &str, key: &str, port: u16) {
        let file = |name: &str, pem: &str| {
            let path = self.home.path().join(name);
            fs::write(&path, pem).expect("written");
            fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("ours");
            let owner = fs::metadata(self.home.path()).expect("the server's folder").uid();
            chown(&path, Some(owner.into()), None).expect("the file is ours");
            path.display().to_string()
        };
        let options = [
            format!("--ssl-cert={}", file("server.crt", certificate)),
            format!("--ssl-key={}", file("server.key", key)),
            format!("--port={port}"),
            "--bind-address=127.0.0.1".to_owned(),
        ];
        self.begin_with(&options).await;
    }

    async fn begin_with(&mut self, options: &[String]) {
        let log = File::create(self.home.path().join("log")).expect("a log");
        let process = as_user("mariadbd", self.home.path())
            .args(["--no-defaults", "--innodb-buffer-pool-size=64M"])
            .args(options)
            .arg(format!("--innodb-flush-log-at-trx-commit={}", self.flush))
            .arg(format!("--innodb-flush-method={}", if self.flush == 1 { "fsync" } else { "nosync" }))
            .arg("--skip-log-bin")
            .arg(format!("--datadir={}", self.home.path().join("data").display()))
            .arg(format!("--tmpdir={}", self.home.path().display()))
            .arg(format!("--socket={}", self.socket().display()))
            .stderr(log.try_clone().expect("a log"))
            .stdout(log)
            .spawn();
        self.process = Some(process.expect("mariadbd runs"));
        until("the server answers", async || self.connect("mysql").await.ok()).await;
    }

    /// Kills the server; connections break. Its files stay.
    pub fn stop(&mut self) {
        if self.process.is_some() {
            self.thaw();
        }
        let Some(process) = self.process.take() else { return };
        send(process.id(), Signal::SIGKILL);
        ended(process);
    }
}

impl Server {
    /// What a query gives, a row a line; asked with the server's own client.
    pub fn query(&self, database: &str, sql: &str) -> String {
        let mut command = as_user("mariadb", self.home.path());
        command.args(["--no-defaults", "--user=root", "--batch", "--skip-column-names"]);
        command.arg(format!("--socket={}", self.socket().display()));
        let output = command.args([&format!("--database={database}"), "--execute", sql]).output();
        let output = output.expect("mariadb runs");
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }

    /// Its process, which runs.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    /// Stops it where it is: connections stay and nobody answers.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
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
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command.current_dir(folder).stdin(Stdio::null()).process_group(0);
    command
}
