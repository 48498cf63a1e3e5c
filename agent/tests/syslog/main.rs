//! Shipping to syslog: an agent whose functions are tasks that write lines, and real and hostile sinks.

mod bounds;
mod hostile;
mod node;
mod outage;
mod verdict;
mod wellformed;
