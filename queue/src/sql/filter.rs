//! Conditions that are the same text in every database. They hold numbers and ids alone, which need no quoting.

use kiln_shared::queue::{List, Purge, State};

use super::row::{millis, stored};

/// What restricts a list, each part beginning with `AND`.
pub(crate) fn listed(list: &List, now_millis: i64) -> String {
    let mut filter = String::new();
    if let Some(function) = list.function_id {
        filter += &format!(" AND m.function_id = '{function}'");
    }
    if let Some(state) = list.state {
        let (state, due) = match state {
            State::Queued => (stored::WAITING, format!(" AND m.due_at <= {now_millis}")),
            State::Delayed => (stored::WAITING, format!(" AND m.due_at > {now_millis}")),
            State::Running => (stored::RUNNING, String::new()),
            State::Done => (stored::DONE, String::new()),
            State::Dead => (stored::DEAD, String::new()),
            State::Cancelled => (stored::CANCELLED, String::new()),
        };
        filter += &format!(" AND m.state = {state}{due}");
    }
    filter
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
