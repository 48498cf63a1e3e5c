//! Measures Kiln beside other proxies and beside Docker, in one run on one machine.
//!
//! [`suite`] holds the benchmarks; the other modules are their tools: load ([`load`]), what a process costs
//! ([`cost`]), processes and containers ([`process`], [`docker`], [`redis`], [`kiln`]) and the printed and stored result
//! ([`report`]). Uses Kiln only from outside, through its binaries and sockets, as any client does: all but [`hop`],
//! which compares ways of carrying a call and takes those that are Kiln's from its own code, and [`fleet`], whose agents
//! have no containers.
//! Speaks to loopback and unix sockets alone.

pub mod agent;
pub mod cost;
pub mod docker;
pub mod fleet;
pub mod hop;
pub mod http;
pub mod kiln;
pub mod load;
pub mod process;
pub mod redis;
pub mod report;
pub mod stand_in;
pub mod suite;
