//! Programs that end and start again.

use std::time::Duration;

use crate::network::Weather;
use crate::world::scenario;

#[test]
fn a_balancer_that_crashed_learns_all_again() {
    scenario(2, 3, |world| {
        for down in [Duration::from_millis(50), Duration::from_secs(1), Duration::from_secs(10)] {
            world.crash("lb1");
            world.work();
            world.run_while(down, "lb2 keeps everybody", |world| {
                world.agents().iter().all(|agent| world.is_up("lb2", agent))
            });
            world.start("lb1");
            let taken = world.converge();
            println!("down for {down:?}, knows all {taken:?} after its start");
        }
    });
}

#[test]
fn an_agent_that_crashed_is_known_by_its_new_life_alone() {
    scenario(2, 3, |world| {
        for down in
            [Duration::ZERO, Duration::from_millis(300), Duration::from_secs(1), Duration::from_secs(5)]
        {
            world.work();
            world.crash("a0");
            world.run(down);
            world.start("a0");
            let taken = world.converge();
            println!("down for {down:?}, known {taken:?} after its start");
        }
    });
}

#[test]
fn lives_that_end_in_bad_weather_leave_nothing_behind() {
    scenario(2, 3, |world| {
        world.shared.network.set_weather(Weather { loss: 0.1, doubles: 0.1 });
        world.set_delay(Duration::from_millis(300));
        for round in 0..4_u64 {
            let host = if round % 3 == 2 { "lb2" } else { "a1" };
            world.crash(host);
            world.work_for(Duration::from_millis(170 * round), Duration::from_millis(70));
            world.start(host);
            world.work_for(Duration::from_millis(1500), Duration::from_millis(70));
        }
    });
}

#[test]
fn a_rolling_restart_leaves_every_agent_in_some_balancers_placement() {
    scenario(2, 3, |world| {
        for host in world.balancers().into_iter().chain(world.agents()) {
            world.stop(&host);
            let others = |agent: &String| *agent != host;
            world.run_while(Duration::from_millis(700), "the others serve", |world| {
                let balancers = world.balancers();
                world
                    .agents()
                    .iter()
                    .filter(|agent| others(agent))
                    .all(|agent| balancers.iter().any(|balancer| world.is_up(balancer, agent)))
            });
            world.start(&host);
            let taken = world.converge();
            println!("{host} is back after {taken:?}");
        }
    });
}

#[test]
fn everybody_restarts_at_once() {
    scenario(2, 4, |world| {
        let hosts: Vec<String> = world.balancers().into_iter().chain(world.agents()).collect();
        for host in &hosts {
            world.crash(host);
        }
        for host in &hosts {
            world.start(host);
        }
        world.converge();
    });
}

#[test]
fn a_balancer_that_is_found_at_two_addresses_has_one_link() {
    scenario(2, 2, |world| {
        world.shared.book().two_addresses = true;
        world.crash("a0");
        world.start("a0");
        world.converge();
        // Longer than until the other address is tried again.
        world.run_while(Duration::from_secs(13), "a0 is up everywhere", |world| {
            world.is_up("lb1", "a0") && world.is_up("lb2", "a0")
        });
    });
}
