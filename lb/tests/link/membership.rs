//! Who is a node of the fleet, and how it is.

use std::time::{Duration, Instant};

use kiln_lb::fleet::NodeState;
use kiln_lb::nodes::TellError;
use kiln_shared::ids::NodeId;
use kiln_shared::link::message::{AgentMessage, BalancerMessage, Command, Opening};
use kiln_shared::report::NodeReport;

use crate::support::{
    Agent, Authority, Balancer, LONG, Stranger, Wire, eventually, hello, idle, report, warm,
};

#[tokio::test]
async fn an_agent_that_links_up_is_a_node_and_its_changes_are_seen() {
    let authority = Authority::new();
    let balancer = Balancer::start(&authority, "lb1").await;
    let agent = Agent::start(&authority, "a", &[balancer.address]);
    eventually("the node is up", || balancer.state("a") == Some(NodeState::Up)).await;
    for calls in 1..50 {
        agent.report(|report| {
            report.calls = calls;
            report.functions = (1..=u64::from(calls)).map(|number| warm(number, calls)).collect();
        });
        tokio::task::yield_now().await;
    }
    eventually("the last report is seen", || balancer.load("a") == Some(49)).await;
    let idle = |number| balancer.view(|view| idle(view, "a", number));
    assert_eq!((idle(1), idle(49), idle(50)), (Some(49), Some(49), None));
    agent.report(|report| report.functions = vec![warm(50, 3)]);
    eventually("functions come and go", || (idle(1), idle(50)) == (None, Some(3))).await;
}

#[tokio::test]
async fn an_agent_that_says_goodbye_leaves_the_fleet() {
    let authority = Authority::new();
    let balancer = Balancer::start(&authority, "lb1").await;
    let agent = Agent::start(&authority, "a", &[balancer.address]);
    eventually("the node is up", || balancer.state("a") == Some(NodeState::Up)).await;
    agent.stop().await;
    eventually("the node is gone", || balancer.state("a").is_none()).await;
}

#[tokio::test]
async fn a_silent_node_gets_no_calls_and_comes_back_warm() {
    let authority = Authority::new();
    let balancer = Balancer::start(&authority, "lb1").await;
    let wire = Wire::new(balancer.address).await;
    let agent = Agent::start(&authority, "a", &[wire.address]);
    agent.report(|report| report.functions = vec![warm(1, 2)]);
    let idle = || balancer.view(|view| idle(view, "a", 1));
    eventually("the node is up and warm", || balancer.state("a") == Some(NodeState::Up) && idle() == Some(2))
        .await;
    // Past the QUIC connection's own end, so that the agent has to link up again.
    for silence in [Duration::from_millis(800), Duration::from_secs(4)] {
        wire.cut();
        let cut = Instant::now();
        eventually("its silence is noticed", || balancer.state("a") == Some(NodeState::Suspect)).await;
        assert!(cut.elapsed() < Duration::from_secs(5), "noticed after {:?}", cut.elapsed());
        tokio::time::sleep(silence.saturating_sub(cut.elapsed())).await;
        wire.mend();
        eventually("it is heard again", || balancer.state("a") == Some(NodeState::Up)).await;
        eventually("its containers are known still", || idle() == Some(2)).await;
    }
    assert_eq!(agent.linked.count(), 1);
}

#[tokio::test]
async fn every_balancer_sees_the_node_and_none_that_is_away_disturbs_the_others() {
    let authority = Authority::new();
    let (one, two) = (Balancer::start(&authority, "lb1").await, Balancer::start(&authority, "lb2").await);
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let silent = nobody.local_addr().expect("is bound");
    let agent = Agent::start(&authority, "a", &[silent, one.address, two.address]);
    for balancer in [&one, &two] {
        eventually("the node is up", || balancer.state("a") == Some(NodeState::Up)).await;
    }
    eventually("both are linked", || agent.linked.count() == 2).await;
    let address = one.address;
    one.stop().await;
    agent.report(|report| report.calls = 7);
    eventually("the other balancer hears", || two.load("a") == Some(7)).await;
    let one = Balancer::start_at(&authority, "lb1", address).await;
    eventually("a restarted balancer learns all again", || one.load("a") == Some(7)).await;
}

#[tokio::test]
async fn an_agent_that_starts_anew_takes_the_place_of_its_earlier_life() {
    let authority = Authority::new();
    let balancer = Balancer::start(&authority, "lb1").await;
    let wire = Wire::new(balancer.address).await;
    let agent = Agent::start(&authority, "a", &[wire.address]);
    agent.report(|report| report.calls = 3);
    eventually("the first life is there", || balancer.load("a") == Some(3)).await;
    wire.cut();
    let cut = Instant::now();
    let credentials = authority.credentials(kiln_shared::identity::Role::Agent, "a");
    let hello = hello("a", 2);
    let _second = Agent::start_as(&credentials, hello, &[balancer.address]);
    eventually("the second life is there", || {
        balancer.load("a") == Some(0) && balancer.state("a") == Some(NodeState::Up)
    })
    .await;
    assert!(cut.elapsed() > Duration::from_millis(300), "the first life was not silent yet");
    drop(agent);
}

#[tokio::test]
async fn commands_reach_the_agent_and_the_lack_of_one_is_said() {
    let authority = Authority::new();
    let balancer = Balancer::start(&authority, "lb1").await;
    let mut agent = Agent::start(&authority, "a", &[balancer.address]);
    eventually("the node is up", || balancer.state("a") == Some(NodeState::Up)).await;
    let node = NodeId::new("a");
    balancer.nodes.tell(&node, Command::Drain).await.expect("is told");
    let command = tokio::time::timeout(LONG, agent.commands.recv()).await.expect("comes");
    assert_eq!(command, Some(Command::Drain));
    agent.report(|report: &mut NodeReport| report.draining = true);
    eventually("it drains", || balancer.state("a") == Some(NodeState::Draining)).await;
    let stranger = NodeId::new("b");
    assert_eq!(
        balancer.nodes.tell(&stranger, Command::Drain).await,
        Err(TellError::Unknown(stranger.clone()))
    );
}

#[tokio::test]
async fn an_agent_finds_the_other_balancers_by_the_one_that_it_was_given() {
    let authority = Authority::new();
    let one = Balancer::start_sharing(&authority, "lb1", "shared").await;
    let two = Balancer::start_sharing(&authority, "lb2", "shared").await;
    // The first one looks for others every few seconds.
    let agent = Agent::start(&authority, "a", &[two.address]);
    for balancer in [&one, &two] {
        eventually("the node is up", || balancer.state("a") == Some(NodeState::Up)).await;
    }
    eventually("both are linked", || agent.linked.count() == 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_link_that_ends_without_a_goodbye_is_noticed_at_once() {
    let authority = Authority::new();
    let balancer = Balancer::start(&authority, "lb1").await;
    let mut noticed = Vec::new();
    for life in 1..=20 {
        let mut agent = Stranger::dial(&authority, "x", &balancer).await;
        agent.say(&Opening::State(hello("x", life))).await;
        assert!(matches!(agent.hear().await, BalancerMessage::Welcome));
        agent.say(&AgentMessage::Report(report("x", life, 1))).await;
        eventually("the node is up", || balancer.state("x") == Some(NodeState::Up)).await;
        drop(agent);
        let ended = Instant::now();
        eventually("its end is noticed", || balancer.state("x") == Some(NodeState::Suspect)).await;
        noticed.push(ended.elapsed());
    }
    // The median: sooner than three beats are missed, but for moments in which the machine does something else.
    noticed.sort();
    assert!(noticed[10] < Duration::from_millis(500), "{noticed:?}");
}
