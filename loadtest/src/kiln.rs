//! Kiln as its users start and call it. The command lines of its binaries stand here and nowhere else.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::docker::Image;
use crate::http::{self, Target};
use crate::process::{Server, free_port};

/// Where Kiln's binaries are.
#[derive(Debug, Clone)]
pub struct Binaries(pub PathBuf);

impl Binaries {
    /// The path of one.
    ///
    /// # Errors
    /// If it was not built.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        ensure!(path.exists(), "{} is missing; build it with: make bench", path.display());
        Ok(path)
    }
}

/// A running Kiln: the processes of it, and where it takes calls.
#[derive(Debug)]
pub struct Kiln {
    servers: Vec<Server>,
    /// Its edge.
    pub target: Target,
    link: Option<SocketAddr>,
}

/// Longest time for a node to link up.
const NODE_WITHIN: Duration = Duration::from_secs(10);

/// Where the CA of a benchmark's fleet is.
pub fn ca_folder(folder: &Path) -> PathBuf {
    folder.join("ca")
}

impl Kiln {
    /// Edge, API and agent in one process, at a free port, with its data in `folder`.
    ///
    /// # Errors
    /// If it does not start.
    pub fn single_node(binaries: &Binaries, folder: &Path) -> Result<Self> {
        let port = free_port()?;
        let mut command = Command::new(binaries.path("kiln")?);
        command.args(["start", "--port", &port.to_string(), "--data-dir"]).arg(folder.join("single"));
        let mut server = Server::start("kiln", command, None, folder)?;
        let target = Target::loopback(port);
        server.wait_until_ready(&target)?;
        Ok(Self { servers: vec![server], target, link: None })
    }

    /// Edge and API in one process, the agent in another.
    ///
    /// # Errors
    /// If one of them does not start.
    pub fn two_processes(binaries: &Binaries, folder: &Path) -> Result<Self> {
        Self::edge(binaries, folder, None)?.with_agent(binaries, folder)
    }

    /// The same with a queue of detached calls elsewhere.
    ///
    /// # Errors
    /// If one of them does not start.
    pub fn two_processes_with_queue(binaries: &Binaries, folder: &Path, queue_url: &str) -> Result<Self> {
        Self::edge_with_queue(binaries, folder, queue_url)?.with_agent(binaries, folder)
    }

    fn with_agent(mut self, binaries: &Binaries, folder: &Path) -> Result<Self> {
        let token = folder.join("join-token");
        let made = Command::new(binaries.path("kiln")?)
            .args(["node", "token", "--ca-dir"])
            .arg(ca_folder(folder))
            .output()?;
        ensure!(made.status.success(), "kiln node token: {}", String::from_utf8_lossy(&made.stderr));
        std::fs::write(&token, made.stdout)?;
        let port = free_port()?;
        let mut command = Command::new(binaries.path("kiln-agent")?);
        command
            .args(["--listen", &format!("127.0.0.1:{port}"), "--balancer", &self.link()?.to_string()])
            .arg("--join-token-file")
            .arg(token)
            .arg("--data-dir")
            .arg(folder.join("agent"));
        let mut agent = Server::start("kiln-agent", command, None, folder)?;
        agent.wait_until_ready(&Target::loopback(port))?;
        // Servers are ended in this order: the edge before the agent.
        self.servers.push(agent);
        Ok(self)
    }

    /// The edge alone, with one worker on `core`. Agents of the CA in [`ca_folder`] can link up.
    ///
    /// # Errors
    /// If it does not start.
    pub fn edge(binaries: &Binaries, folder: &Path, core: Option<usize>) -> Result<Self> {
        Self::start_edge(binaries, folder, core, &[])
    }

    /// The edge alone, on any core, with a queue of detached calls elsewhere.
    ///
    /// # Errors
    /// If it does not start.
    pub fn edge_with_queue(binaries: &Binaries, folder: &Path, queue_url: &str) -> Result<Self> {
        Self::start_edge(binaries, folder, None, &["--queue-url", queue_url])
    }

    fn start_edge(binaries: &Binaries, folder: &Path, core: Option<usize>, more: &[&str]) -> Result<Self> {
        let made = Command::new(binaries.path("kiln")?)
            .args(["ca", "init", "--ca-dir"])
            .arg(ca_folder(folder))
            .output()?;
        ensure!(made.status.success(), "kiln ca init: {}", String::from_utf8_lossy(&made.stderr));
        let (port, link_port) = (free_port()?, free_port()?);
        let mut command = Command::new(binaries.path("kiln-lb")?);
        command
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--link-listen", &format!("127.0.0.1:{link_port}")])
            .args(["--workers", if core.is_some() { "1" } else { "2" }])
            .arg("--ca-dir")
            .arg(ca_folder(folder))
            .arg("--data-dir")
            .arg(folder.join("lb"))
            .args(more);
        let mut server = Server::start("kiln-lb", command, core, folder)?;
        let target = Target::loopback(port);
        server.wait_until_ready(&target)?;
        Ok(Self { servers: vec![server], target, link: Some(SocketAddr::from(([127, 0, 0, 1], link_port))) })
    }

    /// Where agents link up.
    ///
    /// # Errors
    /// If it is one process.
    pub fn link(&self) -> Result<SocketAddr> {
        self.link.context("a single node has no link")
    }

    /// Waits until calls with this request are answered: a node has linked up.
    ///
    /// # Errors
    /// If none does in time.
    pub fn wait_for_node(&self, request: &[u8]) -> Result<()> {
        let begun = Instant::now();
        loop {
            let answered =
                self.target.connect().ok().and_then(|mut connection| connection.exchange(request).ok());
            if answered == Some(200) {
                return Ok(());
            }
            ensure!(begun.elapsed() < NODE_WITHIN, "no node has linked up: the answer was {answered:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Detached calls of the function that wait, and those that nodes have.
    ///
    /// # Errors
    /// If the queue does not answer.
    pub fn queued(&self, function_id: &str) -> Result<(u64, u64)> {
        let queue = http::json(&self.target, "GET", "/kiln/v1/queue", None)?;
        let functions = queue["functions"].as_array().context("a queue without functions")?;
        let count = |of: &Value, what: &str| of[what].as_u64().unwrap_or_default();
        Ok(functions
            .iter()
            .find(|function| function["fn_id"] == *function_id)
            .map_or((0, 0), |function| (count(function, "queued"), count(function, "running"))))
    }

    /// Its processes.
    pub fn pids(&self) -> Vec<u32> {
        self.servers.iter().map(Server::pid).collect()
    }

    /// Creates an app and returns its id.
    ///
    /// # Errors
    /// If the API refuses.
    pub fn create_app(&self, name: &str) -> Result<String> {
        self.create("/v2/apps", &json!({ "name": name }))
    }

    /// Creates a function of `image` (any name will do where no agent runs it) and returns its id.
    ///
    /// # Errors
    /// If the API refuses.
    pub fn create_function(&self, app_id: &str, name: &str, image: &str) -> Result<String> {
        self.create(
            "/v2/fns",
            &json!({ "app_id": app_id, "name": name, "image": image, "memory": 64, "idle_timeout": 300 }),
        )
    }

    /// Creates an app with one function of `image` and returns the request that calls it.
    ///
    /// # Errors
    /// If the API refuses.
    pub fn deploy(&self, image: &Image) -> Result<Vec<u8>> {
        let app = self.create_app("bench")?;
        Ok(call(&self.create_function(&app, "echo", &image.reference)?))
    }

    fn create(&self, path: &str, what: &Value) -> Result<String> {
        let made = http::json(&self.target, "POST", path, Some(what))?;
        Ok(made["id"].as_str().with_context(|| format!("{path} answered without an id: {made}"))?.to_owned())
    }
}

/// The request that calls a function with 12 bytes.
pub fn call(function_id: &str) -> Vec<u8> {
    call_with(function_id, b"hello world\n")
}

/// A call with a body of its own.
pub fn call_with(function_id: &str, body: &[u8]) -> Vec<u8> {
    http::request("POST", &format!("/invoke/{function_id}"), &[("Content-Type", "text/plain")], body)
}

/// The request that has the same call made later.
pub fn detached_call(function_id: &str) -> Vec<u8> {
    let headers = [("Content-Type", "text/plain"), ("Fn-Invoke-Type", "detached")];
    http::request("POST", &format!("/invoke/{function_id}"), &headers, b"hello world\n")
}

/// The same request as an agent puts it to a function's socket.
pub fn direct_call() -> Vec<u8> {
    let headers = [
        ("Content-Type", "text/plain"),
        ("Fn-Call-Id", "01CQ4S2K8JNG8G00GZJ0000001"),
        ("Fn-Deadline", "2100-01-01T00:00:00Z"),
    ];
    http::request("POST", "/call", &headers, b"hello world\n")
}
