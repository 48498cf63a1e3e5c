//! The link between agents and a balancer, over QUIC on this machine: both sides are the real ones.

mod drain;
mod drained;
#[path = "../support/link.rs"]
mod fleet;
mod joining;
mod membership;
mod records;
mod refusals;
mod removal;
mod scale;
mod support;
