//! Agents that are not let in.

use jiff::SignedDuration;
use kiln_lb::fleet::NodeState;
use kiln_shared::identity::Role;
use kiln_shared::ids::NodeId;
use kiln_shared::link::message::{AgentMessage, BalancerMessage, Hello, Opening, PROTOCOL, Refused};
use kiln_shared::report::NodeReport;

use crate::support::{Agent, Authority, Balancer, Stranger, eventually, hello, report};

#[tokio::test]
async fn agents_that_make_no_sense_are_refused_and_nothing_else_is_disturbed() {
    let authority = Authority::new();
    let balancer = Balancer::start(&authority, "lb1").await;
    let good = Agent::start(&authority, "good", &[balancer.address]);
    eventually("the good node is up", || balancer.state("good") == Some(NodeState::Up)).await;
    let named = |name: &str| hello(name, 1);
    let clock = named("x").clock + SignedDuration::from_hours(3);
    for (wrong, expected) in [
        (Hello { protocol: PROTOCOL + 1, ..named("x") }, "protocol"),
        (named("good"), "name"),
        (Hello { clock, ..named("x") }, "clock"),
        (Hello { weight: Some(1 << 30), ..named("x") }, "absurd"),
    ] {
        let mut stranger = Stranger::dial(&authority, "x", &balancer).await;
        stranger.say(&Opening::State(wrong)).await;
        assert_eq!(stranger.refused().await.reason(), expected);
    }
    let mut stranger = Stranger::dial(&authority, "x", &balancer).await;
    stranger.say(&serde_json::json!({ "future-opening": {} })).await;
    assert_eq!(stranger.refused().await.reason(), "malformed");
    good.report(|report| report.calls = 5);
    eventually("the good node is heard", || balancer.load("good") == Some(5)).await;
    assert_eq!(balancer.state("x"), None);
}

#[tokio::test]
async fn reports_that_cannot_be_end_the_link() {
    let authority = Authority::new();
    let balancer = Balancer::start(&authority, "lb1").await;
    let wrong: [NodeReport; 3] = [
        report("other", 1, 1),
        NodeReport { memory_total_mib: 0, ..report("x", 1, 1) },
        NodeReport { cpu_total_millis: u32::MAX, ..report("x", 1, 1) },
    ];
    for wrong in wrong {
        let mut stranger = Stranger::dial(&authority, "x", &balancer).await;
        stranger.say(&Opening::State(hello("x", 1))).await;
        assert!(matches!(stranger.hear().await, BalancerMessage::Welcome));
        stranger.say(&AgentMessage::Report(wrong)).await;
        assert_eq!(stranger.refused().await.reason(), "absurd");
    }
    let mut stranger = Stranger::dial(&authority, "x", &balancer).await;
    stranger.say(&Opening::State(hello("x", 1))).await;
    assert!(matches!(stranger.hear().await, BalancerMessage::Welcome));
    stranger.say(&"what is this").await;
    assert_eq!(stranger.refused().await.reason(), "malformed");
}

#[tokio::test]
async fn a_second_agent_with_the_name_of_one_that_lives_is_refused() {
    let authority = Authority::new();
    let balancer = Balancer::start(&authority, "lb1").await;
    let _first = Agent::start(&authority, "a", &[balancer.address]);
    eventually("the node is up", || balancer.state("a") == Some(NodeState::Up)).await;
    let mut second = Stranger::dial(&authority, "a", &balancer).await;
    second.say(&Opening::State(hello("a", 2))).await;
    let refused = second.refused().await;
    assert!(matches!(&refused, Refused::SameName { node, .. } if *node == NodeId::new("a")), "{refused}");
    assert_eq!(balancer.state("a"), Some(NodeState::Up));
}

#[tokio::test]
async fn changes_that_follow_nothing_are_not_believed() {
    let authority = Authority::new();
    let balancer = Balancer::start(&authority, "lb1").await;
    let mut agent = Stranger::dial(&authority, "x", &balancer).await;
    agent.say(&Opening::State(hello("x", 1))).await;
    assert!(matches!(agent.hear().await, BalancerMessage::Welcome));
    let (first, second) = (report("x", 1, 1), NodeReport { calls: 9, ..report("x", 1, 2) });
    agent.say(&AgentMessage::Report(second.changes_since(&first))).await;
    assert_eq!(agent.hear().await, BalancerMessage::SendWhole);
    assert_ne!(balancer.load("x"), Some(9));
    agent.say(&AgentMessage::Report(second.clone())).await;
    eventually("the whole report is believed", || balancer.load("x") == Some(9)).await;
}

#[tokio::test]
async fn a_certificate_of_another_fleet_or_role_gets_no_link() {
    let (authority, other) = (Authority::new(), Authority::new());
    let balancer = Balancer::start(&authority, "lb1").await;
    let foreign = other.credentials(Role::Agent, "a");
    let agent = Agent::start_as(&foreign, hello("a", 1), &[balancer.address]);
    // A balancer's certificate, used as an agent's.
    let role = authority.credentials(Role::Balancer, "b");
    let balancer_as_agent = Agent::start_as(&role, hello("b", 1), &[balancer.address]);
    let good = Agent::start(&authority, "good", &[balancer.address]);
    eventually("the good node is up", || balancer.state("good") == Some(NodeState::Up)).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!((balancer.state("a"), balancer.state("b")), (None, None));
    assert_eq!((agent.linked.count(), balancer_as_agent.linked.count()), (0, 0));
    drop(good);
}
