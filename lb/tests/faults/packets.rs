//! Packets that are lost, late, out of order, or there twice.

use std::time::Duration;

use crate::network::Weather;
use crate::world::scenario;

const CHANGES_EVERY: Duration = Duration::from_millis(70);

#[test]
fn a_fleet_works_while_packets_are_lost() {
    for loss in [0.01, 0.05, 0.2] {
        scenario(2, 3, |world| {
            world.shared.network.set_weather(Weather { loss, doubles: 0.0 });
            world.work_for(Duration::from_secs(4), CHANGES_EVERY);
            // With the loss still going on.
            let taken = world.converge();
            println!("loss {loss}: all is known {taken:?} after the last change");
        });
    }
}

#[test]
fn packets_that_come_twice_change_nothing() {
    scenario(2, 3, |world| {
        world.shared.network.set_weather(Weather { loss: 0.02, doubles: 0.5 });
        world.work_for(Duration::from_secs(4), CHANGES_EVERY);
        world.converge();
    });
}

#[test]
fn packets_that_overtake_each_other_leave_the_last_state() {
    scenario(2, 3, |world| {
        for longest in [Duration::from_millis(50), Duration::from_millis(400)] {
            world.set_delay(longest);
            world.work_for(Duration::from_secs(3), CHANGES_EVERY);
            world.converge();
        }
    });
}

#[test]
fn delays_of_seconds_cost_a_node_its_calls_and_nothing_else() {
    scenario(2, 3, |world| {
        world.sim.set_link_latency("lb1", "a0", Duration::from_secs(3));
        world.until("lb1 gives a0 no calls", Duration::from_secs(2), |world| !world.is_up("lb1", "a0"));
        for _ in 0..8 {
            world.work();
            world.run_while(Duration::from_secs(1), "lb2 keeps a0", |world| world.is_up("lb2", "a0"));
        }
        world.sim.set_link_latency("lb1", "a0", Duration::from_millis(2));
    });
}

#[test]
fn a_burst_of_late_packets_is_not_taken_for_news() {
    scenario(1, 2, |world| {
        for time in [Duration::from_millis(500), Duration::from_secs(3)] {
            world.sim.hold("lb1", "a0");
            world.work_for(time, CHANGES_EVERY);
            world.sim.release("lb1", "a0");
            world.converge();
        }
    });
}
