//! The command line from outside: what it prints, what it writes, what it asks a server, and how it ends.

#![expect(clippy::unwrap_used, reason = "a failed step of a test shall end it")]

mod api;
mod catalog;
mod contexts;
mod deploy;
mod identity;
mod invoke;
mod node;
mod projects;
mod queue;
mod support;
mod usage;
