//! A real Redis server of a test's own, in a folder of its own, that ends with the test.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::process::send;
use crate::{Port, until};

/// Stands for the port in settings.
const PORT: &str = "PORT";

/// A server that writes all it acknowledges to its log first. Killed when dropped, and when the test's process dies.
#[derive(Debug)]
pub struct Server {
    /// On loopback; nobody else's while the server is away.
    pub port: u16,
    _held: Port,
    settings: Vec<String>,
    home: TempDir,
    process: Option<Child>,
}

impl Server {
    /// Starts a server.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts one with more settings, as on its command line.
    pub async fn start_with(settings: &[&str]) -> Self {
        let home = tempfile::tempdir().expect("a folder");
        let settings = settings.iter().map(|&setting| setting.to_owned()).collect();
        let held = Port::take();
        let mut server = Self { port: held.number(), _held: held, settings, home, process: None };
        server.begin().await;
        server
    }

    /// Starts one that speaks TLS alone, with a certificate and its key as PEM.
    pub async fn start_with_tls(certificate: &str, key: &str) -> Self {
        let files = tempfile::tempdir().expect("a folder");
        let paths = [("certificate", certificate), ("key", key)].map(|(name, pem)| {
            let path = files.path().join(name);
            fs::write(&path, pem).expect("written");
            path.display().to_string()
        });
        let [certificate, key] = &paths;
        // The first port is that of --port, which a later one overrides.
        let settings = ["--tls-port", PORT, "--port", "0", "--tls-auth-clients", "no"];
        let files =
            ["--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", certificate];
        Self::start_with(&[settings, files].concat()).await
    }

    /// The URL of a queue in it.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Starts it again after [`Self::kill`], on the same port.
    pub async fn begin(&mut self) {
        assert!(self.began().await, "the server does not begin: {}", self.log());
    }

    /// Kills the server at once. Its files stay.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("it is ours");
            process.wait().expect("it is ours");
        }
    }

    /// Stops it where it is: connections stay and nobody answers.
    pub fn freeze(&self) {
        send(self.process.as_ref().expect("it runs").id(), Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        send(self.process.as_ref().expect("it runs").id(), Signal::SIGCONT);
    }

    /// True once it answers, false if it ended.
    async fn began(&mut self) -> bool {
        let log = File::create(self.home.path().join("log")).expect("a log");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "redis-server", "--bind", "127.0.0.1", "--save", ""]);
        let port = self.port.to_string();
        command.args(["--port", &port, "--dir", &self.home.path().display().to_string()]);
        command.args(["--appendonly", "yes", "--appendfsync", "always"]);
        command.args(self.settings.iter().map(|setting| if setting == PORT { &port } else { setting }));
        command.stdin(Stdio::null()).stderr(log.try_clone().expect("a log")).stdout(log).process_group(0);
        self.process = Some(command.spawn().expect("redis-server is installed"));
        until("the server answers or ends", async || {
            let ended =
                self.process.as_mut().expect("it was started").try_wait().expect("it is ours").is_some();
            let answers = self.log().contains("Ready to accept connections");
            (ended || answers).then_some(!ended)
        })
        .await
    }

    fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
