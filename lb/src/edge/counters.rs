//! What the edge counts of each call. The handles are looked up once: by name they would cost each call two searches.

use std::time::Duration;

use kiln_shared::call::{Failure, FailureKind, Refusal, Stages};
use metrics::{Counter, Histogram};

use crate::fleet::Reason;

/// The edge's counters of calls.
pub(super) struct Counters {
    success: Counter,
    timeout: Counter,
    busy: Counter,
    cancelled: Counter,
    refused: Counter,
    error: Counter,
    duration: Histogram,
    added: Histogram,
    waited: Histogram,
    placements: [Counter; Reason::ALL.len()],
    refusals: [Counter; Refusal::ALL.len()],
}

impl Counters {
    /// Handles of the recorder that is installed by now.
    pub(super) fn new() -> Self {
        let calls = |outcome: &'static str| metrics::counter!("kiln_calls_total", "outcome" => outcome);
        Self {
            success: calls("success"),
            timeout: calls("timeout"),
            busy: calls("busy"),
            cancelled: calls("cancelled"),
            refused: calls("refused"),
            error: calls("error"),
            duration: metrics::histogram!("kiln_call_duration_seconds"),
            added: metrics::histogram!("kiln_call_added_duration_seconds"),
            waited: metrics::histogram!("kiln_call_waited_duration_seconds"),
            placements: Reason::ALL
                .map(|reason| metrics::counter!("kiln_placements_total", "reason" => reason.as_str())),
            refusals: Refusal::ALL
                .map(|reason| metrics::counter!("kiln_call_refusals_total", "reason" => reason.as_str())),
        }
    }

    /// Counts a call that has its answer's head, or its failure, after so long.
    pub(super) fn ended(&self, outcome: Result<Stages, &Failure>, after: Duration) {
        self.duration.record(after);
        let counter = match outcome {
            Ok(stages) => {
                self.added.record(after.saturating_sub(stages.run));
                &self.success
            }
            Err(failure) => self.of_failure(failure.kind),
        };
        counter.increment(1);
    }

    /// Counts a call that was given a node.
    pub(super) fn placed(&self, reason: Reason) {
        self.placements[reason as usize].increment(1);
    }

    /// Counts a node's refusal of a call, which may go to another one.
    pub(super) fn refused_by_node(&self, reason: Refusal) {
        self.refusals[reason as usize].increment(1);
    }

    /// Counts a wait for a place, in vain or not.
    pub(super) fn waited(&self, time: Duration) {
        self.waited.record(time);
    }

    fn of_failure(&self, kind: FailureKind) -> &Counter {
        match kind {
            FailureKind::TimedOut => &self.timeout,
            FailureKind::Busy => &self.busy,
            FailureKind::Cancelled => &self.cancelled,
            FailureKind::BadRequest | FailureKind::RequestTooLarge | FailureKind::CannotFit => &self.refused,
            _ => &self.error,
        }
    }
}
