//! A call's record, written exactly once however the call ends.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use kiln_shared::call::{CallKind, CallRequest, Failure, Stages};
use kiln_shared::ids::NodeId;
use kiln_shared::record::{CallRecord, CallStatus, Record, RecordSink};
use kiln_shared::story::{NodeTimes, Story};

/// The record of a call that has not ended. Dropped without an end it says that the caller went away.
#[derive(Debug)]
pub(super) struct Journal {
    record: Option<CallRecord>,
    sink: RecordSink,
    opened: Instant,
    /// When the container was given the call.
    given: Option<Instant>,
    times: NodeTimes,
}

impl Journal {
    /// Opens the record of a call that has just arrived at `node`. Takes the call's placement out of the request: it is told
    /// once.
    pub(super) fn open(request: &mut CallRequest, node: NodeId, sink: RecordSink) -> Self {
        let now = Timestamp::now();
        let record = CallRecord {
            id: request.id,
            app_id: request.function.spec.app_id,
            function_id: request.function.spec.id,
            trigger_id: match request.kind {
                CallKind::Trigger(id) => Some(id),
                CallKind::Invoke => None,
            },
            status: CallStatus::Success,
            error: None,
            created_at: now,
            started_at: None,
            completed_at: now,
            cold: false,
            story: Story { node: Some(node), placement: request.placement.take(), ..Story::default() },
        };
        let times = NodeTimes::default();
        Self { record: Some(record), sink, opened: Instant::now(), given: None, times }
    }

    /// The call has a slot, for which it waited so long: `start` of it for the container's own start. Returns the whole
    /// wait.
    pub(super) fn seated(&mut self, start: Option<Duration>) -> Duration {
        let waited = self.opened.elapsed();
        // A container may have been on its way before the call came.
        self.times.start = start.unwrap_or_default().min(waited);
        self.times.queue = waited.saturating_sub(self.times.start);
        waited
    }

    /// The call begins in its container. Returns the time of that.
    pub(super) fn started(&mut self, cold: bool) -> Timestamp {
        let now = Timestamp::now();
        if let Some(record) = &mut self.record {
            record.started_at = Some(now);
            record.cold = cold;
        }
        now
    }

    /// The container is given the call.
    pub(super) fn given(&mut self) {
        self.given = Some(Instant::now());
    }

    /// The head of the answer is here. Returns how the call came to that.
    pub(super) fn answered(&mut self) -> Stages {
        self.times.run = self.given.take().map(|given| given.elapsed()).unwrap_or_default();
        let NodeTimes { queue, start, run, .. } = self.times;
        let cold = self.record.as_ref().is_some_and(|record| record.cold);
        Stages { cold, wait: queue + start, start, run }
    }

    /// The call ended well.
    pub(super) fn succeeded(mut self) {
        self.end(CallStatus::Success, None);
    }

    /// The call failed. Gives the failure back.
    pub(super) fn failed(mut self, failure: Failure) -> Failure {
        let error = match &failure.detail {
            Some(detail) => format!("{}: {detail}", failure.message),
            None => failure.message.to_string(),
        };
        self.end(CallStatus::of_failure(failure.kind), Some(error));
        failure
    }

    /// The call was refused and may run elsewhere: nothing is left of it here.
    pub(super) fn refused(mut self) {
        self.record = None;
    }

    fn end(&mut self, status: CallStatus, error: Option<String>) {
        if let Some(mut record) = self.record.take() {
            record.status = status;
            record.error = error;
            record.completed_at = Timestamp::now();
            if let Some(given) = self.given {
                self.times.run = given.elapsed();
            }
            self.times.whole = self.opened.elapsed();
            record.story.times = Some(self.times);
            self.sink.send(Record::Call(record));
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.end(CallStatus::Error, Some("context canceled".to_owned()));
    }
}
