//! What callers see while parts of the fleet break.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::fleet::Fleet;
use crate::images::example;
use crate::load::{CONNECTIONS, Outcome, SETTLE, tell, under_load};
use crate::part::Part;

#[tokio::test]
#[ignore = "takes the machine for itself, and root: make test-fleet"]
async fn a_fleet_under_load_loses_only_what_ran_on_the_node_that_died() {
    let folder = tempfile::tempdir().expect("a folder");
    let database = format!("sqlite://{}", folder.path().join("kiln.db").display());
    let mut fleet = Fleet::start(2, 4, &database).await;
    let function = fleet.deploy("fleet", &example("hello")).await;

    // An agent is killed.
    let mut took = Duration::ZERO;
    let mut victim = 0;
    let outcomes = under_load(&mut fleet, &function, async |fleet| {
        victim = fleet.warm_agent().await;
        fleet.agents[victim].kill();
        for balancer in 0..2 {
            took += fleet
                .until("the dead node gets no calls", async |fleet| {
                    fleet.state(balancer, victim).await.is_none_or(|state| state != "up")
                })
                .await;
        }
    })
    .await;
    tell("kill -9 of an agent, seen by both balancers", took, &outcomes);
    assert!(took < Duration::from_secs(1), "seen after {took:?}");
    for (balancer, outcome) in outcomes.iter().enumerate() {
        // What ran there is lost, and nothing else; each is counted.
        assert!(outcome.status_errors <= CONNECTIONS as u64, "{outcome:?}");
        assert!(Outcome { status_errors: 0, ..*outcome }.is_clean(), "{outcome:?}");
        let failed = fleet.metric(balancer, "kiln_calls_total", "").await
            - fleet.metric(balancer, "kiln_calls_total", "outcome=\"success\"").await;
        assert_eq!(failed, outcome.status_errors, "{outcome:?}");
    }
    fleet.agents[victim].start();
    fleet.until_all_up("the node is back").await;

    // An agent stops where it is, and goes on.
    let begun = Instant::now();
    let outcomes = under_load(&mut fleet, &function, async |fleet| {
        let victim = fleet.warm_agent().await;
        fleet.agents[victim].signal(Signal::SIGSTOP);
        fleet
            .until("the stopped node gets no calls", async |fleet| {
                fleet.state(0, victim).await.is_none_or(|state| state != "up")
            })
            .await;
        tokio::time::sleep(SETTLE).await;
        fleet.agents[victim].signal(Signal::SIGCONT);
        fleet.until_all_up("the node is back").await;
    })
    .await;
    tell("SIGSTOP of an agent, and SIGCONT", begun.elapsed(), &outcomes);
    assert!(outcomes.iter().all(Outcome::is_clean), "{outcomes:?}");

    // An agent is cut off from one balancer.
    let begun = Instant::now();
    let outcomes = under_load(&mut fleet, &function, async |fleet| {
        let victim = fleet.warm_agent().await;
        let balancer = fleet.balancers[0].host.clone();
        fleet.agents[victim].host.cut(&balancer);
        fleet
            .until("the cut node gets no calls", async |fleet| {
                fleet.state(0, victim).await.is_none_or(|state| state != "up")
            })
            .await;
        assert_eq!(fleet.state(1, victim).await.as_deref(), Some("up"), "the other balancer hears it");
        tokio::time::sleep(SETTLE).await;
        fleet.agents[victim].host.mend(&balancer);
        fleet.until_all_up("the node is back").await;
    })
    .await;
    tell("partition of an agent from one balancer, and its end", begun.elapsed(), &outcomes);
    assert!(outcomes.iter().all(Outcome::is_clean), "{outcomes:?}");

    // A balancer is killed.
    let begun = Instant::now();
    let outcomes = under_load(&mut fleet, &function, async |fleet| {
        fleet.balancers[0].kill();
        tokio::time::sleep(SETTLE).await;
        fleet.balancers[0].start();
        fleet.until_all_up("the balancer knows its nodes again").await;
    })
    .await;
    tell("kill -9 of a balancer, and its next start", begun.elapsed(), &outcomes);
    assert_eq!(outcomes[0].status_errors, 0, "its clients see broken connections, no wrong answers");
    assert!(outcomes[1].is_clean(), "{:?}", outcomes[1]);

    // Everything is restarted, one after the other.
    let begun = Instant::now();
    let outcomes = under_load(&mut fleet, &function, async |fleet| {
        for agent in 0..fleet.agents.len() {
            restart(&mut fleet.agents[agent]);
            fleet.until_all_up("the restarted node is back").await;
        }
    })
    .await;
    tell("rolling restart of all agents", begun.elapsed(), &outcomes);
    assert!(outcomes.iter().all(Outcome::is_clean), "{outcomes:?}");
    let begun = Instant::now();
    let outcomes = under_load(&mut fleet, &function, async |fleet| {
        for balancer in 0..fleet.balancers.len() {
            restart(&mut fleet.balancers[balancer]);
            fleet.until_all_up("the restarted balancer knows its nodes").await;
        }
    })
    .await;
    tell("rolling restart of both balancers", begun.elapsed(), &outcomes);
    assert!(outcomes.iter().all(Outcome::answers_are_clean), "{outcomes:?}");
}

fn restart(part: &mut Part) {
    part.stop();
    part.start();
}
