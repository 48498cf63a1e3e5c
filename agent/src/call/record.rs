//! A call's record, written exactly once however the call ends.

use jiff::Timestamp;
use kiln_shared::call::{CallKind, CallRequest, Failure};
use kiln_shared::record::{CallRecord, CallStatus, Record, RecordSink};

/// The record of a call that has not ended. Dropped without an end it says that the caller went away.
#[derive(Debug)]
pub(super) struct Journal {
    record: Option<CallRecord>,
    sink: RecordSink,
}

impl Journal {
    /// Opens the record of a call that has just arrived.
    pub(super) fn open(request: &CallRequest, sink: RecordSink) -> Self {
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
        };
        Self { record: Some(record), sink }
    }

    /// The call got its slot. Returns the time of that.
    pub(super) fn started(&mut self, cold: bool) -> Timestamp {
        let now = Timestamp::now();
        if let Some(record) = &mut self.record {
            record.started_at = Some(now);
            record.cold = cold;
        }
        now
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
            self.sink.send(Record::Call(record));
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.end(CallStatus::Error, Some("context canceled".to_owned()));
    }
}
