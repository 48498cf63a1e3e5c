//! Many call records and pieces of logs in few statements.

use jiff::Timestamp;
use kiln_shared::ids::TriggerId;
use kiln_shared::record::{CallRecord, LogChunk};
use sqlx::{MySql, QueryBuilder, Transaction};

use crate::store::records::{CALL_COLUMNS, LOG_COLUMNS, status_to_sql, story_to_sql};

/// Most rows of one statement.
const ROWS_MAX: usize = 500;
/// A statement ends at the row that passes this, so that it fits in the server's largest packet (16 MiB where nobody
/// set it) with the largest row.
const STATEMENT_BYTES: usize = 4 << 20;

/// Stores calls, of which each is there once, and pieces of logs; how many calls were new.
pub(super) async fn append(
    transaction: &mut Transaction<'static, MySql>,
    calls: &[&CallRecord],
    logs: &[&LogChunk],
) -> Result<u64, sqlx::Error> {
    // In one order everywhere: batches of the same calls, sent to two balancers, else could wait for each other.
    let mut calls = calls.to_vec();
    calls.sort_by_key(|call| call.id);
    let mut logs = logs.to_vec();
    logs.sort_by_key(|chunk| (chunk.call_id, chunk.part));
    let mut new = 0;
    for calls in parts(&calls, |call| call.error.as_deref().map_or(0, str::len)) {
        let inserted = insert_calls(transaction, calls).await?;
        if inserted < calls.len() as u64 {
            update_older_calls(transaction, calls).await?;
        }
        new += inserted;
    }
    for logs in parts(&logs, |chunk| chunk.text.len()) {
        insert_logs(transaction, logs).await?;
    }
    Ok(new)
}

/// The rows of each statement.
fn parts<T>(mut rows: &[T], bytes_of: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let mut parts = Vec::new();
    while !rows.is_empty() {
        let mut bytes = 0;
        let over = rows.iter().position(|row| {
            bytes += bytes_of(row);
            bytes > STATEMENT_BYTES
        });
        let (part, rest) = rows.split_at(over.unwrap_or(rows.len()).clamp(1, ROWS_MAX.min(rows.len())));
        parts.push(part);
        rows = rest;
    }
    parts
}

/// Inserts those that are not there; how many those are.
async fn insert_calls(
    transaction: &mut Transaction<'static, MySql>,
    calls: &[&CallRecord],
) -> Result<u64, sqlx::Error> {
    let mut insert: QueryBuilder<MySql> =
        QueryBuilder::new(format!("INSERT IGNORE INTO calls ({}) ", CALL_COLUMNS.join(", ")));
    insert.push_values(calls, |mut values, call| {
        values
            .push_bind(call.id.as_str())
            .push_bind(call.function_id.as_str())
            .push_bind(call.trigger_id.as_ref().map(TriggerId::as_str))
            .push_bind(status_to_sql(call.status))
            .push_bind(call.error.as_deref())
            .push_bind(call.created_at.as_millisecond())
            .push_bind(call.started_at.map(Timestamp::as_millisecond))
            .push_bind(call.completed_at.as_millisecond())
            .push_bind(i32::from(call.cold))
            .push_bind(story_to_sql(&call.story));
    });
    let done = insert.build().persistent(calls.len() == 1).execute(&mut **transaction).await?;
    Ok(done.rows_affected())
}

/// Has calls that were tried again end as their last attempt did.
async fn update_older_calls(
    transaction: &mut Transaction<'static, MySql>,
    calls: &[&CallRecord],
) -> Result<(), sqlx::Error> {
    for call in calls {
        sqlx::query(
            "UPDATE calls SET fn_id = ?, trigger_id = ?, status = ?, error = ?, created_at = ?, started_at = ?, \
             completed_at = ?, cold = ?, story = ? WHERE id = ? AND created_at < ? AND completed_at < ?",
        )
        .bind(call.function_id.as_str())
        .bind(call.trigger_id.as_ref().map(TriggerId::as_str))
        .bind(status_to_sql(call.status))
        .bind(call.error.as_deref())
        .bind(call.created_at.as_millisecond())
        .bind(call.started_at.map(Timestamp::as_millisecond))
        .bind(call.completed_at.as_millisecond())
        .bind(i32::from(call.cold))
        .bind(story_to_sql(&call.story))
        .bind(call.id.as_str())
        .bind(call.created_at.as_millisecond())
        .bind(call.completed_at.as_millisecond())
        .execute(&mut **transaction)
        .await?;
    }
    Ok(())
}

async fn insert_logs(
    transaction: &mut Transaction<'static, MySql>,
    logs: &[&LogChunk],
) -> Result<(), sqlx::Error> {
    let mut insert: QueryBuilder<MySql> =
        QueryBuilder::new(format!("INSERT IGNORE INTO logs ({}) ", LOG_COLUMNS.join(", ")));
    insert.push_values(logs, |mut values, chunk| {
        values
            .push_bind(chunk.call_id.as_str())
            .push_bind(chunk.part)
            .push_bind(chunk.text.len() as i64)
            .push_bind(chunk.text.as_str());
    });
    insert.build().persistent(logs.len() == 1).execute(&mut **transaction).await.map(drop)
}
