//! From what the fleet knows to what operators are shown.

use kiln_shared::ids::FunctionId;
use kiln_shared::model::{NodeFunction, NodeResource, ScaleResource};

use crate::fleet::scale::{ScaleSignal, is_empty};
use crate::fleet::{Address, NodeDetail};

/// A node without its functions and images.
pub(super) fn node(detail: &NodeDetail) -> NodeResource {
    let sum = |of: fn(&crate::fleet::FunctionDetail) -> u32| detail.functions.iter().map(of).sum::<u32>();
    let containers = sum(|function| function.ready);
    NodeResource {
        id: detail.id.to_string(),
        address: match &detail.address {
            Address::Local => "local".to_owned(),
            Address::Remote(address) => address.to_string(),
        },
        zone: detail.zone.as_deref().map(str::to_owned),
        state: if is_empty(detail) { "drained" } else { detail.state.as_str() }.to_owned(),
        reason: detail.reason.to_owned(),
        state_seconds: detail.state_for.as_secs_f64(),
        heard_seconds_ago: detail.heard_ago.map(|ago| ago.as_secs_f64()),
        weight: detail.weight.points(),
        share: detail.share,
        calls: detail.calls,
        own_calls: detail.own_calls,
        memory_total_mib: detail.memory_total_mib,
        memory_free_mib: detail.memory_free_mib,
        cpu_total_millis: detail.cpu_total_millis,
        containers,
        idle: sum(|function| function.idle),
        starting: detail.starting,
        functions: Vec::new(),
        images: Vec::new(),
    }
}

/// A node with its functions, which `named` names, and images.
pub(super) fn with_functions(
    detail: &NodeDetail,
    mut named: impl FnMut(&FunctionId) -> Option<String>,
) -> NodeResource {
    let functions = detail.functions.iter().map(|function| NodeFunction {
        fn_id: function.function,
        name: named(&function.function),
        revision: function.revision.to_string(),
        containers: function.ready,
        idle: function.idle,
        starting: function.starting,
        calls: function.calls,
    });
    let images = detail.images.iter().map(std::string::ToString::to_string);
    NodeResource { functions: functions.collect(), images: images.collect(), ..node(detail) }
}

/// How many nodes there should be.
pub(super) fn scale(signal: &ScaleSignal) -> ScaleResource {
    ScaleResource {
        nodes: u32::try_from(signal.nodes).unwrap_or(u32::MAX),
        desired_nodes: u32::try_from(signal.nodes_wanted).unwrap_or(u32::MAX),
        reason: signal.reason.as_str().to_owned(),
        utilization: signal.utilisation,
        remove: signal.drain_first.as_ref().map(ToString::to_string),
    }
}
