//! Calls as the API shows them: those that ended (`spec/api-v2.md`, part 8), and detached ones on their way.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::wire;
use crate::ids::{AppId, CallId, FunctionId, TriggerId};
use crate::queue::{MessageView, State};
use crate::record::{CallRecord, CallStatus};

/// Where a call is: Fn's three words for one that ended, and those of detached calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CallState {
    /// It waits in the queue and is due.
    Queued,
    /// It waits in the queue for its time, or for its next attempt.
    Delayed,
    /// A node has it.
    Running,
    /// The function answered.
    Success,
    /// It failed.
    Error,
    /// The function's time ran out.
    Timeout,
    /// It was taken out of the queue before it ran.
    Cancelled,
    /// It failed as often as it may, or its deadline passed, and is kept in the queue.
    Dead,
}

impl CallState {
    /// The API's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Delayed => "delayed",
            Self::Running => "running",
            Self::Success => "success",
            Self::Error => "error",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::Dead => "dead",
        }
    }
}

impl From<CallStatus> for CallState {
    fn from(status: CallStatus) -> Self {
        match status {
            CallStatus::Success => Self::Success,
            CallStatus::Error => Self::Error,
            CallStatus::Timeout => Self::Timeout,
        }
    }
}

/// A call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Call {
    /// Names the call.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub id: CallId,
    /// Where it is, or how it ended.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub status: CallState,
    /// Why it failed, the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its app.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub app_id: AppId,
    /// Its function.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub fn_id: FunctionId,
    /// The trigger it came through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub trigger_id: Option<TriggerId>,
    /// When a node took it; of a detached call that its record does not tell of, when it was accepted.
    #[serde(with = "wire::timestamp")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub created_at: Timestamp,
    /// When it got a container; absent if it never did.
    #[serde(default, with = "wire::optional_timestamp", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub started_at: Option<Timestamp>,
    /// When it ended; absent while it has not.
    #[serde(default, with = "wire::optional_timestamp", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub completed_at: Option<Timestamp>,
    /// A container was started for it. Kiln's own field, shown only where true.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cold: bool,
}

impl From<CallRecord> for Call {
    fn from(record: CallRecord) -> Self {
        Self {
            id: record.id,
            status: record.status.into(),
            error: record.error,
            app_id: record.app_id,
            fn_id: record.function_id,
            trigger_id: record.trigger_id,
            created_at: record.created_at,
            started_at: record.started_at,
            completed_at: Some(record.completed_at),
            cold: record.cold,
        }
    }
}

impl Call {
    /// A detached call as the queue has it. `record` is that of its last attempt that ended, if there is one.
    pub fn of_message(message: &MessageView, record: Option<CallRecord>) -> Self {
        let status = match (message.state, &record) {
            (State::Queued, _) => CallState::Queued,
            (State::Delayed, _) => CallState::Delayed,
            (State::Running, _) => CallState::Running,
            (State::Dead, _) => CallState::Dead,
            (State::Cancelled, _) => CallState::Cancelled,
            (State::Done, Some(record)) => record.status.into(),
            // Records may be late, and may be dropped. Only a success is done.
            (State::Done, None) => CallState::Success,
        };
        let has_ended = matches!(message.state, State::Done | State::Dead | State::Cancelled);
        let (trigger_id, cold) =
            record.as_ref().map_or((None, false), |record| (record.trigger_id, record.cold));
        let ended_at =
            record.as_ref().map(|record| record.completed_at).filter(|_| message.state == State::Done);
        let error = message.last_error.clone().filter(|_| status != CallState::Success);
        Self {
            id: message.id,
            status,
            error,
            app_id: message.app_id,
            fn_id: message.function_id,
            trigger_id,
            created_at: record.as_ref().map_or(message.created_at, |record| record.created_at),
            started_at: record.and_then(|record| record.started_at).or(message.started_at),
            completed_at: ended_at.or(message.ended_at).filter(|_| has_ended),
            cold,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Priority;
    use crate::story::Story;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn message(state: State) -> MessageView {
        MessageView {
            id: CallId::generate(),
            function_id: FunctionId::generate(),
            app_id: AppId::generate(),
            priority: Priority::default(),
            state,
            attempts: 1,
            attempts_max: 3,
            created_at: at(1),
            due_at: at(2),
            deadline_at: None,
            started_at: Some(at(3)),
            leased_until: None,
            worker: None,
            ended_at: Some(at(9)),
            last_error: Some("no".to_owned()),
            payload_bytes: 0,
        }
    }

    fn record(message: &MessageView, status: CallStatus) -> CallRecord {
        CallRecord {
            id: message.id,
            app_id: message.app_id,
            function_id: message.function_id,
            trigger_id: None,
            status,
            error: Some("no".to_owned()),
            created_at: at(4),
            started_at: Some(at(5)),
            completed_at: at(6),
            cold: true,
            story: Story::default(),
        }
    }

    #[test]
    fn a_call_on_its_way_has_the_queues_word_and_no_end() {
        for state in [State::Queued, State::Delayed, State::Running] {
            let message = message(state);
            for record in [None, Some(record(&message, CallStatus::Error))] {
                let call = Call::of_message(&message, record);
                assert_eq!((call.status.as_str(), call.completed_at), (state.as_str(), None));
                assert_eq!(call.error.as_deref(), Some("no"), "of the attempt before");
            }
        }
    }

    #[test]
    fn a_call_that_is_done_ended_as_its_record_says() {
        let message = message(State::Done);
        let call = Call::of_message(&message, None);
        assert_eq!((call.status, call.completed_at, call.error), (CallState::Success, Some(at(9)), None));
        let call = Call::of_message(&message, Some(record(&message, CallStatus::Success)));
        assert_eq!((call.completed_at, call.started_at, call.cold), (Some(at(6)), Some(at(5)), true));
    }

    #[test]
    fn a_dead_call_says_when_it_died_and_why() {
        let message = message(State::Dead);
        let call = Call::of_message(&message, Some(record(&message, CallStatus::Timeout)));
        assert_eq!((call.status, call.completed_at), (CallState::Dead, Some(at(9))));
        assert_eq!(call.error.as_deref(), Some("no"));
    }
}
