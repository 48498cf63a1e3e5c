//! Clocks that are wrong, and clocks that jump.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use kiln_shared::identity::{Role, client_config};
use kiln_shared::link::frame::{MessageReader, write_message};
use kiln_shared::link::message::{BalancerMessage, Opening};
use kiln_shared::link::{LINK_ALPN, MESSAGE_BYTES_MAX, SERVER_NAME, quic};

use crate::fleet::hello;
use crate::nodes::{LINK_PORT, Outcome};
use crate::world::{Shared, scenario};

/// What the balancer says to an agent whose clock is so far off.
async fn greeted(
    shared: Arc<Shared>,
    name: &str,
    off: SignedDuration,
) -> Result<BalancerMessage, Box<dyn std::error::Error>> {
    let credentials = shared.authority.credentials(Role::Agent, name);
    let tls = quic::client_config(client_config(&credentials, Role::Balancer, LINK_ALPN))?;
    let dialer = shared.network.endpoint(name, 0, None).await?;
    let balancer = SocketAddr::new(turmoil::lookup("lb1"), LINK_PORT);
    let connection = dialer.connect_with(tls, balancer, SERVER_NAME)?.await?;
    let (mut writer, reader) = connection.open_bi().await?;
    let mut hello = hello(name, 1);
    hello.clock += off;
    write_message(&mut writer, &Opening::State(hello)).await?;
    let greeting = MessageReader::new(reader, MESSAGE_BYTES_MAX).next().await?;
    Ok(greeting.ok_or("no greeting")?)
}

#[test]
fn an_agent_whose_clock_is_hours_off_is_no_node_and_disturbs_nobody() {
    scenario(1, 2, |world| {
        let shared = Arc::clone(&world.shared);
        world.sim.client("late", async move {
            for off in [SignedDuration::from_hours(-3), SignedDuration::from_hours(30)] {
                let greeting = greeted(Arc::clone(&shared), "late", off).await?;
                assert!(
                    matches!(&greeting, BalancerMessage::Refused(refused) if refused.reason() == "clock"),
                    "{greeting:?}"
                );
            }
            let greeting = greeted(shared, "late", SignedDuration::from_mins(1)).await?;
            assert!(matches!(greeting, BalancerMessage::Welcome { .. }), "{greeting:?}");
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
