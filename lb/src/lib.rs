//! Kiln's edge: takes calls from clients, finds the function, picks a node and forwards.

pub mod edge;
pub mod fleet;
pub mod guard;
pub mod route;
