//! Rows of the tables, alike in all databases.

use kiln_shared::queue::Depth;

use crate::engine::{Broken, priority, time};
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

/// What a message carries.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Body {
    pub(crate) seq: i64,
    pub(crate) envelope: String,
    pub(crate) payload: Vec<u8>,
}

/// A stored message, by what new ones may have in common with it.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct KnownRow {
    pub(crate) id: String,
    pub(crate) function_id: String,
    pub(crate) idempotency_key: Option<String>,
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

impl From<Broken> for sqlx::Error {
    fn from(broken: Broken) -> Self {
        Self::Decode(broken.into())
    }
}

/// An id as it is stored.
pub(crate) fn parse<T: std::str::FromStr<Err: ToString>>(id: &str) -> Result<T, sqlx::Error> {
    Ok(crate::engine::parse(id)?)
}
