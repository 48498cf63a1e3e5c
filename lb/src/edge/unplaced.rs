//! Records of calls that no node has a record of: it found no place, or its node was lost with it.
//!
//! Off the hot path. Invariant: however many calls are refused, at most [`UNPLACED_RECORDS_PER_SECOND_MAX`] of them a second are
//! explained and recorded; the others are counted.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use kiln_shared::call::{Failure, FailureKind};
use kiln_shared::ids::{AppId, CallId, TriggerId};
use kiln_shared::record::{CallRecord, CallStatus, Record, RecordSink};
use kiln_shared::story::Story;
use metrics::Counter;

use super::Edge;
use crate::fleet::{Attempts, Demand, explain};

/// Records of such calls in a second, of one balancer; a further one is counted in `kiln_unplaced_records_dropped_total`.
pub const UNPLACED_RECORDS_PER_SECOND_MAX: u32 = 100;
/// Nodes that the record of such a call tells of.
const CANDIDATES_MAX: usize = 8;

/// What a call's record says of it from the begin.
#[derive(Debug, Clone, Copy)]
pub(super) struct Named {
    pub(super) id: CallId,
    pub(super) app_id: AppId,
    pub(super) trigger_id: Option<TriggerId>,
    pub(super) demand: Demand,
    pub(super) received: Instant,
}

/// Where the records go.
pub(super) struct Unplaced {
    sink: RecordSink,
    rate: Rate,
    dropped: Counter,
}

impl Unplaced {
    /// With the recorder of metrics that is installed by now.
    pub(super) fn new(sink: RecordSink) -> Self {
        let dropped = metrics::counter!("kiln_unplaced_records_dropped_total");
        Self { sink, rate: Rate::new(Instant::now()), dropped }
    }
}

impl Edge {
    /// Records a call that failed, unless its node does so or it was no fault of the fleet's.
    pub(super) fn record_unplaced(&self, call: &Named, attempts: &Attempts, failure: &Failure) {
        let on_node = attempts.trail().last().filter(|made| made.refusal.is_none());
        let is_told = match failure.kind {
            FailureKind::NodeLost => on_node.is_some(),
            FailureKind::Busy | FailureKind::CannotFit | FailureKind::Internal => on_node.is_none(),
            _ => false,
        };
        if !is_told {
            return;
        }
        let now = Instant::now();
        if !self.unplaced.rate.admit(now) {
            self.unplaced.dropped.increment(1);
            return;
        }
        let placement = self.placement(attempts, call.received);
        let (node, candidates) = self.with_readers(|_, fleet| {
            let policy = *fleet.room().policy();
            let view = fleet.view();
            let node = on_node.and_then(|made| view.name_of(made.node));
            if on_node.is_some() {
                return (node, Vec::new());
            }
            let explained = explain(view, &call.demand, attempts.tried(), &policy, CANDIDATES_MAX, now);
            (node, explained.candidates)
        });
        let completed_at = Timestamp::now();
        let took = SignedDuration::try_from(placement.before).unwrap_or_default();
        let record = CallRecord {
            id: call.id,
            app_id: call.app_id,
            function_id: call.demand.function,
            trigger_id: call.trigger_id,
            status: CallStatus::of_failure(failure.kind),
            error: Some(words(failure)),
            created_at: completed_at.checked_sub(took).unwrap_or(completed_at),
            started_at: None,
            completed_at,
            cold: false,
            story: Story { node, placement: Some(placement), times: None, candidates },
        };
        self.unplaced.sink.send(Record::Call(record));
    }
}

/// The failure for its record: what the caller was told, and what it was not.
fn words(failure: &Failure) -> String {
    match &failure.detail {
        Some(detail) if !failure.message.ends_with(detail.as_str()) => {
            format!("{}: {detail}", failure.message)
        }
        _ => failure.message.to_string(),
    }
}

/// So many a second. Shared by the workers; only calls that fail look at it.
struct Rate {
    born: Instant,
    /// The second since then, and how many were let through in it, 32 bits each.
    window: AtomicU64,
}

impl Rate {
    fn new(born: Instant) -> Self {
        Self { born, window: AtomicU64::new(0) }
    }

    /// True for the first [`UNPLACED_RECORDS_PER_SECOND_MAX`] of each second.
    fn admit(&self, now: Instant) -> bool {
        let second = now.saturating_duration_since(self.born).as_secs();
        let next = |window: u64| match window & u64::from(u32::MAX) {
            _ if window >> 32 < second => Some((second << 32) | 1),
            count if count < u64::from(UNPLACED_RECORDS_PER_SECOND_MAX) => Some(window + 1),
            _ => None,
        };
        self.window.fetch_update(Relaxed, Relaxed, next).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_flood_is_let_through_in_part_each_second() {
        let born = Instant::now();
        let rate = Rate::new(born);
        let admitted = |millis: u64| {
            let now = born + Duration::from_millis(millis);
            (0..1000).filter(|_| rate.admit(now)).count()
        };
        let max = UNPLACED_RECORDS_PER_SECOND_MAX as usize;
        assert_eq!([0, 999, 1000, 1500, 90_000].map(admitted), [max, 0, max, 0, max]);
        // A thread that read the clock a moment earlier adds to the newest second.
        assert_eq!(admitted(89_999), 0);
    }

    #[test]
    fn what_the_caller_was_told_is_not_told_twice() {
        assert_eq!(
            words(&crate::fleet::unavailable("no node is up")),
            "Timed out - server too busy: no node is up"
        );
        assert_eq!(words(&Failure::internal("why")), "internal server error: why");
        assert_eq!(words(&Failure::cannot_fit()), "Requested CPU/Memory cannot be allocated");
    }
}
