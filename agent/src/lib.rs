//! The node agent: owns the slots and the container lifecycle of one host.

mod call;
pub mod capacity;
pub mod container;
pub mod drain;
pub mod identity;
pub mod image;
pub mod link;
mod logs;
pub mod node;
pub mod serve;
pub mod slots;
pub mod syslog;

pub use call::{Agent, AgentConfig};
