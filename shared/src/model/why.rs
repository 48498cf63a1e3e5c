//! Why calls go where they go, as operators are told (`/kiln/v1/.../why`).

use serde::{Deserialize, Serialize};

use super::Call;
use crate::ids::{FunctionId, NodeId};
use crate::story::{Candidate, Reason, Story};

/// What became of one call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CallWhy {
    /// The call.
    pub call: Call,
    /// Its app's and its function's name, `app/function`.
    pub function: String,
    /// How it came to its node, and where its time went.
    pub story: Story,
}

/// What would become of a call of a function now, by one balancer's view.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FunctionWhy {
    /// The balancer that says so.
    pub balancer: String,
    /// The function.
    pub fn_id: FunctionId,
    /// Its app's and its own name, `app/function`.
    pub function: String,
    /// Its revision.
    pub revision: String,
    /// Memory of one container in MiB, `/tmp` included.
    pub memory_mib: u64,
    /// Calls of it on all nodes.
    pub calls: u32,
    /// As many may run; absent without a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls_max: Option<u32>,
    /// What a call that comes now would wait for behind others, or for itself: `full`, `concurrency` or `no_node`. Absent if it
    /// would go to a node at once, or be refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// Where it would go; absent if nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// What speaks for that node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Nodes that are looked at to find it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<u32>,
    /// Why there is no node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_node: Option<String>,
    /// Nodes of the fleet.
    pub nodes: u32,
    /// The first of them in the order of the function's walk, and the chosen one.
    pub candidates: Vec<Candidate>,
}
