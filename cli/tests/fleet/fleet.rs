//! Balancers and agents as processes, each on a host of its own, and what is asked of them.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::images::docker;
use crate::network::{Host, Network};
use crate::part::{Part, built};

/// Longest wait for what takes a moment on a machine that has nothing else to do.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);
/// How often it is looked whether something has come about.
const LOOK_EVERY: Duration = Duration::from_millis(5);

const API_PORT: u16 = 8080;
const CALLS_PORT: u16 = 8081;
const LINK_PORT: u16 = 8082;

/// Memory of each node for containers, MiB: room for eight of the tests' functions.
pub(crate) const NODE_MIB: u64 = 512;
/// Memory of a function, MiB.
pub(crate) const FUNCTION_MIB: u64 = 64;

/// The fleet.
pub(crate) struct Fleet {
    pub(crate) balancers: Vec<Part>,
    pub(crate) agents: Vec<Part>,
    /// Where load comes from.
    pub(crate) clients: Vec<Host>,
    pub(crate) client: Client,
    /// The agents' names, and after them those of others that have been there.
    nodes: Vec<String>,
    // Last: what runs on it ends before.
    network: Network,
    pub(crate) folder: TempDir,
}

impl Fleet {
    /// Starts so many balancers on one database, and agents.
    pub(crate) async fn start(balancers: usize, agents: usize, database: &str) -> Self {
        let database = format!("--db-url={database}");
        Self::start_on(Network::new(), balancers, agents, &[database]).await
    }

    /// Starts balancers with these options, and agents, on a network.
    pub(crate) async fn start_on(
        network: Network,
        balancers: usize,
        agents: usize,
        options: &[String],
    ) -> Self {
        let client = Client::builder().no_proxy().timeout(PATIENCE).build().expect("a client");
        let mut fleet = Self {
            balancers: Vec::new(),
            agents: Vec::new(),
            clients: Vec::new(),
            client,
            nodes: Vec::new(),
            network,
            folder: tempfile::tempdir().expect("a folder"),
        };
        fleet.ok(&["ca", "init", "--ca-dir", &fleet.ca()]);
        for number in 1..=balancers {
            let host = fleet.network.host();
            let mut arguments = vec![
                format!("--listen={}:{API_PORT}", host.address),
                format!("--link-listen={}:{LINK_PORT}", host.address),
                format!("--name=lb{number}"),
                format!("--ca-dir={}", fleet.ca()),
            ];
            arguments.extend_from_slice(options);
            let folder = fleet.folder.path().join(format!("lb{number}"));
            let mut part = Part::new(host, folder, "kiln-lb", arguments);
            part.start();
            fleet.balancers.push(part);
            fleet.clients.push(fleet.network.host());
        }
        for number in 1..=agents {
            let mut agent = fleet.joined(&format!("node{number}"), &[]);
            agent.start();
            fleet.agents.push(agent);
        }
        fleet.until_all_up("all nodes are up").await;
        fleet
    }

    fn ca(&self) -> String {
        self.folder.path().join("ca").display().to_string()
    }

    /// The balancers' link addresses.
    pub(crate) fn links(&self) -> Vec<String> {
        self.balancers.iter().map(|part| format!("{}:{LINK_PORT}", part.host.address)).collect()
    }

    /// An agent on a host of its own that has joined the fleet, not started yet.
    pub(crate) fn joined(&mut self, name: &str, options: &[&str]) -> Part {
        let host = self.network.host();
        let name = format!("{name}-{}", std::process::id());
        let home = self.folder.path().join(&name);
        fs::create_dir_all(&home).expect("a folder");
        let token = home.join("token");
        fs::write(&token, self.ok(&["node", "token", "--ca-dir", &self.ca()])).expect("a token");
        let arguments = self.agent_arguments(&host, options);
        let part = Part::new(host, home, "kiln-agent", arguments);
        let joined = self.join(&part, &name);
        assert!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
        self.nodes.push(name);
        part
    }

    /// Lets an agent join with the token that lies in its folder.
    pub(crate) fn join(&self, agent: &Part, name: &str) -> Output {
        // Joining asks a balancer, which is on the network.
        let mut join = agent.host.command(built("kiln"));
        join.args(["node", "join", "--name", name, "--balancer", &self.links()[0], "--data-dir"]);
        join.arg(agent.data()).arg("--token-file").arg(agent.data().with_file_name("token"));
        join.output().expect("runs")
    }

    fn agent_arguments(&self, host: &Host, options: &[&str]) -> Vec<String> {
        let mut arguments = vec![
            format!("--listen={}:{CALLS_PORT}", host.address),
            format!("--balancer={}", self.links().join(",")),
            format!("--memory-mib={NODE_MIB}"),
        ];
        arguments.extend(host.advertised(CALLS_PORT));
        arguments.extend(options.iter().map(|&option| option.to_owned()));
        arguments
    }

    /// A further agent on a host of its own that has not joined.
    pub(crate) fn stranger(&mut self, name: &str) -> Part {
        let name = format!("{name}-{}", std::process::id());
        let (host, home) = (self.network.host(), self.folder.path().join(&name));
        self.nodes.push(name);
        let arguments = self.agent_arguments(&host, &[]);
        Part::new(host, home, "kiln-agent", arguments)
    }

    /// The name of an agent's node.
    pub(crate) fn node(&self, agent: usize) -> &str {
        &self.nodes[agent]
    }

    pub(crate) fn url(&self, balancer: usize, path: &str) -> String {
        format!("http://{}:{API_PORT}{path}", self.balancers[balancer].host.address)
    }

    /// A path of an agent that anybody may ask.
    pub(crate) async fn status(&self, agent: usize, path: &str) -> Response {
        let url = format!("http://{}:{CALLS_PORT}{path}", self.agents[agent].host.address);
        self.client.get(url).send().await.expect("the agent answers")
    }

    /// Runs `kiln` for a user of a balancer.
    pub(crate) fn kiln(&self, balancer: usize, arguments: &[&str]) -> Output {
        let mut command = Command::new(built("kiln"));
        command.args(arguments).env("HOME", self.folder.path());
        if balancer < self.balancers.len() {
            command.env("FN_API_URL", self.url(balancer, ""));
        }
        command.output().expect("runs")
    }

    /// What `kiln` prints for a user of the first balancer.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.kiln(0, arguments);
        assert!(output.status.success(), "kiln {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
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

    /// Waits until every balancer gives calls to every agent.
    pub(crate) async fn until_all_up(&self, what: &str) {
        for balancer in 0..self.balancers.len() {
            self.until(what, async |fleet| fleet.up(balancer).await == fleet.agents.len()).await;
        }
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

    /// The agent with the most containers: load goes there.
    pub(crate) async fn warm_agent(&self) -> usize {
        let nodes = self.nodes(0).await;
        let busiest = nodes.iter().max_by_key(|node| node["containers"].as_u64()).expect("nodes");
        (0..self.agents.len()).find(|&agent| busiest["id"] == self.node(agent)).expect("an agent's node")
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

    /// Makes an app with one function by a balancer and returns the function's id.
    pub(crate) async fn create(&self, balancer: usize, app: &str, image: &str) -> String {
        let (status, made) = self.api(balancer, Method::POST, "/v2/apps", &json!({ "name": app })).await;
        assert_eq!(status, StatusCode::OK, "{made}");
        let function = json!({ "app_id": made["id"], "name": "f", "image": image, "memory": FUNCTION_MIB });
        self.create_function(balancer, &function).await
    }

    /// Makes a function of an app that is there and returns its id.
    pub(crate) async fn create_function(&self, balancer: usize, function: &Value) -> String {
        let (status, made) = self.api(balancer, Method::POST, "/v2/fns", function).await;
        assert_eq!(status, StatusCode::OK, "{made}");
        made["id"].as_str().expect("an id").to_owned()
    }

    /// The same, until every balancer takes calls to it.
    pub(crate) async fn deploy(&self, app: &str, image: &str) -> String {
        let id = self.create(0, app, image).await;
        for balancer in 0..self.balancers.len() {
            self.until_callable(balancer, &id).await;
        }
        id
    }

    /// Waits until a function can be called; how long that took.
    pub(crate) async fn until_callable(&self, balancer: usize, function: &str) -> Duration {
        let called = async |fleet: &Self| fleet.invoke(balancer, function).await == Some(StatusCode::OK);
        self.until("the function can be called", called).await
    }

    /// Calls a function; `None` if the balancer does not answer.
    pub(crate) async fn invoke(&self, balancer: usize, function: &str) -> Option<StatusCode> {
        let answer = self.client.post(self.url(balancer, &format!("/invoke/{function}"))).body("Kiln").send();
        answer.await.ok().map(|answer| answer.status())
    }

    /// A metric of a balancer, summed over the label sets that contain `labels`.
    pub(crate) async fn metric(&self, balancer: usize, name: &str, labels: &str) -> u64 {
        let answer = self.client.get(self.url(balancer, "/metrics")).send().await.expect("answers");
        sum(&answer.text().await.expect("text"), name, labels)
    }

    /// The same of all agents together.
    pub(crate) async fn agents_metric(&self, name: &str, labels: &str) -> u64 {
        let mut all = 0;
        for agent in 0..self.agents.len() {
            all += sum(&self.status(agent, "/metrics").await.text().await.expect("text"), name, labels);
        }
        all
    }

    /// Ids of an agent's containers that functions run in, running or not, as the engine knows them.
    pub(crate) fn containers(&self, agent: usize) -> Vec<String> {
        let label = format!("label=kiln.node={}", self.node(agent));
        let role = "label=kiln.role=function";
        let ids = docker(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &label, "--filter", role]);
        ids.lines().map(str::to_owned).collect()
    }
}

/// The metric `name`, a count, in Prometheus' text, summed over the label sets that contain `labels`.
fn sum(text: &str, name: &str, labels: &str) -> u64 {
    let lines = text.lines().filter(|line| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with([' ', '{'])) && line.contains(labels)
    });
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
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
