//! Many call records and pieces of logs as one statement, so one round trip, whatever their number.

use std::sync::LazyLock;

use jiff::Timestamp;
use kiln_shared::ids::TriggerId;
use kiln_shared::record::{CallRecord, LogChunk};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPool;

use super::without_nul;
use crate::store::records::{CALL_COLUMNS, LOG_COLUMNS, UPDATE_OLDER_CALL, status_to_sql, story_to_sql};

/// Arrays of columns in, the number of new calls out. Both inserts run, though only one is asked for its rows:
/// <https://www.postgresql.org/docs/15/queries-with.html#QUERIES-WITH-MODIFYING>. A row that was inserted, and not
/// updated, has no `xmax`.
static APPEND: LazyLock<String> = LazyLock::new(|| {
    let (calls, logs) = (CALL_COLUMNS.join(", "), LOG_COLUMNS.join(", "));
    let update = UPDATE_OLDER_CALL.as_str();
    format!(
        "WITH more_calls AS (\
             INSERT INTO calls ({calls}) SELECT * FROM unnest(\
                 $1::text[], $2::text[], $3::text[], $4::int[], $5::text[], \
                 $6::bigint[], $7::bigint[], $8::bigint[], $9::int[], $10::text[]\
             ) ON CONFLICT {update} RETURNING (xmax = 0) AS is_new\
         ), more_logs AS (\
             INSERT INTO logs ({logs}) SELECT * FROM unnest($11::text[], $12::bigint[], $13::bigint[], $14::text[]) \
             ON CONFLICT DO NOTHING\
         ) SELECT count(*) FILTER (WHERE is_new) FROM more_calls"
    )
});

/// Stores calls, of which each is there once, and pieces of logs; how many calls were new.
pub(super) async fn append(
    pool: &PgPool,
    calls: &[&CallRecord],
    logs: &[&LogChunk],
) -> Result<u64, sqlx::Error> {
    // In one order everywhere: batches of the same calls, sent to two balancers, else could wait for each other.
    let mut calls = calls.to_vec();
    calls.sort_by_key(|call| call.id);
    let mut logs = logs.to_vec();
    logs.sort_by_key(|chunk| (chunk.call_id, chunk.part));
    let new: i64 = sqlx::query_scalar(AssertSqlSafe(APPEND.as_str()))
        .bind(column(&calls, |call| call.id.as_str()))
        .bind(column(&calls, |call| call.function_id.as_str()))
        .bind(column(&calls, |call| call.trigger_id.as_ref().map(TriggerId::as_str)))
        .bind(column(&calls, |call| status_to_sql(call.status)))
        .bind(column(&calls, |call| call.error.as_deref().map(without_nul)))
        .bind(column(&calls, |call| call.created_at.as_millisecond()))
        .bind(column(&calls, |call| call.started_at.map(Timestamp::as_millisecond)))
        .bind(column(&calls, |call| call.completed_at.as_millisecond()))
        .bind(column(&calls, |call| i32::from(call.cold)))
        .bind(column(&calls, |call| story_to_sql(&call.story)))
        .bind(column(&logs, |chunk| chunk.call_id.as_str()))
        .bind(column(&logs, |chunk| chunk.part))
        .bind(column(&logs, |chunk| chunk.text.len() as i64))
        .bind(column(&logs, |chunk| without_nul(&chunk.text)))
        .fetch_one(pool)
        .await?;
    Ok(new.unsigned_abs())
}

fn column<'a, R, T>(rows: &'a [R], value: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}
