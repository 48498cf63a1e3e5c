//! The node agent: owns the slots and the container lifecycle of one host.

pub mod container;
