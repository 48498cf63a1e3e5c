//! Nodes and the fleet as a balancer shows them to operators (`/kiln/v1`).
//!
//! One balancer's view at one moment. Others may see a node otherwise: each hears for itself.

use serde::{Deserialize, Serialize};

use crate::ids::FunctionId;

/// A node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeResource {
    /// Its name in the fleet.
    pub id: String,
    /// Where it takes calls; `local` in the balancer's own process.
    pub address: String,
    /// Where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// `up`, `draining`, `drained`, `suspect` or `down`.
    pub state: String,
    /// What the state follows from.
    pub reason: String,
    /// For how long it has been so, in seconds.
    pub state_seconds: f64,
    /// How long ago it was heard, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_seconds_ago: Option<f64>,
    /// Its share of the functions; 128 is a usual machine's.
    pub weight: u32,
    /// The part of its share of calls that it is given: less than 1 while it starts slowly.
    pub share: f64,
    /// Calls that run or wait there, of all balancers.
    pub calls: u32,
    /// Calls of this balancer there.
    pub own_calls: u32,
    /// Memory for containers in MiB; absent before its first report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_total_mib: Option<u64>,
    /// Memory that another container could have in MiB, if idle ones give way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_free_mib: Option<i64>,
    /// CPU for containers in thousandths of a core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_total_millis: Option<u32>,
    /// Containers that are ready, idle or busy.
    pub containers: u32,
    /// Containers that are ready and free.
    pub idle: u32,
    /// Containers that are being started.
    pub starting: u32,
    /// Containers by function; only where one node is shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub functions: Vec<NodeFunction>,
    /// References of images that are present; only where one node is shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
}

/// Containers of one revision of a function on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFunction {
    /// The function.
    pub fn_id: FunctionId,
    /// Its app's and its own name, while the catalog has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its revision.
    pub revision: String,
    /// Containers that are ready, idle or busy.
    pub containers: u32,
    /// Containers that are ready and free.
    pub idle: u32,
    /// Containers that are being started.
    pub starting: u32,
    /// Calls that run or wait.
    pub calls: u32,
}

/// The fleet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FleetResource {
    /// The balancer that says so.
    pub balancer: String,
    /// All nodes, in the order of their names.
    pub nodes: Vec<NodeResource>,
    /// Calls that wait at this balancer for a node.
    pub waiting_calls: u32,
    /// How many nodes there should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<ScaleResource>,
}

/// How many nodes there should be, for whoever adds and removes machines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScaleResource {
    /// Nodes that take calls.
    pub nodes: u32,
    /// Nodes that there should be.
    pub desired_nodes: u32,
    /// Why.
    pub reason: String,
    /// The share of the fleet's room that is in use, 0 to 1.
    pub utilization: f64,
    /// The node whose loss would cost the fewest warm slots, if one is to go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remove: Option<String>,
}
