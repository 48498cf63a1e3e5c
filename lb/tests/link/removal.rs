//! Nodes that are removed from the fleet, and certificates that end.

use std::time::{Duration, SystemTime};

use kiln_lb::fleet::NodeState;
use kiln_shared::identity::{CertificateRequest, Credentials, Peer, Role};
use kiln_shared::link::join::{JoinError, join};
use kiln_shared::link::message::{BalancerMessage, Opening};
use kiln_shared::link::quic::{self, CODE_REFUSED};
use kiln_shared::link::work::WorkAsk;

use crate::support::{Agent, Authority, Balancer, Stranger, eventually, hello};

#[tokio::test]
async fn a_removed_node_leaves_every_balancer_and_does_not_come_back() {
    let authority = Authority::new();
    let one = Balancer::start_sharing(&authority, "lb1", "shared").await;
    let two = Balancer::start_sharing(&authority, "lb2", "shared").await;
    let addresses = [one.address, two.address];
    let (agent, _other) =
        (Agent::start(&authority, "a", &addresses), Agent::start(&authority, "b", &addresses));
    for balancer in [&one, &two] {
        for node in ["a", "b"] {
            eventually("the node is up", || balancer.state(node) == Some(NodeState::Up)).await;
        }
    }
    one.removed.remove("a", &one.catalog).await.expect("is remembered");
    for balancer in [&one, &two] {
        eventually("the node is gone", || balancer.state("a").is_none()).await;
        eventually("the other is up", || balancer.state("b") == Some(NodeState::Up)).await;
        let mut again = Stranger::dial(&authority, "a", balancer).await;
        again.say(&Opening::State(hello("a", 2))).await;
        assert_eq!(again.refused().await.reason(), "removed");
    }
    assert_eq!(agent.linked.count(), 0);
    let token =
        authority.ca.mint_token(Role::Agent, Duration::from_mins(1), SystemTime::now()).expect("a token");
    let dialer = quic::dialer("127.0.0.1:0".parse().expect("an address")).expect("a socket");
    let key = CertificateRequest::generate().expect("a key");
    let error = join(&dialer, two.address, &token, "a", &key).await.expect_err("is removed");
    assert!(matches!(&error, JoinError::Refused(why) if why.contains("under another name")), "{error}");
    join(&dialer, two.address, &token, "c", &key).await.expect("under another name");
}

#[tokio::test]
async fn work_and_records_are_for_nodes_that_were_let_in() {
    let authority = Authority::new();
    let balancer = Balancer::start(&authority, "lb1").await;
    let mut agent = Stranger::dial(&authority, "a", &balancer).await;
    let question = WorkAsk::Renew { receipts: Vec::new(), lease: Duration::from_secs(1) };
    assert_eq!(agent.ask(&Opening::Work(question.clone())).await, Err(Some(CODE_REFUSED)), "no hello");
    assert_eq!(agent.ask(&Opening::Records).await, Err(Some(CODE_REFUSED)));
    agent.say(&Opening::State(hello("a", 1))).await;
    assert!(matches!(agent.hear().await, BalancerMessage::Welcome));
    assert!(agent.ask(&Opening::Work(question.clone())).await.is_ok());
    balancer.removed.remove("a", &balancer.catalog).await.expect("is remembered");
    assert!(agent.ask(&Opening::Work(question)).await.is_err());
}

#[tokio::test]
async fn a_link_ends_with_its_agents_certificate() {
    let authority = Authority::new();
    let balancer = Balancer::start(&authority, "lb1").await;
    let peer = Peer::new(Role::Agent, "a").expect("a name");
    let ends_soon = authority.ca.issue(&peer, Duration::from_secs(10), SystemTime::now()).expect("is issued");
    let folder = authority.path("ends-soon");
    ends_soon.save(&folder).expect("is kept");
    let credentials = Credentials::open(&folder, Role::Agent, SystemTime::now()).expect("is good");
    let agent = Agent::start_as(&credentials, hello("a", 1), &[balancer.address]);
    eventually("the node is up", || balancer.state("a") == Some(NodeState::Up)).await;
    eventually("the node is lost", || balancer.state("a") != Some(NodeState::Up)).await;
    eventually("the link is gone", || agent.linked.count() == 0).await;
}
