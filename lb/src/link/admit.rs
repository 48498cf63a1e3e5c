//! Whether an agent may be a node of this fleet. Pure.

use jiff::Timestamp;
use kiln_shared::address::host_port;
use kiln_shared::identity::{CLOCK_DIFFERENCE_MAX, Peer};
use kiln_shared::link::message::{CallsAt, Hello, PROTOCOL, Refused};

use crate::fleet::Weight;

/// Longest zone in bytes.
const ZONE_BYTES_MAX: usize = 255;

/// Checks what an agent says of itself against its certificate and this balancer's time.
pub(super) fn check(hello: &Hello, agent: &Peer, now: Timestamp) -> Result<(), Refused> {
    if hello.protocol != PROTOCOL {
        return Err(Refused::Protocol { spoken: hello.protocol, wanted: PROTOCOL });
    }
    if hello.node.as_str() != agent.name() {
        return Err(Refused::Name { said: hello.node.clone(), certificate: agent.name().to_owned() });
    }
    let off = hello.clock.duration_since(now);
    // Certificates and call records are worth nothing to hosts that disagree on the day.
    if off.unsigned_abs() > CLOCK_DIFFERENCE_MAX {
        return Err(Refused::Clock { seconds: off.as_secs() });
    }
    let absurd = |what: &str| Err(Refused::Absurd { what: what.to_owned() });
    if let Some(weight) = hello.weight
        && !(Weight::MIN.points()..=Weight::MAX.points()).contains(&weight)
    {
        return absurd(&format!(
            "a weight of {weight}; {} to {} are possible",
            Weight::MIN.points(),
            Weight::MAX.points()
        ));
    }
    match &hello.calls_at {
        CallsAt::Port(0) => return absurd("calls at port 0"),
        CallsAt::Address(address) if host_port(address).is_err() => {
            return absurd("calls at what is no HOST:PORT");
        }
        CallsAt::Port(_) | CallsAt::Address(_) => {}
    }
    if hello.zone.as_ref().is_some_and(|zone| zone.is_empty() || zone.len() > ZONE_BYTES_MAX) {
        return absurd("a zone without a name, or with one of more than 255 bytes");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use kiln_shared::identity::Role;
    use kiln_shared::ids::NodeId;

    use super::*;

    fn hello(now: Timestamp) -> Hello {
        Hello {
            protocol: PROTOCOL,
            node: NodeId::new("a"),
            epoch: 1,
            version: "1.0.0".to_owned(),
            calls_at: CallsAt::Port(8081),
            zone: None,
            weight: None,
            clock: now,
        }
    }

    fn reason(hello: &Hello, now: Timestamp) -> Result<(), &'static str> {
        let agent = Peer::new(Role::Agent, "a").expect("a name");
        check(hello, &agent, now).map_err(|refused| refused.reason())
    }

    #[test]
    fn only_agents_that_make_sense_are_let_in() {
        let now = Timestamp::now();
        let good = hello(now);
        assert_eq!(reason(&good, now), Ok(()));
        let off = |minutes| now + SignedDuration::from_mins(minutes);
        for (hello, expected) in [
            (Hello { protocol: 2, ..good.clone() }, "protocol"),
            (Hello { node: NodeId::new("b"), ..good.clone() }, "name"),
            (Hello { clock: off(11), ..good.clone() }, "clock"),
            (Hello { clock: off(-180), ..good.clone() }, "clock"),
            (Hello { weight: Some(0), ..good.clone() }, "absurd"),
            (Hello { weight: Some(100_000), ..good.clone() }, "absurd"),
            (Hello { calls_at: CallsAt::Port(0), ..good.clone() }, "absurd"),
            (Hello { calls_at: CallsAt::Address("host".to_owned()), ..good.clone() }, "absurd"),
            (Hello { zone: Some(String::new()), ..good.clone() }, "absurd"),
        ] {
            assert_eq!(reason(&hello, now), Err(expected), "{hello:?}");
        }
        for hello in [
            Hello { clock: off(9), ..good.clone() },
            Hello { weight: Some(256), zone: Some("east".to_owned()), ..good.clone() },
            Hello { calls_at: CallsAt::Address("node-7.example:8081".to_owned()), ..good },
        ] {
            assert_eq!(reason(&hello, now), Ok(()), "{hello:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_do() {
        let now = Timestamp::now();
        let late = Hello { clock: now - SignedDuration::from_hours(3), ..hello(now) };
        let agent = Peer::new(Role::Agent, "a").expect("a name");
        let refused = check(&late, &agent, now).expect_err("is refused");
        assert_eq!(
            refused.to_string(),
            "its clock is -10800 s off this balancer's (behind if negative); set the time on both hosts"
        );
    }
}
