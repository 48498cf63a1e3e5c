//! One suite for every way of a call to a node: in this process, and over the network to an agent's endpoint.

#[path = "../support/fed.rs"]
mod fed;

mod full;
mod multiplexed;
mod relay;
mod remote;
mod suite;
mod support;
