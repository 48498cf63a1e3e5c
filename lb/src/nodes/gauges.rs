//! What the metrics say of the fleet.

use std::time::Duration;

use crate::fleet::scale::ScaleSignal;
use crate::fleet::{Applied, EjectionCounts, NodeDetail, NodeState};

/// What there is to see at one moment.
pub(super) struct Sight<'a> {
    pub(super) details: &'a [NodeDetail],
    pub(super) signal: &'a ScaleSignal,
    pub(super) ejections: EjectionCounts,
    pub(super) waiting: crate::fleet::room::RoomCounts,
}

impl Sight<'_> {
    /// Tells the metrics. Call it every second or so: it looks the names up.
    pub(super) fn show(&self) {
        for state in [NodeState::Up, NodeState::Draining, NodeState::Suspect, NodeState::Down] {
            let count = self.details.iter().filter(|detail| detail.state == state).count();
            metrics::gauge!("kiln_nodes", "state" => state.as_str()).set(count as f64);
        }
        metrics::gauge!("kiln_nodes_wanted").set(self.signal.nodes_wanted as f64);
        metrics::gauge!("kiln_fleet_utilization_ratio").set(self.signal.utilisation);
        metrics::gauge!("kiln_calls_waiting_at_balancer").set(self.waiting.waiting as f64);
        metrics::gauge!("kiln_functions_waiting_at_balancer").set(self.waiting.functions as f64);
        metrics::gauge!("kiln_nodes_ejected").set(self.ejections.ejected as f64);
        metrics::counter!("kiln_node_ejections_total", "outcome" => "ejected")
            .absolute(self.ejections.ejections);
        metrics::counter!("kiln_node_ejections_total", "outcome" => "spared").absolute(self.ejections.spared);
        metrics::gauge!("kiln_node_silence_seconds_max").set(self.longest_silence().as_secs_f64());
    }

    /// How old the oldest of what placement goes by is: the longest silence of a node that takes calls. A node of this
    /// process says something only when it has news.
    fn longest_silence(&self) -> Duration {
        let up = self.details.iter().filter(|detail| detail.state == NodeState::Up);
        let remote = up.filter(|detail| detail.address != crate::fleet::Address::Local);
        remote.filter_map(|detail| detail.heard_ago).max().unwrap_or_default()
    }
}

/// Counts what became of a batch of reports.
pub(super) fn count(applied: &Applied) {
    for (outcome, reports) in [
        ("applied", applied.news),
        ("stale", applied.stale),
        ("stranger", applied.strangers),
        ("gap", applied.gaps.len()),
        ("absurd", applied.refused.len()),
    ] {
        if reports > 0 {
            metrics::counter!("kiln_node_reports_total", "outcome" => outcome).increment(reports as u64);
        }
    }
}
