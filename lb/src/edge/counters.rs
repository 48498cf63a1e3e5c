//! What the edge counts of each call. The handles are looked up once: by name they would cost each call two searches.

use std::time::Duration;

use kiln_shared::call::{Failure, FailureKind};
use metrics::{Counter, Histogram};

/// The edge's counters of calls.
pub(super) struct Counters {
    success: Counter,
    timeout: Counter,
    busy: Counter,
    cancelled: Counter,
    refused: Counter,
    error: Counter,
    duration: Histogram,
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
        }
    }

    /// Counts a call that has its answer's head, or its failure, after so long.
    pub(super) fn ended(&self, failure: Option<&Failure>, after: Duration) {
        let outcome = match failure.map(|failure| failure.kind) {
            None => &self.success,
            Some(FailureKind::TimedOut) => &self.timeout,
            Some(FailureKind::Busy) => &self.busy,
            Some(FailureKind::Cancelled) => &self.cancelled,
            Some(FailureKind::BadRequest | FailureKind::RequestTooLarge | FailureKind::CannotFit) => {
                &self.refused
            }
            Some(_) => &self.error,
        };
        outcome.increment(1);
        self.duration.record(after);
    }
}
