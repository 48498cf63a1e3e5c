//! Link, view and placement under faults: real agents' links and real balancers on a simulated network, in virtual
//! time.
//!
//! Each scenario runs once for each of a few seeds, which it prints; `KILN_FAULTS_SEED` runs that one alone. A seed
//! decides the network's delays and losses and the order in which hosts run. Keys are random in every run, so that a
//! seed repeats a scenario closely and not to the byte.

mod clocks;
#[path = "../support/link.rs"]
mod fleet;
mod lives;
mod network;
mod nodes;
mod packets;
mod partitions;
mod records;
mod world;
