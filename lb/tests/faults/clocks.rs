//! Clocks that are wrong, and clocks that jump.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use kiln_shared::link::message::BalancerMessage;

use crate::nodes::{Outcome, greeted};
use crate::world::scenario;

#[test]
fn an_agent_whose_clock_is_hours_off_is_no_node_and_disturbs_nobody() {
    scenario(1, 2, |world| {
        let shared = Arc::clone(&world.shared);
        world.sim.client("late", async move {
            for off in [SignedDuration::from_hours(-3), SignedDuration::from_hours(30)] {
                let greeting = greeted(&shared, "late", off).await?.0;
                assert!(
                    matches!(&greeting, BalancerMessage::Refused(refused) if refused.reason() == "clock"),
                    "{greeting:?}"
                );
            }
            let greeting = greeted(&shared, "late", SignedDuration::from_mins(1)).await?.0;
            assert!(matches!(greeting, BalancerMessage::Welcome), "{greeting:?}");
            Outcome::Ok(())
        });
        world.run_while(Duration::from_secs(6), "the others are up", |world| {
            world.agents().iter().all(|agent| world.is_up("lb1", agent))
        });
        assert!(world.state("lb1", "late").is_some(), "it is known once its clock is right");
        assert!(!world.is_up("lb1", "late"), "it went away without a report");
    });
}

#[test]
fn a_balancer_whose_clock_jumps_finds_its_agents_again() {
    scenario(2, 3, |world| {
        for by in [Duration::from_secs(1), Duration::from_secs(30), Duration::from_mins(10)] {
            world.jump("lb1", by);
            let taken = world.converge();
            println!("a jump of {by:?}: all is known after {taken:?}");
        }
    });
}

#[test]
fn an_agent_whose_clock_jumps_comes_back() {
    scenario(2, 3, |world| {
        for by in [Duration::from_secs(1), Duration::from_secs(30), Duration::from_mins(10)] {
            world.jump("a0", by);
            world.work();
            let taken = world.converge();
            println!("a jump of {by:?}: all is known after {taken:?}");
        }
    });
}
