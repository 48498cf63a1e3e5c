//! What a function reaches over the network, and the sandboxes that give it one.

use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use kiln_agent::container::Container;

use crate::support::{docker, eventually};
use crate::{Node, ask, lines, networks_of, node, node_with};

/// Names of its sandboxes that run.
fn sandboxes(node: &Node) -> Vec<String> {
    let label = format!("label=kiln.node={}", node.id);
    let filters = ["ps", "--filter", &label, "--filter", "label=kiln.role=sandbox", "--format", "{{.Names}}"];
    lines(&docker(&filters))
}

fn network_mode(container: &Container) -> String {
    docker(&["inspect", "--format", "{{.HostConfig.NetworkMode}}", &container.name])
}

/// The host's address on the functions' network.
fn gateway(node: &Node) -> IpAddr {
    let network = &networks_of(&node.id)[0];
    docker(&["network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", network])
        .parse()
        .unwrap()
}

/// What functions on `node` may not reach, and what they may.
async fn assert_closed(node: &Node, one: &Container, other: &Container) {
    let host = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = host.local_addr().unwrap().port();
    let refused = ask(one, &format!("connect {}:{port}", gateway(node))).await;
    assert!(refused.starts_with("error"), "a port of the host: {refused}");
    let refused = ask(one, "connect 169.254.169.254:80").await;
    assert!(
        refused.contains("refused") || refused.contains("unreachable"),
        "the metadata service: {refused}"
    );

    assert_eq!(ask(one, "listen 8080").await, "ok");
    let address: SocketAddr = format!("{}:8080", ask(one, "addresses").await).parse().unwrap();
    let refused = ask(other, &format!("connect {address}")).await;
    assert!(refused.starts_with("error"), "another function: {refused}");
    // Answers to the host pass: the rules close one direction, and the address is the right one.
    let mut greeting = String::new();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
    stream.read_to_string(&mut greeting).unwrap();
    assert_eq!(greeting, "hello");
}

#[tokio::test]
async fn a_function_reaches_neither_the_host_nor_another_function() {
    let node = node().await;
    let (one, other) = (node.start("phony").await, node.start("phony").await);
    assert!(network_mode(&one).starts_with("kiln-"));
    assert_closed(&node, &one, &other).await;
    node.close_with([one, other]).await;
}

#[tokio::test]
async fn a_function_in_a_sandbox_is_closed_in_just_the_same() {
    let node = node_with(|config| config.sandboxes = 2).await;
    eventually("two sandboxes are ready", async || sandboxes(&node).len() == 2).await;
    let (one, other) = (node.start("phony").await, node.start("phony").await);
    assert!(network_mode(&one).starts_with("container:") && network_mode(&other).starts_with("container:"));
    assert_closed(&node, &one, &other).await;
    node.close_with([one, other]).await;
}

#[tokio::test]
async fn a_sandbox_serves_one_container_and_goes_with_it() {
    let node = node_with(|config| config.sandboxes = 1).await;
    eventually("a sandbox is ready", async || sandboxes(&node).len() == 1).await;
    let first = sandboxes(&node);
    let container = node.start("phony").await;
    assert!(!network_mode(&container).is_empty());
    eventually("the pool is full again", async || sandboxes(&node).len() == 2).await;
    drop(container);
    eventually("the used one is gone", async || sandboxes(&node).len() == 1).await;
    assert_ne!(sandboxes(&node), first);
    node.close().await;
}

#[tokio::test]
async fn a_start_does_not_wait_for_a_sandbox() {
    let node = node_with(|config| config.sandboxes = 1).await;
    eventually("a sandbox is ready", async || sandboxes(&node).len() == 1).await;
    let (one, other) = tokio::join!(node.start("phony"), node.start("phony"));
    let mut modes = [network_mode(&one), network_mode(&other)];
    modes.sort();
    assert!(modes[0].starts_with("container:") && modes[1].starts_with("kiln-"), "{modes:?}");
    node.close_with([one, other]).await;
}

#[tokio::test]
async fn a_sandbox_that_was_killed_is_passed_over() {
    let node = node_with(|config| config.sandboxes = 1).await;
    eventually("a sandbox is ready", async || sandboxes(&node).len() == 1).await;
    let name = sandboxes(&node).remove(0);
    docker(&["rm", "-f", &name]);
    let container = node.start("phony").await;
    assert_eq!(ask(&container, "hello").await, "hello");
    node.close_with([container]).await;
}

#[tokio::test]
async fn a_pruned_network_is_made_again() {
    let node = node().await;
    let network = networks_of(&node.id).remove(0);
    docker(&["network", "rm", &network]);
    let container = node.start("phony").await;
    assert_eq!(network_mode(&container), network);
    assert_eq!(ask(&container, "hello").await, "hello");
    node.close_with([container]).await;
}
