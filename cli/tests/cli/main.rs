//! The command line from outside: what it prints, what it writes, what it asks a server, and how it ends.

mod api;
mod contexts;
mod deploy;
mod invoke;
mod projects;
mod support;
mod usage;
