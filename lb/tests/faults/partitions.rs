//! Hosts that do not hear each other.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use kiln_lb::fleet::NodeState;
use kiln_shared::link::message::BalancerMessage;

use crate::nodes::{Outcome, SLACK, SUSPECT_AFTER, greeted};
use crate::world::{CONVERGED_WITHIN, scenario};

/// A connection that hears nothing ends after this, and some.
const CONNECTION_GONE: Duration = Duration::from_secs(4);

#[test]
fn an_agent_cut_off_from_one_balancer_gets_calls_of_the_other() {
    scenario(2, 3, |world| {
        // Shorter and longer than a connection lives without a word.
        for time in [Duration::from_millis(900), CONNECTION_GONE, Duration::from_secs(8)] {
            world.sim.partition("lb1", "a0");
            let noticed = world
                .until("lb1 gives a0 no calls", SUSPECT_AFTER + SLACK, |world| !world.is_up("lb1", "a0"));
            println!("noticed after {noticed:?}");
            world.run_while(time.saturating_sub(noticed), "lb2 keeps a0 and lb1 does not", |world| {
                world.is_up("lb2", "a0") && world.state("lb1", "a0") == Some(NodeState::Suspect)
            });
            world.work();
            world.sim.repair("lb1", "a0");
            world.until("lb1 knows a0 again", CONVERGED_WITHIN, |world| world.knows("lb1", "a0"));
            world.converge();
        }
    });
}

#[test]
fn an_agent_that_is_not_heard_gets_no_calls_though_it_hears() {
    scenario(2, 2, |world| {
        world.sim.partition_oneway("a0", "lb1");
        world.until("lb1 gives a0 no calls", SUSPECT_AFTER + SLACK, |world| !world.is_up("lb1", "a0"));
        world.run_while(Duration::from_secs(8), "it stays so", |world| !world.is_up("lb1", "a0"));
    });
}

#[test]
fn an_agent_that_hears_nothing_is_not_given_calls_for_ever() {
    scenario(2, 2, |world| {
        // Its beats arrive until it gives the connection up for want of acknowledgements.
        world.sim.partition_oneway("lb1", "a0");
        world.until("lb1 gives a0 no calls", CONNECTION_GONE, |world| !world.is_up("lb1", "a0"));
        world.run_while(Duration::from_secs(8), "it stays so", |world| !world.is_up("lb1", "a0"));
        world.work();
    });
}

#[test]
fn a_fleet_that_is_cut_in_two_again_and_again_comes_together() {
    scenario(2, 4, |world| {
        for round in 0..12_u64 {
            let (cut, agent) = (format!("lb{}", 1 + round % 2), format!("a{}", round % 4));
            world.sim.partition(cut.as_str(), agent.as_str());
            world.work_for(Duration::from_millis(250 * (1 + round % 5)), Duration::from_millis(60));
            world.sim.repair(cut.as_str(), agent.as_str());
            world.run(Duration::from_millis(150 * (round % 3)));
        }
    });
}

#[test]
fn a_fleet_without_any_balancer_in_reach_comes_back() {
    scenario(2, 4, |world| {
        for agent in world.agents() {
            for balancer in world.balancers() {
                world.sim.partition(balancer.as_str(), agent.as_str());
            }
        }
        world.run(Duration::from_secs(12));
        world.calm();
        let taken = world.converge();
        println!("all are back after {taken:?}");
    });
}

#[test]
fn an_agent_that_is_cut_off_before_its_first_report_gets_no_calls() {
    scenario(1, 1, |world| {
        let shared = Arc::clone(&world.shared);
        world.sim.client("new", async move {
            let (greeting, _connection) = greeted(&shared, "new", SignedDuration::ZERO).await?;
            assert!(matches!(greeting, BalancerMessage::Welcome), "{greeting:?}");
            turmoil::partition("new", "lb1");
            tokio::time::sleep(Duration::from_secs(20)).await;
            Outcome::Ok(())
        });
        world.run_while(Duration::from_secs(8), "it gets no calls", |world| !world.is_up("lb1", "new"));
        assert!(world.state("lb1", "new").is_some(), "it is known");
    });
}
