//! Two balancers and four agents as processes, each on a host of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::images::docker;
use crate::network::{Host, Network};

/// Longest wait for what takes a moment on a machine that has nothing else to do.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);
/// How often it is looked whether something has come about.
const LOOK_EVERY: Duration = Duration::from_millis(5);

const API_PORT: u16 = 8080;
const LINK_PORT: u16 = 8082;

/// A program of the fleet: what it is started with, and its process while it lives.
pub(crate) struct Part {
    pub(crate) host: Host,
    folder: PathBuf,
    program: PathBuf,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Part {
    fn new(host: Host, folder: PathBuf, program: &str, arguments: Vec<String>) -> Self {
        fs::create_dir_all(&folder).expect("a folder");
        Self { host, folder, program: built(program), arguments, child: None }
    }

    /// Starts it and waits until it says that it takes calls.
    pub(crate) fn start(&mut self) {
        assert!(self.child.is_none(), "it lives already");
        let log = File::create(self.log_file()).expect("a log");
        let mut command = self.host.command(&self.program);
        command
            .args(&self.arguments)
            .args(["--log-format", "json", "--data-dir"])
            .arg(self.folder.join("data"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().expect("starts"));
        let deadline = Instant::now() + PATIENCE;
        while !self.log().contains(" takes calls; ") {
            let ended = self.child.as_mut().expect("was started").try_wait().expect("is ours");
            assert!(ended.is_none() && Instant::now() < deadline, "it takes no calls:\n{}", self.log());
            std::thread::sleep(LOOK_EVERY);
        }
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

    fn log_file(&self) -> PathBuf {
        self.folder.join("log")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("== {}\n{}", self.folder.display(), self.log());
        }
        if let Some(mut child) = self.child.take() {
            // A stopped process is killed all the same; it is gone if that fails.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// The fleet.
pub(crate) struct Fleet {
    pub(crate) balancers: Vec<Part>,
    pub(crate) agents: Vec<Part>,
    /// Where load comes from.
    pub(crate) clients: Vec<Host>,
    pub(crate) client: Client,
    nodes: Vec<String>,
    // Last: what runs on it ends before.
    network: Network,
    pub(crate) folder: TempDir,
}

impl Fleet {
    /// Starts so many balancers on one database, and agents of two containers' room each.
    pub(crate) async fn start(balancers: usize, agents: usize, database: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut network = Network::new();
        let ca = folder.path().join("ca").display().to_string();
        kiln(&["ca", "init", "--ca-dir", &ca]);
        let mut parts = Vec::new();
        for number in 1..=balancers {
            let host = network.host();
            let arguments = [
                format!("--listen={}:{API_PORT}", host.address),
                format!("--link-listen={}:{LINK_PORT}", host.address),
                format!("--name=lb{number}"),
                format!("--ca-dir={ca}"),
                format!("--db-url={database}"),
            ];
            let mut part =
                Part::new(host, folder.path().join(format!("lb{number}")), "kiln-lb", arguments.to_vec());
            part.start();
            parts.push(part);
        }
        let links: Vec<String> =
            parts.iter().map(|part| format!("{}:{LINK_PORT}", part.host.address)).collect();
        let clients = (0..balancers).map(|_| network.host()).collect();
        let client = Client::builder().no_proxy().timeout(PATIENCE).build().expect("a client");
        let mut fleet = Self {
            balancers: parts,
            agents: Vec::new(),
            clients,
            client,
            nodes: Vec::new(),
            network,
            folder,
        };
        for number in 1..=agents {
            let host = fleet.network.host();
            let name = format!("node{number}-{}", std::process::id());
            let home = fleet.folder.path().join(&name);
            fs::create_dir_all(&home).expect("a folder");
            let token = home.join("token");
            fs::write(&token, kiln(&["node", "token", "--ca-dir", &ca])).expect("a token");
            let data = home.join("data").display().to_string();
            // Joining asks a balancer, which is on the network.
            let mut join = host.command(built("kiln"));
            join.args(["node", "join", "--name", &name, "--data-dir", &data, "--balancer", &links[0]]);
            join.arg("--token-file").arg(&token);
            let joined = join.output().expect("runs");
            assert!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
            let arguments = [
                format!("--listen={}:8081", host.address),
                format!("--balancer={}", links.join(",")),
                "--memory-mib=512".to_owned(),
            ];
            let mut part = Part::new(host, home, "kiln-agent", arguments.to_vec());
            part.start();
            fleet.agents.push(part);
            fleet.nodes.push(name);
        }
        for balancer in 0..balancers {
            fleet.until("all nodes are up", async |fleet| fleet.up(balancer).await == agents).await;
        }
        fleet
    }

    /// The name of an agent's node.
    pub(crate) fn node(&self, agent: usize) -> &str {
        &self.nodes[agent]
    }

    pub(crate) fn url(&self, balancer: usize, path: &str) -> String {
        format!("http://{}:{API_PORT}{path}", self.balancers[balancer].host.address)
    }

    /// Waits until `holds`; how long that took.
    pub(crate) async fn until(&self, what: &str, holds: impl AsyncFn(&Self) -> bool) -> Duration {
        let begun = Instant::now();
        while !holds(self).await {
            assert!(begun.elapsed() < PATIENCE, "still not: {what}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        begun.elapsed()
    }

    /// A balancer's nodes; none if it does not answer.
    pub(crate) async fn nodes(&self, balancer: usize) -> Vec<Value> {
        let Ok(answer) = self.client.get(self.url(balancer, "/kiln/v1/fleet")).send().await else {
            return Vec::new();
        };
        let fleet: Value = answer.json().await.unwrap_or_default();
        fleet["nodes"].as_array().cloned().unwrap_or_default()
    }

    /// The state of an agent's node at a balancer, if that knows it.
    pub(crate) async fn state(&self, balancer: usize, agent: usize) -> Option<String> {
        let nodes = self.nodes(balancer).await;
        let node = nodes.into_iter().find(|node| node["id"] == self.node(agent))?;
        node["state"].as_str().map(str::to_owned)
    }

    /// How many nodes a balancer gives calls to.
    pub(crate) async fn up(&self, balancer: usize) -> usize {
        self.nodes(balancer).await.iter().filter(|node| node["state"] == "up").count()
    }

    pub(crate) async fn api(
        &self,
        balancer: usize,
        method: Method,
        path: &str,
        body: &Value,
    ) -> (StatusCode, Value) {
        let answer = self.client.request(method, self.url(balancer, path)).json(body).send().await;
        let answer = answer.expect("the balancer answers");
        let status = answer.status();
        (status, answer.json().await.unwrap_or_default())
    }

    /// Makes an app with one function and returns the function's id, which every balancer knows then.
    pub(crate) async fn deploy(&self, app: &str, image: &str) -> String {
        let (status, made) = self.api(0, Method::POST, "/v2/apps", &json!({ "name": app })).await;
        assert_eq!(status, StatusCode::OK, "{made}");
        let function = json!({ "app_id": made["id"], "name": "f", "image": image, "memory": 64 });
        let (status, made) = self.api(0, Method::POST, "/v2/fns", &function).await;
        assert_eq!(status, StatusCode::OK, "{made}");
        let id = made["id"].as_str().expect("an id").to_owned();
        for balancer in 0..self.balancers.len() {
            self.until("the function can be called", async |fleet| {
                fleet.invoke(balancer, &id).await == Some(StatusCode::OK)
            })
            .await;
        }
        id
    }

    /// Calls a function; `None` if the balancer does not answer.
    pub(crate) async fn invoke(&self, balancer: usize, function: &str) -> Option<StatusCode> {
        let answer = self.client.post(self.url(balancer, &format!("/invoke/{function}"))).body("Kiln").send();
        answer.await.ok().map(|answer| answer.status())
    }

    /// A metric of a balancer, summed over the label sets that contain `labels`.
    pub(crate) async fn metric(&self, balancer: usize, name: &str, labels: &str) -> f64 {
        let answer = self.client.get(self.url(balancer, "/metrics")).send().await.expect("answers");
        let text = answer.text().await.expect("text");
        let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(labels));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.agents.clear();
        self.balancers.clear();
        for node in &self.nodes {
            let label = format!("label=kiln.node={node}");
            for id in docker(&["ps", "--all", "--quiet", "--filter", &label]).lines() {
                drop(Command::new("docker").args(["rm", "--force", id]).output());
            }
            for id in docker(&["network", "ls", "--quiet", "--filter", &label]).lines() {
                drop(Command::new("docker").args(["network", "rm", id]).output());
            }
        }
    }
}

/// A program of the workspace's build.
fn built(name: &str) -> PathBuf {
    let path = Path::new(assert_cmd::cargo::cargo_bin!("kiln")).with_file_name(name);
    assert!(path.exists(), "{} is missing: build it with `cargo build --workspace`", path.display());
    path
}

fn kiln(arguments: &[&str]) -> String {
    let output = Command::new(built("kiln")).args(arguments).output().expect("runs");
    assert!(output.status.success(), "kiln {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}
