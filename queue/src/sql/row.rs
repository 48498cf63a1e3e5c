//! Rows of the tables, alike in all databases, and what they mean.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use kiln_shared::queue::{
    Depth, MessageView, NewMessage, Priority, Receipt, Reserved, RetryPolicy, State, Tries,
};
use serde_json::value::RawValue;

use crate::fair::Lane;

/// Columns of [`Row`], of the table as `m`, for `concat!`.
macro_rules! columns {
    () => {
        "m.seq, m.id, m.function_id, m.app_id, m.priority, m.state, m.due_at, m.deadline_at, m.created_at, \
         m.started_at, m.leased_until, m.ended_at, m.lease, m.attempts, m.attempts_max, m.pause_min, m.pause_max, \
         m.jitter, m.worker, m.last_error, m.payload_bytes"
    };
}
pub(crate) use columns;

/// Most lanes that one reserve looks at, for `concat!`.
macro_rules! lanes_max {
    () => {
        "10000"
    };
}
pub(crate) use lanes_max;

/// A state as it is stored. Waiting messages are queued or delayed by their time.
pub(crate) mod stored {
    pub(crate) const WAITING: i64 = 0;
    pub(crate) const RUNNING: i64 = 1;
    pub(crate) const DONE: i64 = 2;
    pub(crate) const DEAD: i64 = 3;
    pub(crate) const CANCELLED: i64 = 4;
}

/// A message.
#[derive(Debug, Clone, sqlx::FromRow)]
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

/// What a message carries.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Body {
    pub(crate) seq: i64,
    pub(crate) envelope: String,
    pub(crate) payload: Vec<u8>,
}

/// The first waiting message of a function and priority.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct LaneRow {
    pub(crate) priority: i64,
    pub(crate) function_id: String,
    pub(crate) due_at: i64,
}

/// What a function has.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct DepthRow {
    pub(crate) function_id: String,
    pub(crate) queued: i64,
    pub(crate) delayed: i64,
    pub(crate) running: i64,
    pub(crate) dead: i64,
    pub(crate) oldest_due_at: Option<i64>,
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

    /// The message as it is given to a worker, in the lease after the row's.
    pub(crate) fn reserved(&self, body: Body) -> Result<Reserved, sqlx::Error> {
        Ok(Reserved {
            receipt: Receipt { id: parse(&self.id)?, lease: self.lease.unsigned_abs() + 1 },
            function_id: parse(&self.function_id)?,
            app_id: parse(&self.app_id)?,
            priority: priority(self.priority)?,
            attempt: self.attempts as u32 + 1,
            retry: self.retry(),
            created_at: time(self.created_at)?,
            envelope: RawValue::from_string(body.envelope).map_err(decode)?,
            payload: Bytes::from(body.payload),
        })
    }

    /// The message as people see it.
    pub(crate) fn view(&self, now_millis: i64) -> Result<MessageView, sqlx::Error> {
        let state = match self.state {
            stored::WAITING if self.due_at > now_millis => State::Delayed,
            stored::WAITING => State::Queued,
            stored::RUNNING => State::Running,
            stored::DONE => State::Done,
            stored::DEAD => State::Dead,
            stored::CANCELLED => State::Cancelled,
            other => return Err(decode(format!("{other} is no state"))),
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

impl LaneRow {
    pub(crate) fn lane(&self) -> Result<Lane, sqlx::Error> {
        Ok(Lane {
            priority: priority(self.priority)?,
            function_id: parse(&self.function_id)?,
            due_millis: self.due_at,
        })
    }
}

impl DepthRow {
    pub(crate) fn depth(&self) -> Result<Depth, sqlx::Error> {
        Ok(Depth {
            function_id: parse(&self.function_id)?,
            queued: self.queued.unsigned_abs(),
            delayed: self.delayed.unsigned_abs(),
            running: self.running.unsigned_abs(),
            dead: self.dead.unsigned_abs(),
            oldest_due_at: self.oldest_due_at.map(time).transpose()?,
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
pub(crate) fn parse<T: std::str::FromStr>(id: &str) -> Result<T, sqlx::Error>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    id.parse().map_err(decode)
}

fn priority(number: i64) -> Result<Priority, sqlx::Error> {
    Priority::try_from(number as u8).map_err(decode)
}

fn time(millis: i64) -> Result<Timestamp, sqlx::Error> {
    Timestamp::from_millisecond(millis).map_err(decode)
}

fn decode(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::Decode(error.into())
}
