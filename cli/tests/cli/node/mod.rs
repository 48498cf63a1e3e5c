//! `kiln start` as a process, with real containers: what clients and functions see of it.

#[path = "../../../../agent/tests/support/images.rs"]
mod images;

mod bodies;
mod detached;
mod failures;
mod fleet;
mod https;
mod python;
mod python_image;
mod restart;
mod room;
mod schedules;
mod sharing;
mod syslog;
mod why;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};

use self::images::docker;
use crate::support::Home;

/// Longest wait for what takes a moment on a machine that has nothing else to do.
const PATIENCE: Duration = Duration::from_mins(1);

/// A node: what stays when its Kiln ends. Nothing is left of it however the test ends.
struct Node {
    home: Home,
    memory_mib: u64,
}

impl Node {
    /// A node whose containers may commit so much memory.
    fn with_memory_mib(memory_mib: u64) -> Self {
        Self { home: Home::new(), memory_mib }
    }

    /// Starts Kiln on it and waits until it takes calls.
    fn start(&self) -> Kiln<'_> {
        self.start_with(&[])
    }

    /// As [`Node::start`], with more options.
    fn start_with(&self, options: &[&str]) -> Kiln<'_> {
        let mut command = self.command();
        command.args(options);
        self.start_as(command)
    }

    /// What starts Kiln on it.
    fn command(&self) -> Command {
        let mut command = self.home.process("start --port 0 --memory-mib");
        command.arg(self.memory_mib.to_string());
        command
    }

    fn start_as(&self, command: Command) -> Kiln<'_> {
        let process = Process::start(command, &self.home);
        let url = format!("http://{}", process.address);
        let client = Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        Kiln { node: self, process, url, client }
    }

    /// The name on everything that its Kiln makes in the engine.
    fn label(&self) -> String {
        let id = fs::read_to_string(self.home.path().join("data/node-id")).unwrap_or_default();
        assert!(!id.trim().is_empty(), "the node has no name");
        format!("label=kiln.node={}", id.trim())
    }

    /// Ids of its containers, running or not, that have all of these labels.
    fn containers(&self, labels: &[&str]) -> Vec<String> {
        let own = self.label();
        let mut arguments = vec!["ps", "--all", "--quiet", "--no-trunc", "--filter", &own];
        let labels: Vec<_> = labels.iter().map(|label| format!("label={label}")).collect();
        for label in &labels {
            arguments.extend(["--filter", label]);
        }
        docker(&arguments).lines().map(str::to_owned).collect()
    }

    /// Ids of its functions' containers, running or not.
    fn function_containers(&self) -> Vec<String> {
        self.containers(&["kiln.role=function"])
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !self.home.path().join("data/node-id").exists() {
            return;
        }
        // Any other Kiln of this machine may clear up after a dead one, too: that a removal fails says nothing.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let containers = self.containers(&[]);
            let networks = docker(&["network", "ls", "--quiet", "--filter", &self.label()]);
            if containers.is_empty() && networks.is_empty() {
                return;
            }
            for id in &containers {
                remove(&["rm", "--force", id]);
            }
            for id in networks.lines() {
                remove(&["network", "rm", id]);
            }
            if Instant::now() > deadline {
                eprintln!("left behind: {containers:?} {networks}");
                return;
            }
        }
    }
}

/// Asks the engine to remove something that may be gone already.
fn remove(arguments: &[&str]) {
    drop(Command::new("docker").args(arguments).output().unwrap());
}

/// Waits until `condition` holds.
async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Where Kiln says in its log that it takes calls.
fn address_in(log: &str) -> Option<String> {
    log.lines().find_map(|line| {
        let line: Value = serde_json::from_str(line).ok()?;
        line["message"]
            .as_str()?
            .contains(" takes calls")
            .then(|| line["address"].as_str())?
            .map(str::to_owned)
    })
}

/// A program of Kiln's that takes calls; killed when it is dropped.
struct Process {
    child: Child,
    log: PathBuf,
    address: String,
}

impl Process {
    /// Starts it with its data and its log in `home` and waits until it says that it takes calls.
    fn start(mut command: Command, home: &Home) -> Self {
        let log = home.path().join("kiln.log");
        command.args(["--log-format", "json", "--data-dir"]).arg(home.path().join("data"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        let mut process = Self { child: command.spawn().unwrap(), log, address: String::new() };
        let deadline = Instant::now() + PATIENCE;
        while process.address.is_empty() {
            assert!(process.child.try_wait().unwrap().is_none(), "it ended:\n{}", process.log());
            assert!(Instant::now() < deadline, "it takes no calls:\n{}", process.log());
            if let Some(address) = address_in(&process.log()) {
                process.address = address;
            } else {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        process
    }

    /// What it has written so far.
    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// A field that it has logged.
    fn logged(&self, field: &str) -> String {
        let log = self.log();
        let values = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok()?[field].as_str().map(str::to_owned));
        values.into_iter().next().unwrap_or_else(|| panic!("no {field} in\n{log}"))
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Waits for its own end.
    fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// A Kiln that runs on a node.
struct Kiln<'a> {
    node: &'a Node,
    process: Process,
    url: String,
    client: Client,
}

impl Kiln<'_> {
    /// Runs a command of the CLI against it, which must succeed; returns its standard output.
    fn cli(&self, line: &str) -> String {
        self.node.home.ok(&format!("{line} --api-url {}", self.url))
    }

    /// Asks the API, which must do it.
    async fn api(&self, method: Method, path: &str, body: Value) -> Value {
        let request = self.client.request(method, format!("{}{path}", self.url)).json(&body);
        let answer = request.send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Creates an app and returns its id.
    async fn create_app(&self, name: &str) -> String {
        id_of(&self.api(Method::POST, "/v2/apps", json!({ "name": name })).await)
    }

    /// Creates a function of 64 MiB, with more `fields`, and returns its id.
    async fn create_function(&self, app_id: &str, name: &str, image: &str, fields: Value) -> String {
        let mut function = json!({ "app_id": app_id, "name": name, "image": image, "memory": 64 });
        function.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        id_of(&self.api(Method::POST, "/v2/fns", function).await)
    }

    /// Calls a function.
    async fn invoke(&self, function_id: &str, body: impl Into<reqwest::Body>) -> Response {
        self.client.post(format!("{}/invoke/{function_id}", self.url)).body(body).send().await.unwrap()
    }

    /// The value of a metric, named with its labels; 0 if it was never set.
    async fn metric(&self, name: &str) -> f64 {
        let text =
            self.client.get(format!("{}/metrics", self.url)).send().await.unwrap().text().await.unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until so many calls run.
    async fn runs(&self, calls: usize) {
        eventually("the calls run", async || self.metric("kiln_slots{state=\"busy\"}").await >= calls as f64)
            .await;
    }

    /// Ends it as a power cut does: at once, with everything of it left.
    fn kill(mut self) {
        self.process.signal(Signal::SIGKILL);
        self.process.ended();
    }

    /// Ends it as `kiln stop` does: by itself, and with nothing of it left in the engine.
    fn stop(mut self) {
        self.process.signal(Signal::SIGTERM);
        let status = self.process.ended();
        assert!(status.success(), "{status}:\n{}", self.process.log());
        let left =
            docker(&["ps", "--all", "--no-trunc", "--filter", &self.node.label(), "--format", "{{json .}}"]);
        assert_eq!(left, "", "containers are left:\n{}", self.process.log());
        assert_eq!(docker(&["network", "ls", "--quiet", "--filter", &self.node.label()]), "");
        let sockets = fs::read_dir(self.node.home.path().join("data/iofs")).unwrap();
        let sockets = sockets.filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir());
        assert_eq!(sockets.count(), 0, "directories of sockets are left");
    }
}

fn id_of(made: &Value) -> String {
    made["id"].as_str().unwrap().to_owned()
}
