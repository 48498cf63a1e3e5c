//! The names and labels by which the driver knows its own.

use std::collections::HashMap;

use kiln_shared::function::Function;
use kiln_shared::ids::{Id, NodeId};

/// Value of [`ROLE`] on a network.
pub(super) const NETWORK_ROLE: &str = "network";
/// Socket root of the driver that made it; on networks.
pub(super) const ROOT: &str = "kiln.root";
/// The node that made it.
pub(super) const NODE: &str = "kiln.node";
/// The process that made it: random per driver.
pub(super) const INSTANCE: &str = "kiln.instance";
/// What it is for: `function` or `sandbox`.
pub(super) const ROLE: &str = "kiln.role";
/// Id of the function that runs in it.
pub(super) const FUNCTION: &str = "kiln.fn";
/// Revision of the function that runs in it.
pub(super) const REVISION: &str = "kiln.revision";

/// What one driver puts on everything it makes.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) node: NodeId,
    /// Random, so that another life of the same node is told apart.
    pub(super) instance: String,
}

impl Identity {
    pub(super) fn new(node: NodeId) -> Self {
        Self { node, instance: Id::generate().as_str().to_ascii_lowercase() }
    }

    /// `kiln.instance=...`, for filters.
    pub(super) fn instance_filter(&self) -> String {
        format!("{INSTANCE}={}", self.instance)
    }

    /// `kiln.node=...`, for filters.
    pub(super) fn node_filter(&self) -> String {
        node_filter(self.node.as_str())
    }

    pub(super) fn of_function(&self, function: &Function) -> HashMap<String, String> {
        let mut labels = self.of_role("function");
        labels.insert(FUNCTION.to_owned(), function.spec.id.to_string());
        labels.insert(REVISION.to_owned(), function.revision.to_string());
        labels
    }

    pub(super) fn of_role(&self, role: &str) -> HashMap<String, String> {
        HashMap::from([
            (NODE.to_owned(), self.node.to_string()),
            (INSTANCE.to_owned(), self.instance.clone()),
            (ROLE.to_owned(), role.to_owned()),
        ])
    }
}

/// `kiln.node=...`, for filters.
pub(super) fn node_filter(node: &str) -> String {
    format!("{NODE}={node}")
}

/// A name that no other container has.
pub(super) fn unique_name(role: &str) -> String {
    format!("kiln-{role}-{}", Id::generate().as_str().to_ascii_lowercase())
}
