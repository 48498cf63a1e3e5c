//! `/kiln/v1/fns/{fn_id}/why`: what placement would do with a call of a function now.

use std::time::Instant;

use kiln_shared::ids::FunctionId;
use kiln_shared::model::FunctionWhy;

use super::Admin;
use crate::fleet::{Demand, NoPlace, TriedSet, WaitReason, explain};

/// Nodes that are told of; the chosen one is told of wherever it is.
const CANDIDATES_MAX: usize = 64;

/// `None` if there is no such function.
pub(super) fn of_function(admin: &Admin, id: &str) -> Option<FunctionWhy> {
    let id: FunctionId = id.parse().ok()?;
    let function = admin.routes.clone().routes().function(&id).ok()?.clone();
    let spec = &function.spec;
    let demand = Demand::of(&function);
    let mut fleet = admin.fleet.clone();
    let policy = *fleet.room().policy();
    let is_waited_for = fleet.room().is_waited_for(&id);
    let view = fleet.view();
    let explained = explain(view, &demand, &TriedSet::new(), &policy, CANDIDATES_MAX, Instant::now());
    let calls = view.calls_of(&demand);
    let waits_for = match explained.decision {
        _ if spec.concurrency_max.is_some_and(|calls_max| calls >= calls_max) => {
            Some(WaitReason::Concurrency)
        }
        _ if is_waited_for => Some(WaitReason::Full),
        Err(NoPlace::Full) => Some(WaitReason::Full),
        Err(NoPlace::NoNode) if view.expects_a_node_back() => Some(WaitReason::NoNode),
        Ok(_) | Err(NoPlace::NoNode | NoPlace::TooLarge) => None,
    };
    let chosen = explained.candidates.iter().find(|candidate| candidate.is_chosen);
    let decided = explained.decision.ok();
    Some(FunctionWhy {
        balancer: admin.balancer.clone(),
        fn_id: id,
        function: format!("{}/{}", spec.app_name, spec.name),
        revision: function.revision.to_string(),
        memory_mib: demand.memory_mib,
        calls,
        calls_max: spec.concurrency_max,
        waits_for: waits_for.map(|reason| reason.as_str().to_owned()),
        node: chosen.map(|candidate| candidate.node.clone()),
        reason: decided.map(|decision| decision.reason),
        asked: decided.map(|decision| decision.asked),
        no_node: explained.decision.err().map(|reason| reason.to_string()),
        nodes: u32::try_from(explained.nodes).unwrap_or(u32::MAX),
        candidates: explained.candidates,
    })
}
