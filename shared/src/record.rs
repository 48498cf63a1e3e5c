//! What is kept of a call after it ended, and the bounded way to the store.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::call::FailureKind;
use crate::ids::{AppId, CallId, FunctionId, TriggerId};
use crate::story::Story;

/// How a call ended, in the words of Fn's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CallStatus {
    /// The function answered.
    Success,
    /// Anything else.
    Error,
    /// The function's time ran out.
    Timeout,
}

impl CallStatus {
    /// The API's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Error => "error",
            Self::Timeout => "timeout",
        }
    }

    /// The status of a call that failed.
    pub fn of_failure(kind: FailureKind) -> Self {
        if kind == FailureKind::TimedOut { Self::Timeout } else { Self::Error }
    }
}

/// The record of a call that ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CallRecord {
    /// The call.
    pub id: CallId,
    /// Its app.
    pub app_id: AppId,
    /// Its function.
    pub function_id: FunctionId,
    /// The trigger it came through, if any.
    pub trigger_id: Option<TriggerId>,
    /// How it ended.
    pub status: CallStatus,
    /// Why it failed.
    pub error: Option<String>,
    /// When the agent took it; when it came to the balancer if none did.
    pub created_at: Timestamp,
    /// When it got a slot; absent if it never did.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub completed_at: Timestamp,
    /// A container was started for it.
    pub cold: bool,
    /// How it came to its node, and where its time went.
    #[serde(default, skip_serializing_if = "Story::is_empty")]
    pub story: Story,
}

/// A piece of a call's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogChunk {
    /// The call.
    pub call_id: CallId,
    /// Its app.
    pub app_id: AppId,
    /// Its function.
    pub function_id: FunctionId,
    /// Orders the pieces of one call, and tells them apart: a piece that is stored twice is stored once.
    pub part: i64,
    /// What the container wrote, bytes that are not UTF-8 replaced.
    pub text: String,
}

/// What agents hand to the store, and balancers of calls that no agent took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(
    clippy::large_enum_variant,
    reason = "most records are calls, and a box would cost each an allocation"
)]
pub enum Record {
    /// A call ended.
    Call(CallRecord),
    /// A call wrote output.
    Log(LogChunk),
}

/// The bounded way to the store. Sending never waits: when the store cannot keep up, records are dropped
/// and counted in `kiln_records_dropped_total`, and calls go on.
#[derive(Debug, Clone)]
pub struct RecordSink {
    sender: mpsc::Sender<Record>,
}

impl RecordSink {
    /// A sink and its receiving end, with room for `records_max` records.
    pub fn bounded(records_max: usize) -> (Self, mpsc::Receiver<Record>) {
        let (sender, receiver) = mpsc::channel(records_max);
        (Self { sender }, receiver)
    }

    /// Hands over a record that waits safely elsewhere: waits for room. False if nobody takes records any more.
    pub async fn deliver(&self, record: Record) -> bool {
        self.sender.send(record).await.is_ok()
    }

    /// Hands over a record, or drops and counts it.
    pub fn send(&self, record: Record) {
        if self.sender.try_send(record).is_err() {
            metrics::counter!("kiln_records_dropped_total").increment(1);
        }
    }
}
