//! Kiln's edge: takes calls from clients, finds the function, picks a node and forwards.

pub mod admin;
pub mod balancer;
mod cow;
pub mod detached;
pub mod edge;
pub mod fleet;
pub mod fleet_options;
pub mod forward;
pub mod guard;
pub mod link;
pub mod nodes;
pub mod route;
pub mod scale_hook;
