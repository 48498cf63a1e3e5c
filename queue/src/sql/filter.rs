//! Conditions that are the same text in every database. They hold numbers and ids alone, which need no quoting.

use kiln_shared::queue::{List, Purge, State};

use crate::engine::{millis, stored};

/// What restricts a list, each part beginning with `AND`.
pub(crate) fn listed(list: &List, now_millis: i64) -> String {
    let function = list.function_id.map(|function| format!(" AND m.function_id = '{function}'"));
    let state = list.state.map(|state| {
        let (state, due) = match state {
            State::Queued => (stored::WAITING, format!(" AND m.due_at <= {now_millis}")),
            State::Delayed => (stored::WAITING, format!(" AND m.due_at > {now_millis}")),
            State::Running => (stored::RUNNING, String::new()),
            State::Done => (stored::DONE, String::new()),
            State::Dead => (stored::DEAD, String::new()),
            State::Cancelled => (stored::CANCELLED, String::new()),
        };
        format!(" AND m.state = {state}{due}")
    });
    function.unwrap_or_default() + &state.unwrap_or_default()
}

/// The stored states that are purged, with commas between them, and when they must have ended.
pub(crate) fn purged(purge: Purge, now_millis: i64) -> (String, i64) {
    match purge {
        Purge::Finished(age) => {
            (format!("{}, {}", stored::DONE, stored::CANCELLED), now_millis - millis(age))
        }
        Purge::Dead(age) => (stored::DEAD.to_string(), now_millis - millis(age)),
    }
}
