//! Many call records or pieces of logs as one statement.
//!
//! Appending happens for every call, so this counts: one round trip to the database's thread per batch,
//! statements that are prepared once, few values that need memory of their own.

use std::sync::LazyLock;

use jiff::Timestamp;
use kiln_shared::ids::TriggerId;
use kiln_shared::record::{CallRecord, LogChunk};
use sqlx::Arguments;
use sqlx::error::BoxDynError;
use sqlx::sqlite::SqliteArguments;

use crate::store::StoreError;
use crate::store::records::{CALL_COLUMNS, LOG_COLUMNS, UPDATE_OLDER_CALL, status_to_sql, story_to_sql};

/// Rows per statement. A batch takes the smallest that holds it and leaves the other rows empty.
const ROWS: [usize; 5] = [4, 16, 64, 192, 512];
const ROWS_MAX: usize = ROWS[ROWS.len() - 1];

static CALLS: LazyLock<[String; ROWS.len()]> =
    LazyLock::new(|| ROWS.map(|rows| insert_rows_sql("calls", &CALL_COLUMNS, rows, &UPDATE_OLDER_CALL)));
static LOGS: LazyLock<[String; ROWS.len()]> =
    LazyLock::new(|| ROWS.map(|rows| insert_rows_sql("logs", &LOG_COLUMNS, rows, "DO NOTHING")));

/// A statement with its values.
pub(super) struct Insert {
    pub(super) sql: &'static str,
    pub(super) values: SqliteArguments,
}

/// The inserts of calls.
pub(super) fn calls(calls: &[&CallRecord]) -> Result<Vec<Insert>, StoreError> {
    inserts(&CALLS, CALL_COLUMNS.len(), calls, |call, values| {
        values.add(call.id.as_str())?;
        values.add(call.function_id.as_str())?;
        values.add(call.trigger_id.as_ref().map(TriggerId::as_str))?;
        values.add(status_to_sql(call.status))?;
        values.add(call.error.as_deref())?;
        values.add(call.created_at.as_millisecond())?;
        values.add(call.started_at.map(Timestamp::as_millisecond))?;
        values.add(call.completed_at.as_millisecond())?;
        values.add(i32::from(call.cold))?;
        values.add(story_to_sql(&call.story))
    })
}

/// The inserts of pieces of logs.
pub(super) fn logs(pieces: &[&LogChunk]) -> Result<Vec<Insert>, StoreError> {
    inserts(&LOGS, LOG_COLUMNS.len(), pieces, |chunk, values| {
        values.add(chunk.call_id.as_str())?;
        values.add(chunk.part)?;
        values.add(chunk.text.len() as i64)?;
        values.add(chunk.text.as_str())
    })
}

fn inserts<T>(
    statements: &'static [String; ROWS.len()],
    columns: usize,
    items: &[T],
    bind: impl Fn(&T, &mut SqliteArguments) -> Result<(), BoxDynError>,
) -> Result<Vec<Insert>, StoreError> {
    let insert = |items: &[T]| {
        let class = ROWS.iter().position(|rows| *rows >= items.len()).unwrap_or(ROWS.len() - 1);
        let mut values = SqliteArguments::default();
        values.reserve(ROWS[class] * columns, 0);
        for item in items {
            bind(item, &mut values)?;
        }
        for _ in items.len() * columns..ROWS[class] * columns {
            values.add(None::<i32>)?;
        }
        Ok(Insert { sql: &statements[class], values })
    };
    let inserts: Result<_, BoxDynError> = items.chunks(ROWS_MAX).map(insert).collect();
    inserts.map_err(|error| sqlx::Error::Encode(error).into())
}

/// Text of a statement that inserts up to `rows` rows; those whose first value is absent are left out, and with
/// those that are there already it does what `on_conflict` says.
fn insert_rows_sql(table: &str, columns: &[&str], rows: usize, on_conflict: &str) -> String {
    let row = format!("({})", vec!["?"; columns.len()].join(", "));
    let rows = vec![row; rows].join(", ");
    let columns = columns.join(", ");
    format!(
        "INSERT INTO {table} ({columns}) SELECT * FROM (VALUES {rows}) WHERE column1 IS NOT NULL ON CONFLICT {on_conflict}"
    )
}
