//! Call records on their way to a store, while balancers and the network fail. That all are stored at the end is asked
//! of every scenario.

use std::time::Duration;

use crate::network::Weather;
use crate::world::{World, scenario};

/// Every agent writes now and then.
fn write_for(world: &mut World, rounds: usize) {
    for _ in 0..rounds {
        for agent in world.agents() {
            world.write(&agent);
        }
        world.run(Duration::from_millis(80));
    }
}

#[test]
fn records_reach_a_store_though_balancers_crash() {
    scenario(2, 3, |world| {
        for balancer in ["lb1", "lb2", "lb1"] {
            write_for(world, 5);
            world.crash(balancer);
            write_for(world, 10);
            world.start(balancer);
            write_for(world, 5);
        }
    });
}

#[test]
fn records_go_to_the_balancer_that_can_store_them() {
    scenario(2, 2, |world| {
        world.shared.book().broken_stores.insert("lb1".to_owned());
        write_for(world, 20);
        world.until("the other has them", Duration::from_secs(30), |world| {
            let book = world.shared.book();
            book.agents.values().flat_map(|agent| &agent.written).all(|text| book.stored.contains(text))
        });
    });
}

#[test]
fn records_that_no_store_takes_do_not_keep_the_others_waiting() {
    scenario(2, 2, |world| {
        for agent in world.agents() {
            world.poison(&agent);
            world.run(Duration::from_millis(100));
        }
        write_for(world, 20);
    });
}

#[test]
fn records_wait_for_a_balancer_and_survive_bad_weather() {
    scenario(2, 2, |world| {
        world.crash("lb1");
        world.sim.partition("lb2", "a0");
        write_for(world, 30);
        world.start("lb1");
        world.shared.network.set_weather(Weather { loss: 0.2, doubles: 0.2 });
        write_for(world, 30);
    });
}
