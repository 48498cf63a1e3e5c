//! The node agent: owns the slots and the container lifecycle of one host.

pub mod container;
pub mod image;
mod logs;
pub mod slots;
