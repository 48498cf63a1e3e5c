//! What a node tells every balancer about itself.

use serde::{Deserialize, Serialize};

use crate::function::Revision;
use crate::ids::{FunctionId, NodeId};

/// A node's state at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The node.
    pub node: NodeId,
    /// Names this life of the agent; a new value means that it restarted and forgot everything.
    pub epoch: u64,
    /// Counts reports within an epoch; larger is newer.
    pub sequence: u64,
    /// The agent takes no more calls.
    pub draining: bool,
    /// Memory that containers may commit, in MiB.
    pub memory_total_mib: u64,
    /// Memory committed to containers, idle ones included, in MiB.
    pub memory_committed_mib: u64,
    /// Memory of idle containers, which others may claim, in MiB.
    pub memory_idle_mib: u64,
    /// CPU that containers may commit, in thousandths of a core.
    pub cpu_total_millis: u32,
    /// CPU committed to containers, in thousandths of a core.
    pub cpu_committed_millis: u32,
    /// Calls that run or wait.
    pub calls: u32,
    /// Containers by function.
    pub functions: Vec<FunctionReport>,
}

/// Containers of one function on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionReport {
    /// The function.
    pub id: FunctionId,
    /// Its revision.
    pub revision: Revision,
    /// Containers that are ready and unused.
    pub idle: u32,
    /// Containers that serve a call.
    pub busy: u32,
    /// Containers that are being started.
    pub starting: u32,
    /// Calls that wait for a slot.
    pub waiting: u32,
}
