//! A message as it is stored, alike in all backends, and what it means.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use kiln_shared::queue::{
    MessageView, NewMessage, Priority, QueueError, Receipt, Reserved, RetryPolicy, State, Tries,
};
use serde_json::value::RawValue;

/// What is stored cannot be what Kiln wrote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("what is stored makes no sense: {0}")]
pub(crate) struct Broken(pub(crate) String);

impl From<Broken> for QueueError {
    fn from(broken: Broken) -> Self {
        Self::Failed(broken.to_string())
    }
}

/// A state as it is stored. Waiting messages are queued or delayed by their time.
pub(crate) mod stored {
    pub(crate) const WAITING: i64 = 0;
    pub(crate) const RUNNING: i64 = 1;
    pub(crate) const DONE: i64 = 2;
    pub(crate) const DEAD: i64 = 3;
    pub(crate) const CANCELLED: i64 = 4;
}

/// A message.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "sql", derive(sqlx::FromRow))]
#[cfg_attr(feature = "kafka", derive(serde::Serialize, serde::Deserialize))]
pub(crate) struct Row {
    pub(crate) seq: i64,
    pub(crate) id: String,
    pub(crate) function_id: String,
    pub(crate) app_id: String,
    pub(crate) priority: i64,
    pub(crate) state: i64,
    pub(crate) due_at: i64,
    pub(crate) deadline_at: Option<i64>,
    pub(crate) created_at: i64,
    pub(crate) started_at: Option<i64>,
    pub(crate) leased_until: Option<i64>,
    pub(crate) ended_at: Option<i64>,
    pub(crate) lease: i64,
    pub(crate) attempts: i64,
    pub(crate) attempts_max: i64,
    pub(crate) pause_min: i64,
    pub(crate) pause_max: i64,
    pub(crate) jitter: i64,
    pub(crate) worker: Option<String>,
    pub(crate) last_error: Option<String>,
    pub(crate) payload_bytes: i64,
}

impl Row {
    /// What decides about another attempt.
    pub(crate) fn tries(&self) -> Tries {
        Tries { attempts: self.attempts as u32, retry: self.retry(), deadline_millis: self.deadline_at }
    }

    /// True if the receipt is for the present or, once it has ended, the last lease.
    pub(crate) fn is_of(&self, receipt: &Receipt) -> bool {
        self.lease.unsigned_abs() == receipt.lease
    }

    fn retry(&self) -> RetryPolicy {
        RetryPolicy {
            attempts_max: self.attempts_max as u32,
            pause_min: Duration::from_millis(self.pause_min.unsigned_abs()),
            pause_max: Duration::from_millis(self.pause_max.unsigned_abs()),
            jitter_percent: self.jitter as u8,
        }
    }

    /// The message as it is given to a worker with what it carries, in the lease after the row's.
    pub(crate) fn reserved(&self, envelope: String, payload: impl Into<Bytes>) -> Result<Reserved, Broken> {
        Ok(Reserved {
            receipt: Receipt { id: parse(&self.id)?, lease: self.lease.unsigned_abs() + 1 },
            function_id: parse(&self.function_id)?,
            app_id: parse(&self.app_id)?,
            priority: priority(self.priority)?,
            attempt: self.attempts as u32 + 1,
            retry: self.retry(),
            created_at: time(self.created_at)?,
            envelope: RawValue::from_string(envelope).map_err(|error| broken(&error))?,
            payload: payload.into(),
        })
    }

    /// The message as people see it.
    pub(crate) fn view(&self, now_millis: i64) -> Result<MessageView, Broken> {
        let state = match self.state {
            stored::WAITING if self.due_at > now_millis => State::Delayed,
            stored::WAITING => State::Queued,
            stored::RUNNING => State::Running,
            stored::DONE => State::Done,
            stored::DEAD => State::Dead,
            stored::CANCELLED => State::Cancelled,
            other => return Err(Broken(format!("{other} is no state"))),
        };
        let optional = |millis: Option<i64>| millis.map(time).transpose();
        Ok(MessageView {
            id: parse(&self.id)?,
            function_id: parse(&self.function_id)?,
            app_id: parse(&self.app_id)?,
            priority: priority(self.priority)?,
            state,
            attempts: self.attempts as u32,
            attempts_max: self.attempts_max as u32,
            created_at: time(self.created_at)?,
            due_at: time(self.due_at)?,
            deadline_at: optional(self.deadline_at)?,
            started_at: optional(self.started_at)?,
            leased_until: optional(self.leased_until.filter(|_| state == State::Running))?,
            worker: self.worker.clone(),
            ended_at: optional(self.ended_at)?,
            last_error: self.last_error.clone(),
            payload_bytes: self.payload_bytes.unsigned_abs(),
        })
    }
}

/// Numbers of a new message as its row has them.
pub(crate) struct NewRow {
    pub(crate) due_at: i64,
    pub(crate) deadline_at: Option<i64>,
    pub(crate) attempts_max: i64,
    pub(crate) pause_min: i64,
    pub(crate) pause_max: i64,
    pub(crate) jitter: i64,
    pub(crate) payload_bytes: i64,
}

impl NewRow {
    pub(crate) fn of(message: &NewMessage, now_millis: i64) -> Self {
        Self {
            due_at: now_millis + millis(message.delay),
            deadline_at: message.deadline.map(|deadline| now_millis + millis(deadline)),
            attempts_max: message.retry.attempts_max.into(),
            pause_min: millis(message.retry.pause_min),
            pause_max: millis(message.retry.pause_max),
            jitter: message.retry.jitter_percent.into(),
            payload_bytes: message.payload.len() as i64,
        }
    }
}

/// A duration in milliseconds; all of the queue's have bounds far below the largest.
pub(crate) fn millis(duration: Duration) -> i64 {
    duration.as_millis() as i64
}

/// An id as it is stored.
pub(crate) fn parse<T: std::str::FromStr<Err: ToString>>(id: &str) -> Result<T, Broken> {
    id.parse().map_err(|error| broken(&error))
}

pub(crate) fn priority(number: i64) -> Result<Priority, Broken> {
    Priority::try_from(number as u8).map_err(|error| broken(&error))
}

pub(crate) fn time(millis: i64) -> Result<Timestamp, Broken> {
    Timestamp::from_millisecond(millis).map_err(|error| broken(&error))
}

fn broken(reason: &impl ToString) -> Broken {
    Broken(reason.to_string())
}
