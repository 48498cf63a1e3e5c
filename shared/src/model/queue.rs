//! The queue of detached calls as balancers show it to operators (`/kiln/v1/queue`).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::FunctionId;
use crate::queue::{Depth, MessageView};

/// What the queue holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct QueueResource {
    /// Calls that are due.
    pub queued: u64,
    /// Calls whose time has not come.
    pub delayed: u64,
    /// Calls that nodes have.
    pub running: u64,
    /// Calls that failed for good and are kept.
    pub dead: u64,
    /// For how long the longest waiting call has been due, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_seconds: Option<f64>,
    /// The same by function, ordered by function.
    pub functions: Vec<QueueFunction>,
}

/// What a function has in the queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QueueFunction {
    /// The function.
    pub fn_id: FunctionId,
    /// Its app's and its own name, while the catalog has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Calls that are due.
    pub queued: u64,
    /// Calls whose time has not come.
    pub delayed: u64,
    /// Calls that nodes have.
    pub running: u64,
    /// Calls that failed for good and are kept.
    pub dead: u64,
    /// For how long the longest waiting call has been due, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_seconds: Option<f64>,
}

/// A call in the queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QueuedCall {
    /// Its app's and its function's name, while the catalog has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// The call.
    #[serde(flatten)]
    pub message: MessageView,
}

/// How many dead calls were put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redriven {
    /// Calls that are queued again.
    pub redriven: u64,
}

impl QueueResource {
    /// The sums of `functions`, and these.
    pub fn of(functions: Vec<QueueFunction>) -> Self {
        let sum = |of: fn(&QueueFunction) -> u64| functions.iter().map(of).fold(0, u64::saturating_add);
        Self {
            queued: sum(|function| function.queued),
            delayed: sum(|function| function.delayed),
            running: sum(|function| function.running),
            dead: sum(|function| function.dead),
            oldest_seconds: functions.iter().filter_map(|function| function.oldest_seconds).reduce(f64::max),
            functions,
        }
    }
}

impl QueueFunction {
    /// What the queue says of a function of that name, at `now`.
    pub fn of(depth: &Depth, name: Option<String>, now: Timestamp) -> Self {
        Self {
            fn_id: depth.function_id,
            name,
            queued: depth.queued,
            delayed: depth.delayed,
            running: depth.running,
            dead: depth.dead,
            // The queue's clock may be ahead of this one.
            oldest_seconds: depth.oldest_due_at.map(|due| now.duration_since(due).as_secs_f64().max(0.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_is_the_sum_of_its_functions_and_as_old_as_the_oldest() {
        assert_eq!(QueueResource::of(Vec::new()), QueueResource::default());
        let now = Timestamp::from_second(100).expect("a time");
        let depth = |queued, due: Option<i64>| Depth {
            function_id: FunctionId::generate(),
            queued,
            delayed: 1,
            running: 2,
            dead: 3,
            oldest_due_at: due.map(|second| Timestamp::from_second(second).expect("a time")),
        };
        let of = |depth| QueueFunction::of(&depth, None, now);
        let whole =
            QueueResource::of(vec![of(depth(4, Some(90))), of(depth(5, Some(101))), of(depth(0, None))]);
        assert_eq!((whole.queued, whole.delayed, whole.running, whole.dead), (9, 3, 6, 9));
        assert_eq!(whole.oldest_seconds, Some(10.0));
        assert_eq!(whole.functions[1].oldest_seconds, Some(0.0), "due by a clock that is ahead");
    }
}
