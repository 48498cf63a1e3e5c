//! Queued calls on their way to agents and back over the link: real queues, real slots and pipes, scripted containers.

use std::net::{Ipv4Addr, SocketAddr};

use kiln_agent::drain::DrainConfig;
use kiln_shared::queue::{NewMessage, Priority, State};

use crate::drained::{Drained, NODE_MIB, Node, PAYLOAD, message};
use crate::support::{Authority, Wire, eventually};

#[tokio::test]
async fn every_message_runs_once_and_answers_go_to_their_destinations() {
    let authority = Authority::new();
    let balancer = Drained::start(&authority, "lb1", "catalog", "queue").await;
    let node = Node::start(&authority, "a", &[balancer.address()], DrainConfig::default());
    let small: Vec<_> = (0..40).map(|_| message(&balancer.told, "small")).collect();
    let large: Vec<_> = (0..6).map(|_| message(&balancer.plain, &"x".repeat(PAYLOAD))).collect();
    balancer.enqueue(small.clone()).await;
    for message in large.clone() {
        balancer.enqueue(vec![message]).await;
    }
    for message in small.iter().chain(&large) {
        balancer.ends(message.id, State::Done).await;
        assert_eq!(node.runs(message.id), 1);
    }
    let answers = || node.bodies().into_iter().filter(|body| body.contains("answer to small")).count();
    eventually("all answers are told", || answers() == small.len()).await;
    node.stop().await;
    balancer.stop().await;
}

#[tokio::test]
async fn what_runs_while_its_link_breaks_is_told_over_the_next_one() {
    let authority = Authority::new();
    let balancer = Drained::start(&authority, "lb1", "catalog", "queue").await;
    let wire = Wire::new(balancer.address()).await;
    let node = Node::start(&authority, "a", &[wire.address], DrainConfig::default());
    let held = message(&balancer.plain, "hold");
    balancer.enqueue(vec![held.clone()]).await;
    eventually("it runs", || node.runs(held.id) == 1).await;
    wire.cut();
    eventually("the link is seen to be broken", || node.linked.count() == 0).await;
    node.let_go();
    wire.mend();
    let ended = balancer.ends(held.id, State::Done).await;
    assert_eq!((ended.attempts, node.runs(held.id)), (1, 1));
    node.stop().await;
    balancer.stop().await;
}

#[tokio::test]
async fn what_runs_while_its_link_breaks_is_told_by_another_balancer_of_the_queue() {
    let authority = Authority::new();
    let first = Drained::start(&authority, "lb1", "catalog", "queue").await;
    let wire = Wire::new(first.address()).await;
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let spare = std::net::UdpSocket::bind(any).expect("a socket");
    let later = spare.local_addr().expect("is bound");
    let node = Node::start(&authority, "a", &[wire.address, later], DrainConfig::default());
    let held = message(&first.plain, "hold");
    first.enqueue(vec![held.clone()]).await;
    eventually("it runs", || node.runs(held.id) == 1).await;
    wire.cut();
    drop(spare);
    let second = Drained::start_at(&authority, "lb2", "catalog", "queue", later).await;
    node.let_go();
    let ended = second.ends(held.id, State::Done).await;
    assert_eq!((ended.attempts, node.runs(held.id)), (1, 1));
    node.stop().await;
    second.stop().await;
    first.stop().await;
}

#[tokio::test]
async fn an_agent_drains_balancers_with_queues_of_their_own() {
    let authority = Authority::new();
    let one = Drained::start(&authority, "lb1", "catalog", "queue-1").await;
    let other = Drained::start(&authority, "lb2", "catalog", "queue-2").await;
    let node = Node::start(&authority, "a", &[one.address(), other.address()], DrainConfig::default());
    for balancer in [&one, &other] {
        let messages: Vec<_> = (0..20).map(|_| message(&balancer.plain, "small")).collect();
        balancer.enqueue(messages.clone()).await;
        for message in messages {
            let ended = balancer.ends(message.id, State::Done).await;
            assert_eq!((ended.attempts, node.runs(message.id)), (1, 1));
        }
    }
    node.stop().await;
    one.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn an_agent_that_stops_gives_back_what_has_not_begun() {
    let authority = Authority::new();
    let balancer = Drained::start(&authority, "lb1", "catalog", "queue").await;
    let node = Node::start(&authority, "a", &[balancer.address()], DrainConfig::default());
    // More than the node has room for, so that some wait for a container.
    let held: Vec<_> = (0..30).map(|_| message(&balancer.plain, "hold")).collect();
    balancer.enqueue(held.clone()).await;
    eventually("one runs", || held.iter().any(|message| node.runs(message.id) == 1)).await;
    let stopping = tokio::spawn(node.finishing());
    let is_begun = |id| node.runs(id) == 1;
    balancer.until_only_these_run(is_begun).await;
    let begun: Vec<_> = held.iter().map(|message| message.id).filter(|id| is_begun(*id)).collect();
    assert!(begun.len() < held.len());
    let other = Node::start(&authority, "b", &[balancer.address()], DrainConfig::default());
    other.let_go();
    for message in held.iter().filter(|message| !begun.contains(&message.id)) {
        let ended = balancer.ends(message.id, State::Done).await;
        assert_eq!((ended.attempts, other.runs(message.id)), (1, 1), "giving back is no attempt");
    }
    node.let_go();
    stopping.await.expect("stops");
    for id in begun {
        assert_eq!(balancer.ends(id, State::Done).await.attempts, 1);
    }
    node.stop().await;
    other.stop().await;
    balancer.stop().await;
}

#[tokio::test]
async fn a_node_that_is_drained_takes_nothing_until_it_is_not() {
    let authority = Authority::new();
    let balancer = Drained::start(&authority, "lb1", "catalog", "queue").await;
    let node = Node::start(&authority, "a", &[balancer.address()], DrainConfig::default());
    eventually("it is linked", || node.linked.count() == 1).await;
    node.agent.drain();
    let left = message(&balancer.plain, "small");
    balancer.enqueue(vec![left.clone()]).await;
    // Another node that is not drained takes what comes, so the drained one has had its chance.
    let other = Node::start(&authority, "b", &[balancer.address()], DrainConfig::default());
    balancer.ends(left.id, State::Done).await;
    assert_eq!((node.runs(left.id), other.runs(left.id)), (0, 1));
    node.agent.undrain();
    other.agent.drain();
    let next = message(&balancer.plain, "small");
    balancer.enqueue(vec![next.clone()]).await;
    balancer.ends(next.id, State::Done).await;
    assert_eq!(node.runs(next.id), 1, "it takes again");
    node.stop().await;
    other.stop().await;
    balancer.stop().await;
}

#[tokio::test]
async fn what_a_node_can_never_hold_waits_for_one_that_can_and_costs_no_attempt() {
    let authority = Authority::new();
    let balancer = Drained::start(&authority, "lb1", "catalog", "queue").await;
    let small = Node::start(&authority, "a", &[balancer.address()], DrainConfig::default());
    let large: Vec<_> = (0..5).map(|_| message(&balancer.large, "large")).collect();
    balancer.enqueue(large.clone()).await;
    // Older ones that it cannot hold do not keep it from others.
    for _ in 0..5 {
        let plain = message(&balancer.plain, "small");
        balancer.enqueue(vec![plain.clone()]).await;
        balancer.ends(plain.id, State::Done).await;
    }
    for message in &large {
        let waiting = balancer.ends(message.id, State::Queued).await;
        assert_eq!((waiting.attempts, small.runs(message.id)), (0, 0));
    }
    let (any, room) = (DrainConfig::default(), 4 * NODE_MIB);
    let spacious = Node::start_with(&authority, "b", &[balancer.address()], any, room);
    for message in &large {
        let ended = balancer.ends(message.id, State::Done).await;
        assert_eq!((ended.attempts, spacious.runs(message.id)), (1, 1));
    }
    small.stop().await;
    spacious.stop().await;
    balancer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_taken_together_begins_in_the_order_in_which_it_was_given() {
    let authority = Authority::new();
    let balancer = Drained::start(&authority, "lb1", "catalog", "queue").await;
    // Room for one container.
    let node = Node::start_with(&authority, "a", &[balancer.address()], DrainConfig::default(), 130);
    // Its pace is known then, so that some are taken ahead.
    for _ in 0..3 {
        let first = message(&balancer.plain, "first");
        balancer.enqueue(vec![first.clone()]).await;
        balancer.ends(first.id, State::Done).await;
    }
    let held = message(&balancer.plain, "hold");
    balancer.enqueue(vec![held.clone()]).await;
    eventually("it runs", || node.runs(held.id) == 1).await;
    let prioritised = |number: u8| {
        let priority = Priority::try_from(number % 3).expect("a priority");
        NewMessage { priority, ..message(&balancer.plain, &format!("{}-{number:02}", 2 - number % 3)) }
    };
    let messages: Vec<_> = (0..12).map(prioritised).collect();
    let ids: Vec<_> = messages.iter().map(|message| message.id).collect();
    balancer.enqueue(messages).await;
    for first in [ids[2], ids[5]] {
        balancer.ends(first, State::Running).await;
    }
    node.let_go();
    for id in ids {
        balancer.ends(id, State::Done).await;
    }
    let bodies: Vec<_> = node.bodies().into_iter().filter(|body| body.contains('-')).collect();
    assert!(bodies.is_sorted(), "the highest priority first, and each in its order: {bodies:?}");
    node.stop().await;
    balancer.stop().await;
}
