//! Call records on their way to the store.

use std::net::{Ipv4Addr, SocketAddr};

use crate::support::{Agent, Authority, Balancer, LONG, Wire, eventually, record};

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
    let early = tokio::time::timeout(std::time::Duration::from_millis(500), agent.outbox.emptied()).await;
    assert!(early.is_err(), "nobody can have stored it");
    drop(spare);
    let _good = Balancer::start_at(&authority, "lb2", later).await;
    tokio::time::timeout(LONG, agent.outbox.emptied()).await.expect("the other balancer stores it");
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
