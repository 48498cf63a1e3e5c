//! `kiln-lb` and `kiln-agent` as processes, over the network of this machine, with real containers.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::signal::Signal;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

use super::images::example;
use super::{Node, PATIENCE, Process, eventually, id_of};
use crate::support::Home;

/// A program of Kiln's beside `kiln`: the workspace's build puts them into one folder.
fn program(name: &str) -> Command {
    let path = assert_cmd::cargo::cargo_bin!("kiln").with_file_name(name);
    assert!(path.exists(), "{} is missing: build it with `cargo build --workspace`", path.display());
    Command::new(path)
}

/// A free port of this machine.
const ANY: &str = "127.0.0.1:0";

/// Machines of a fleet with one CA.
struct Fleet {
    balancer: Home,
    nodes: Vec<Node>,
    client: Client,
}

impl Fleet {
    fn of(nodes: usize, memory_mib: u64) -> Self {
        let balancer = Home::new();
        balancer.ok(&format!("ca init --ca-dir {}", balancer.path().join("ca").display()));
        let nodes = (0..nodes).map(|_| Node::with_memory_mib(memory_mib)).collect();
        Self { balancer, nodes, client: Client::builder().no_proxy().timeout(PATIENCE).build().unwrap() }
    }

    /// Starts the agent of a node and waits until it is linked; at `address` if it had one before.
    async fn start_agent(&self, node: usize, address: &str, balancer: &Process) -> Process {
        let node = &self.nodes[node];
        let mut command = program("kiln-agent");
        command.args(["--listen", address, "--memory-mib", &node.memory_mib.to_string()]);
        command.args(["--balancer", &balancer.logged("link_address")]);
        if !node.home.path().join("data/identity/identity.pem").exists() {
            let ca = self.balancer.path().join("ca");
            node.home
                .write("join-token", &self.balancer.ok(&format!("node token --ca-dir {}", ca.display())));
            command.arg("--join-token-file").arg(node.home.path().join("join-token"));
        }
        let agent = Process::start(command, &node.home);
        eventually("the agent is linked", async || {
            // A connection of the agent's earlier life may be tried first.
            let ready = self.client.get(format!("http://{}/ready", agent.address)).send().await;
            ready.is_ok_and(|ready| ready.status() == StatusCode::OK)
        })
        .await;
        agent
    }

    /// Starts the balancer, with its link at `link`.
    fn start_balancer(&self, link: &str) -> Process {
        let mut command = program("kiln-lb");
        command.args(["--listen", "127.0.0.1:0", "--link-listen", link, "--name", "lb1"]);
        command.arg("--ca-dir").arg(self.balancer.path().join("ca"));
        Process::start(command, &self.balancer)
    }

    async fn api(&self, balancer: &Process, method: Method, path: &str, body: Value) -> Value {
        let url = format!("http://{}{path}", balancer.address);
        let answer = self.client.request(method, url).json(&body).send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Makes an app with one function and returns the function's id.
    async fn deploy(&self, balancer: &Process, image: &str) -> String {
        let app = id_of(&self.api(balancer, Method::POST, "/v2/apps", json!({ "name": "fleet" })).await);
        let function = json!({ "app_id": app, "name": "f", "image": image, "memory": 64 });
        id_of(&self.api(balancer, Method::POST, "/v2/fns", function).await)
    }

    async fn invoke(&self, balancer: &Process, function: &str, body: &str) -> (StatusCode, String) {
        let url = format!("http://{}/invoke/{function}", balancer.address);
        let answer = self.client.post(url).body(body.to_owned()).send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    /// The records of the newest calls.
    async fn calls(&self, balancer: &Process, function: &str) -> Vec<Value> {
        let calls = self
            .api(balancer, Method::GET, &format!("/v2/fns/{function}/calls?per_page=100"), json!({}))
            .await;
        calls["items"].as_array().unwrap().clone()
    }
}

#[tokio::test]
async fn balancer_and_agent_serve_calls_as_one_kiln_does() {
    let fleet = Fleet::of(1, 256);
    let mut balancer = fleet.start_balancer(ANY);
    let link = balancer.logged("link_address");
    let _agent = fleet.start_agent(0, ANY, &balancer).await;
    let function = fleet.deploy(&balancer, &example("hello")).await;
    for (name, greeting) in [("", "Hello world!\n"), ("Kiln", "Hello Kiln!\n")] {
        assert_eq!(fleet.invoke(&balancer, &function, name).await, (StatusCode::OK, greeting.to_owned()));
    }
    eventually("the records of both calls are stored", async || {
        fleet.calls(&balancer, &function).await.len() == 2
    })
    .await;

    // Bodies larger than what is sent before the agent asks for it.
    let echo = json!({ "app_id": id_of(&fleet.api(&balancer, Method::POST, "/v2/apps", json!({ "name": "large" })).await),
        "name": "echo", "image": example("echo"), "memory": 64 });
    let echo = id_of(&fleet.api(&balancer, Method::POST, "/v2/fns", echo).await);
    let large = "0123456789abcdef".repeat(256 * 1024);
    let (status, back) = fleet.invoke(&balancer, &echo, &large).await;
    assert_eq!(status, StatusCode::OK);
    assert!(back == large, "{} bytes came back of {}", back.len(), large.len());

    // The catalog is the balancer's: a new one goes on with it, and the agent's containers are still warm.
    balancer.signal(Signal::SIGTERM);
    assert!(balancer.ended().success(), "{}", balancer.log());
    let containers = fleet.nodes[0].function_containers();
    let balancer = fleet.start_balancer(&link);
    eventually("the agent is linked again", async || {
        fleet.invoke(&balancer, &function, "again").await == (StatusCode::OK, "Hello again!\n".to_owned())
    })
    .await;
    assert_eq!(fleet.nodes[0].function_containers(), containers);
}

#[tokio::test]
async fn calls_of_a_killed_agent_fail_once_and_its_next_life_clears_up() {
    let fleet = Fleet::of(1, 128);
    let balancer = fleet.start_balancer(ANY);
    let agent = fleet.start_agent(0, ANY, &balancer).await;
    let address = agent.address.clone();
    let function = fleet.deploy(&balancer, &example("slow")).await;
    let cut = async {
        let (status, text) = fleet.invoke(&balancer, &function, "1000s").await;
        assert_eq!(status, StatusCode::BAD_GATEWAY, "{text}");
        assert!(text.contains("it may have run"), "{text}");
    };
    let killed = async {
        eventually("the call runs", async || fleet.nodes[0].function_containers().len() == 1).await;
        // A container exists a moment before its call is in it.
        eventually("the call is in it", async || {
            let text = fleet.client.get(format!("http://{address}/metrics")).send().await.unwrap();
            text.text().await.unwrap().contains("kiln_slots{state=\"busy\"} 1")
        })
        .await;
        let left = fleet.nodes[0].function_containers();
        // Its drop kills it, so that it can clear up nothing.
        drop(agent);
        left
    };
    let ((), left) = tokio::join!(cut, killed);

    // Nobody is there, and that is said at once.
    assert_eq!(fleet.invoke(&balancer, &function, "1ms").await.0, StatusCode::SERVICE_UNAVAILABLE);
    let _agent = fleet.start_agent(0, &address, &balancer).await;
    eventually("the containers of the previous life are gone", async || {
        !fleet.nodes[0].function_containers().iter().any(|id| left.contains(id))
    })
    .await;
    eventually("calls are answered again", async || {
        fleet.invoke(&balancer, &function, "1ms").await == (StatusCode::OK, "slept 1ms\n".to_owned())
    })
    .await;
}

#[tokio::test]
async fn a_draining_agent_costs_no_call() {
    const CALLERS: usize = 4;
    let fleet = Arc::new(Fleet::of(2, 256));
    let balancer = Arc::new(fleet.start_balancer(ANY));
    let agents = [fleet.start_agent(0, ANY, &balancer).await, fleet.start_agent(1, ANY, &balancer).await];
    let function = fleet.deploy(&balancer, &example("slow")).await;
    assert_eq!(fleet.invoke(&balancer, &function, "1ms").await.0, StatusCode::OK);
    let home = usize::from(fleet.nodes[0].function_containers().is_empty());

    let (done, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (fleet, balancer, function) = (Arc::clone(&fleet), Arc::clone(&balancer), function.clone());
            let (done, answered) = (Arc::clone(&done), Arc::clone(&answered));
            tokio::spawn(async move {
                while !done.load(Ordering::Relaxed) {
                    let answer = fleet.invoke(&balancer, &function, "20ms").await;
                    assert_eq!(answer, (StatusCode::OK, "slept 20ms\n".to_owned()));
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let more = async |calls: usize| {
        let goal = answered.load(Ordering::Relaxed) + calls;
        eventually("calls are answered", async || answered.load(Ordering::Relaxed) >= goal).await;
    };
    more(50).await;
    let mut agents = agents.map(Some);
    let mut leaving = agents[home].take().unwrap();
    leaving.signal(Signal::SIGTERM);
    let status = tokio::task::spawn_blocking(move || leaving.ended()).await.unwrap();
    assert!(status.success(), "{status}");
    more(50).await;
    done.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(fleet.nodes[home].containers(&[]), Vec::<String>::new());
    assert!(!fleet.nodes[1 - home].function_containers().is_empty());
    // What the agent that left had to tell was fetched: one record a call, and the first.
    let total = answered.load(Ordering::Relaxed) + 1;
    eventually("every call has its record", async || {
        let calls = fleet.calls(&balancer, &function).await.len();
        calls == total.min(100)
    })
    .await;
}

#[tokio::test]
async fn a_node_is_drained_and_taken_back_by_the_command_line() {
    let fleet = Fleet::of(2, 256);
    let balancer = fleet.start_balancer(ANY);
    let agents = [fleet.start_agent(0, ANY, &balancer).await, fleet.start_agent(1, ANY, &balancer).await];
    let function = fleet.deploy(&balancer, &example("hello")).await;
    let url = format!("http://{}", balancer.address);
    let kiln = |line: &str| fleet.balancer.ok(&format!("{line} --api-url {url} --output json"));
    let nodes = || -> Vec<Value> { serde_json::from_str(&kiln("nodes")).unwrap() };
    eventually("both nodes are up", async || {
        nodes().iter().filter(|node| node["state"] == "up").count() == 2
    })
    .await;
    assert_eq!(fleet.invoke(&balancer, &function, "").await.0, StatusCode::OK);
    let warm = || nodes().into_iter().find(|node| node["containers"] == 1);
    eventually("the container is reported", async || warm().is_some()).await;
    let home = warm().unwrap()["id"].as_str().unwrap().to_owned();
    let shown: Value = serde_json::from_str(&kiln(&format!("node inspect {home}"))).unwrap();
    assert_eq!(shown["functions"][0]["name"], "fleet/f", "{shown}");

    let drained: Value = serde_json::from_str(&kiln(&format!("node drain {home} --wait"))).unwrap();
    assert_eq!((&drained["state"], &drained["containers"]), (&json!("drained"), &json!(0)), "{drained}");
    assert_eq!(fleet.invoke(&balancer, &function, "").await.0, StatusCode::OK);
    assert_ne!(warm().map(|node| node["id"].as_str().unwrap().to_owned()), Some(home.clone()));

    // It stays drained over a restart.
    let drained_agent = usize::from(!fleet.nodes[0].label().ends_with(&home));
    let [mut first, mut second] = agents;
    let leaving = if drained_agent == 0 { &mut first } else { &mut second };
    let address = leaving.address.clone();
    leaving.signal(Signal::SIGTERM);
    assert!(leaving.ended().success(), "{}", leaving.log());
    let _again = fleet.start_agent(drained_agent, &address, &balancer).await;
    let state =
        |id: &str| nodes().into_iter().find(|node| node["id"] == id).map(|node| node["state"].clone());
    eventually("it is drained still", async || state(&home) == Some(json!("drained"))).await;

    kiln(&format!("node undrain {home}"));
    eventually("it takes calls again", async || state(&home) == Some(json!("up"))).await;
    let top: Value = serde_json::from_str(&kiln("top")).unwrap();
    assert_eq!((&top["balancer"], top["nodes"].as_array().unwrap().len()), (&json!("lb1"), 2), "{top}");
    let unknown = fleet.balancer.fails(1, &format!("node drain nobody --api-url {url}"));
    assert!(unknown.contains("there is no node called nobody"), "{unknown}");

    kiln(&format!("node remove {home}"));
    eventually("it is gone", async || state(&home).is_none()).await;
    assert_eq!(fleet.invoke(&balancer, &function, "").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_node_is_warmed_and_cooled_by_the_command_line_and_shows_its_images() {
    let fleet = Fleet::of(1, 256);
    let balancer = fleet.start_balancer(ANY);
    let _agent = fleet.start_agent(0, ANY, &balancer).await;
    let image = example("hello");
    let function = fleet.deploy(&balancer, &image).await;
    let url = format!("http://{}", balancer.address);
    let kiln = |line: &str| -> Value {
        serde_json::from_str(&fleet.balancer.ok(&format!("{line} --api-url {url} --output json"))).unwrap()
    };
    let name = kiln("nodes")[0]["id"].as_str().unwrap().to_owned();
    let shown = || kiln(&format!("node inspect {name}"));
    eventually("the image is shown as it was deployed", async || {
        shown()["images"].as_array().is_some_and(|images| images.contains(&json!(image)))
    })
    .await;

    kiln(&format!("node prewarm {name} fleet f --count 2"));
    eventually("two containers are idle", async || shown()["idle"] == 2).await;
    let containers = fleet.nodes[0].function_containers();
    assert_eq!(fleet.invoke(&balancer, &function, "").await.0, StatusCode::OK);
    assert_eq!(fleet.nodes[0].function_containers(), containers, "the call started none");

    kiln(&format!("node evict {name} fleet f"));
    eventually("none is left", async || shown()["containers"] == 0).await;

    for (line, words) in [
        ("node prewarm nobody fleet f", "there is no node called nobody"),
        (&format!("node prewarm {name} fleet g"), "g not found"),
        ("node evict nobody fleet f", "there is no node called nobody"),
    ] {
        let error = fleet.balancer.fails(1, &format!("{line} --api-url {url}"));
        assert!(error.contains(words), "{line}: {error}");
    }
    let nobody = "01CQ4S2K8JNG8G00GZJ0000001";
    for (path, body, status) in [
        ("prewarm", json!({ "fn_id": function, "containers": 0 }), 400),
        ("prewarm", json!({ "fn_id": function }), 400),
        ("prewarm", json!({ "fn_id": nobody, "containers": 1 }), 404),
        ("evict", json!({ "fn_id": "no-id" }), 404),
    ] {
        let url = format!("{url}/kiln/v1/nodes/{name}/{path}");
        let answer = fleet.client.post(url).json(&body).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{path} {body}");
    }
}

#[test]
fn an_agent_without_an_identity_says_how_to_get_one() {
    let home = Home::new();
    let output = program("kiln-agent")
        .args(["--balancer", "127.0.0.1:1", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(home.path().join("data"))
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("kiln node token") && error.contains("kiln node join"), "{error}");
}
