//! Call records on their way to the store.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use kiln_lb::fleet::NodeState;
use kiln_shared::link::RECORDS_BYTES_MAX;
use kiln_shared::link::message::{AgentMessage, BalancerMessage, Opening};
use kiln_shared::link::quic::CODE_REFUSED;

use crate::support::{Agent, Authority, Balancer, LONG, Stranger, Wire, eventually, hello, record, report};

#[tokio::test]
async fn records_are_forgotten_when_they_are_stored() {
    let authority = Authority::new();
    let balancer = Balancer::start(&authority, "lb1").await;
    let agent = Agent::start(&authority, "a", &[balancer.address]);
    for number in 0..100 {
        agent.records.send(record(&number.to_string()));
    }
    tokio::time::timeout(LONG, agent.outbox.emptied()).await.expect("all are stored");
}

#[tokio::test]
async fn records_wait_for_a_balancer_and_go_to_another_if_one_cannot_store_them() {
    let authority = Authority::new();
    // A balancer whose store is closed takes links and stores nothing.
    let broken = Balancer::start(&authority, "lb1").await;
    broken.catalog.close().await;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let spare = std::net::UdpSocket::bind(address).expect("a socket");
    let later = spare.local_addr().expect("is bound");
    let agent = Agent::start(&authority, "a", &[broken.address, later]);
    agent.records.send(record("kept"));
    eventually("the agent is linked", || agent.linked.count() == 1).await;
    let early = tokio::time::timeout(Duration::from_millis(500), agent.outbox.emptied()).await;
    assert!(early.is_err(), "nobody can have stored it");
    drop(spare);
    let _good = Balancer::start_at(&authority, "lb2", later).await;
    tokio::time::timeout(LONG, agent.outbox.emptied()).await.expect("the other balancer stores it");
}

#[tokio::test]
async fn a_batch_that_cannot_be_read_is_refused_and_the_link_stays() {
    let authority = Authority::new();
    let balancer = Balancer::start(&authority, "lb1").await;
    let mut agent = Stranger::dial(&authority, "x", &balancer).await;
    agent.say(&Opening::State(hello("x", 1))).await;
    assert!(matches!(agent.hear().await, BalancerMessage::Welcome));
    let too_long = u32::try_from(RECORDS_BYTES_MAX + 1).expect("fits").to_be_bytes();
    for batch in [&too_long[..], &[0, 0, 0, 1, b'{']] {
        assert_eq!(agent.hand(batch).await, Some(CODE_REFUSED));
    }
    agent.say(&AgentMessage::Report(report("x", 1, 1))).await;
    eventually("the node is up", || balancer.state("x") == Some(NodeState::Up)).await;
}

#[tokio::test]
async fn records_survive_a_link_that_breaks() {
    let authority = Authority::new();
    let balancer = Balancer::start(&authority, "lb1").await;
    let wire = Wire::new(balancer.address).await;
    let agent = Agent::start(&authority, "a", &[wire.address]);
    eventually("the agent is linked", || agent.linked.count() == 1).await;
    wire.cut();
    agent.records.send(record("kept"));
    eventually("the link is seen to be broken", || agent.linked.count() == 0).await;
    wire.mend();
    tokio::time::timeout(LONG, agent.outbox.emptied()).await.expect("it is stored after all");
}
