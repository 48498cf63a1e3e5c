//! Everything that a balancer knows of a node, for its operator.

use std::sync::Arc;
use std::time::Duration;

use kiln_shared::function::Revision;
use kiln_shared::ids::{FunctionId, NodeId};

use super::demand::SlotKey;
use super::ejection::Ejected;
use super::node::{Address, NodeSerial};
use super::ring::Weight;
use super::slots::Slots;
use super::standing::NodeState;

/// A node at one moment, as one balancer sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeDetail {
    /// Its name in the fleet.
    pub id: NodeId,
    /// Its name within this process.
    pub serial: NodeSerial,
    /// How calls get there.
    pub address: Address,
    /// Where it stands.
    pub zone: Option<Arc<str>>,
    /// Its share of the functions.
    pub weight: Weight,
    /// Whether it is given calls.
    pub state: NodeState,
    /// What the state follows from, in words.
    pub reason: &'static str,
    /// For how long it has been so.
    pub state_for: Duration,
    /// The share of its calls that it is given, less than 1 while it starts slowly.
    pub share: f64,
    /// Its ejection, if it is ejected.
    pub ejected: Option<Ejected>,
    /// How long ago it was last heard; `None` if it never was.
    pub heard_ago: Option<Duration>,
    /// Memory for containers; `None` before the first report.
    pub memory_total_mib: Option<u64>,
    /// Memory that another container could have; below 0 if overcommitted.
    pub memory_free_mib: Option<i64>,
    /// CPU for containers; `None` before the first report.
    pub cpu_total_millis: Option<u32>,
    /// Calls that run or wait there, of all balancers.
    pub calls: u32,
    /// Calls of this balancer there.
    pub own_calls: u32,
    /// Containers that are being started.
    pub starting: u32,
    /// Its containers, in the order of function and revision.
    pub functions: Vec<FunctionDetail>,
    /// References of the images that are present.
    pub images: Arc<[Arc<str>]>,
}

/// Containers of one revision on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FunctionDetail {
    /// The function.
    pub function: FunctionId,
    /// Its revision.
    pub revision: Revision,
    /// Containers that are ready, idle or busy.
    pub ready: u32,
    /// Slots that a call would find free.
    pub idle: u32,
    /// Containers that are being started.
    pub starting: u32,
    /// Calls that run or wait.
    pub calls: u32,
}

impl FunctionDetail {
    pub(crate) fn of(key: SlotKey, slots: &Slots) -> Self {
        Self {
            function: key.function,
            revision: key.revision,
            ready: slots.ready(),
            idle: slots.idle(),
            starting: slots.starting(),
            calls: slots.calls(),
        }
    }
}
