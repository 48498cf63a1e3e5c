//! Ended calls and their logs as rows: appending, bounds and queries.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use kiln_shared::ids::CallId;
use kiln_shared::model::{ApiError, App, FunctionResource};
use kiln_shared::record::{CallRecord, CallStatus, LogChunk, Record};
use kiln_shared::story::Story;
use sea_query::{Condition, Expr, ExprTrait, Func, FunctionCall, Order, Query, SelectStatement};
use sqlx::error::BoxDynError;

use super::db::{Session, Writing};
use super::sql::SqlStore;
use super::{CallsPage, Kept, RecordStore, Retention, StoreError, StoreFuture, ToldCall};

pub(super) const CALL_COLUMNS: [&str; 10] = [
    "id",
    "fn_id",
    "trigger_id",
    "status",
    "error",
    "created_at",
    "started_at",
    "completed_at",
    "cold",
    STORY_COLUMN,
];
/// Read only where one call's story is asked for.
const STORY_COLUMN: &str = "story";
pub(super) const LOG_COLUMNS: [&str; 4] = ["call_id", "part", "bytes", "text"];

/// What happens to a call that is there already: a detached call that was tried again ends as its last attempt did. A record
/// that comes twice, over two links, changes nothing.
pub(super) static UPDATE_OLDER_CALL: LazyLock<String> = LazyLock::new(|| {
    let set = CALL_COLUMNS[1..].iter().map(|column| format!("{column} = excluded.{column}"));
    let set = set.collect::<Vec<_>>().join(", ");
    format!(
        "(id) DO UPDATE SET {set} \
         WHERE excluded.created_at > calls.created_at AND excluded.completed_at > calls.completed_at"
    )
});

/// Calls looked at in one go when old logs are removed.
const TRIM_CALLS: u64 = 1_000;

impl Session {
    /// How much is kept. Reads all rows.
    async fn kept(&mut self) -> Result<Kept, StoreError> {
        let calls = Query::select().expr(Func::count(Expr::val(1))).from("calls").to_owned();
        let calls: Option<(i64,)> = self.first(&calls).await?;
        Ok(Kept {
            calls: calls.map_or(0, |(count,)| count.unsigned_abs()),
            log_bytes: self.log_bytes(Condition::all()).await?,
        })
    }

    /// Bytes of the logs that `which` selects.
    async fn log_bytes(&mut self, which: Condition) -> Result<u64, StoreError> {
        let sum = sum_of_bytes(self.integer());
        let query = Query::select().expr(sum).from("logs").cond_where(which).to_owned();
        let sum: Option<(Option<i64>,)> = self.first(&query).await?;
        Ok(sum.and_then(|(bytes,)| bytes).map_or(0, i64::unsigned_abs))
    }

    /// Removes the calls that `calls` selects and the logs that `logs` selects; how much that was.
    async fn remove_records(&mut self, calls: Condition, logs: Condition) -> Result<Kept, StoreError> {
        let log_bytes = self.log_bytes(logs.clone()).await?;
        if log_bytes > 0 {
            self.execute(Query::delete().from_table("logs").cond_where(logs)).await?;
        }
        let calls = self.execute(Query::delete().from_table("calls").cond_where(calls)).await?;
        Ok(Kept { calls, log_bytes })
    }

    /// Removes all calls and logs of a function; how much that was.
    pub(super) async fn remove_records_of(&mut self, fn_id: &str) -> Result<Kept, StoreError> {
        let of_function = Condition::all().add(Expr::col("fn_id").eq(fn_id));
        let ids = Query::select().column("id").from("calls").cond_where(of_function.clone()).to_owned();
        let log_bytes = self.log_bytes(Condition::all().add(Expr::col("call_id").in_subquery(ids))).await?;
        if log_bytes > 0 {
            self.remove_logs_of(fn_id).await?;
        }
        let calls = self.execute(Query::delete().from_table("calls").cond_where(of_function)).await?;
        Ok(Kept { calls, log_bytes })
    }

    /// Removes the `count` oldest calls, and the logs that are older than all that are left.
    async fn remove_oldest_calls(&mut self, count: u64) -> Result<Kept, StoreError> {
        let query = Query::select()
            .column("id")
            .from("calls")
            .order_by("id", Order::Asc)
            .limit(1)
            .offset(count.saturating_sub(1))
            .to_owned();
        let Some((last,)) = self.first::<(String,)>(&query).await? else { return Ok(Kept::default()) };
        self.remove_records(until("id", &last), until("call_id", &last)).await
    }

    /// Removes the logs of the oldest calls, `bytes` at least; how much that was.
    async fn remove_oldest_logs(&mut self, bytes: u64) -> Result<Kept, StoreError> {
        let (mut last, mut passed) = (String::new(), 0);
        while passed < bytes {
            let query = Query::select()
                .column("call_id")
                .expr(sum_of_bytes(self.integer()))
                .from("logs")
                .and_where(Expr::col("call_id").gt(last.as_str()))
                .group_by_col("call_id")
                .order_by("call_id", Order::Asc)
                .limit(TRIM_CALLS)
                .to_owned();
            let oldest: Vec<(String, i64)> = self.all(&query).await?;
            if oldest.is_empty() {
                break;
            }
            for (call_id, bytes_of_call) in oldest {
                if passed < bytes {
                    passed += bytes_of_call.unsigned_abs();
                    last = call_id;
                }
            }
        }
        self.remove_records(Condition::all().add(Expr::val(1).eq(0)), until("call_id", &last)).await
    }

    async fn find_call(&mut self, fn_id: &str, call_id: &str) -> Result<Option<CallRow>, StoreError> {
        let query = select_calls()
            .and_where(Expr::col("fn_id").eq(fn_id))
            .and_where(Expr::col("id").eq(call_id))
            .to_owned();
        self.first(&query).await
    }
}

/// The sum as a number of 64 bits, which on servers it is not by itself.
fn sum_of_bytes(integer: &'static str) -> FunctionCall {
    Func::cast_as(Func::sum(Expr::col("bytes")), integer)
}

/// Rows up to `last`, the oldest ones.
fn until(column: &'static str, last: &str) -> Condition {
    Condition::all().add(Expr::col(column).lte(last))
}

/// How much is kept, counted at the begin and whenever old records are removed, and kept up to date between:
/// counting reads every row. What other processes do in between is missed, so each may add a tenth to the bounds.
#[derive(Debug, Default)]
pub(super) struct Counters {
    calls: AtomicU64,
    log_bytes: AtomicU64,
}

impl Counters {
    fn add(&self, more: Kept) -> Kept {
        Kept {
            calls: self.calls.fetch_add(more.calls, Ordering::Relaxed) + more.calls,
            log_bytes: self.log_bytes.fetch_add(more.log_bytes, Ordering::Relaxed) + more.log_bytes,
        }
    }

    fn set(&self, kept: Kept) {
        self.calls.store(kept.calls, Ordering::Relaxed);
        self.log_bytes.store(kept.log_bytes, Ordering::Relaxed);
    }

    fn subtract(&self, less: Kept) {
        let lower = |counter: &AtomicU64, by: u64| {
            // Never below nothing, though another process may have removed rows as well.
            let update = |count: u64| Some(count.saturating_sub(by));
            counter
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, update)
                .expect("the update never declines");
        };
        lower(&self.calls, less.calls);
        lower(&self.log_bytes, less.log_bytes);
    }
}

impl SqlStore {
    /// The counters, which are counted at first use.
    async fn counters(&self) -> Result<&Counters, StoreError> {
        self.counters
            .get_or_try_init(|| async {
                let counters = Counters::default();
                counters.add(self.db.read().await?.kept().await?);
                Ok(counters)
            })
            .await
    }

    /// Takes note of what was removed with a function.
    pub(super) fn removed(&self, kept: Kept) {
        if let Some(counters) = self.counters.get() {
            counters.subtract(kept);
        }
    }
}

impl RecordStore for SqlStore {
    fn append<'a>(&'a self, batch: &'a [Record]) -> StoreFuture<'a, Kept> {
        self.run(move || async move {
            let mut calls: Vec<&CallRecord> = Vec::with_capacity(batch.len());
            let mut chunks: Vec<&LogChunk> = Vec::new();
            for record in batch {
                match record {
                    Record::Call(call) => calls.push(call),
                    Record::Log(chunk) => chunks.push(chunk),
                }
            }
            keep_last_attempts(&mut calls);
            let log_bytes = chunks.iter().map(|chunk| chunk.text.len() as u64).sum();
            let counters = self.counters().await?;
            let calls = self.db.append(&calls, &chunks).await?;
            Ok(counters.add(Kept { calls, log_bytes }))
        })
    }

    fn trim(&self, retention: Retention) -> StoreFuture<'_, Kept> {
        self.run(move || async move {
            let counters = self.counters().await?;
            let mut session = self.db.write(Writing::Records).await?;
            if !session.alone_removes_records().await? {
                return Ok(counters.add(Kept::default()));
            }
            // Others may have added and removed meanwhile.
            let kept = session.kept().await?;
            counters.set(kept);
            let mut removed = Kept::default();
            if kept.calls > retention.calls_max {
                removed = session.remove_oldest_calls(kept.calls - retention.calls_max).await?;
            }
            let log_bytes = kept.log_bytes.saturating_sub(removed.log_bytes);
            if log_bytes > retention.log_bytes_max {
                let more = session.remove_oldest_logs(log_bytes - retention.log_bytes_max).await?;
                removed.log_bytes += more.log_bytes;
            }
            session.commit().await?;
            counters.subtract(removed);
            Ok(counters.add(Kept::default()))
        })
    }

    fn calls<'a>(&'a self, fn_id: &'a str, page: &'a CallsPage) -> StoreFuture<'a, Vec<CallRecord>> {
        self.run(move || async move {
            let mut session = self.db.read().await?;
            let function: FunctionResource = session.get(fn_id).await?;
            let mut query = select_calls();
            query.and_where(Expr::col("fn_id").eq(fn_id));
            if let Some(before) = &page.before {
                query.and_where(Expr::col("id").lt(before.as_str()));
            }
            if let Some(from) = page.from {
                query.and_where(Expr::col("created_at").gt(from.as_millisecond()));
            }
            if let Some(to) = page.to {
                query.and_where(Expr::col("created_at").lt(to.as_millisecond()));
            }
            query.order_by("id", Order::Desc).limit(u64::from(page.items_max));
            let rows: Vec<CallRow> = session.all(&query).await?;
            rows.into_iter().map(|row| row.decode(&function)).collect()
        })
    }

    fn call<'a>(&'a self, fn_id: &'a str, call_id: &'a str) -> StoreFuture<'a, CallRecord> {
        self.run(move || async move {
            let mut session = self.db.read().await?;
            let row = session.find_call(fn_id, call_id).await?.ok_or(ApiError::CallNotFound)?;
            row.decode(&session.get(fn_id).await?)
        })
    }

    fn told<'a>(&'a self, call_id: &'a str) -> StoreFuture<'a, ToldCall> {
        self.run(move || async move {
            let mut session = self.db.read().await?;
            let query = select_calls()
                .columns(["fn_id", STORY_COLUMN])
                .and_where(Expr::col("id").eq(call_id))
                .to_owned();
            let told: Option<ToldRow> = session.first(&query).await?;
            let ToldRow { call, fn_id, story } = told.ok_or(ApiError::CallNotFound)?;
            let function: FunctionResource = session.get(&fn_id).await?;
            let app: App = session.get(function.app_id.as_str()).await?;
            let mut record = call.decode(&function)?;
            record.story = story.map_or_else(Story::default, |story| story_from_sql(&story, call_id));
            Ok(ToldCall { record, app_name: app.name, function_name: function.name })
        })
    }

    fn log<'a>(&'a self, fn_id: &'a str, call_id: &'a str) -> StoreFuture<'a, String> {
        self.run(move || async move {
            let mut session = self.db.read().await?;
            if session.find_call(fn_id, call_id).await?.is_none() {
                return Err(ApiError::LogNotFound.into());
            }
            let query = Query::select()
                .column("text")
                .from("logs")
                .and_where(Expr::col("call_id").eq(call_id))
                .order_by("part", Order::Asc)
                .to_owned();
            let pieces: Vec<(String,)> = session.all(&query).await?;
            Ok(pieces.into_iter().map(|(text,)| text).collect())
        })
    }
}

/// Leaves one record of each call, that of its last attempt: one statement must not write a row twice.
fn keep_last_attempts(calls: &mut Vec<&CallRecord>) {
    let mut last: HashMap<CallId, Timestamp> = HashMap::with_capacity(calls.len());
    for call in &*calls {
        let latest = last.entry(call.id).or_insert(call.completed_at);
        *latest = Ord::max(*latest, call.completed_at);
    }
    if last.len() < calls.len() {
        calls
            .retain(|call| last.get(&call.id) == Some(&call.completed_at) && last.remove(&call.id).is_some());
    }
}

fn select_calls() -> SelectStatement {
    let shown = CALL_COLUMNS.into_iter().filter(|column| !["fn_id", STORY_COLUMN].contains(column));
    Query::select().columns(shown).from("calls").to_owned()
}

/// A call as its row.
#[derive(sqlx::FromRow)]
struct CallRow {
    id: String,
    trigger_id: Option<String>,
    status: i32,
    error: Option<String>,
    created_at: i64,
    started_at: Option<i64>,
    completed_at: i64,
    cold: i32,
}

/// A call as its row, with its story.
#[derive(sqlx::FromRow)]
struct ToldRow {
    #[sqlx(flatten)]
    call: CallRow,
    fn_id: String,
    story: Option<String>,
}

impl CallRow {
    /// The record of a call of `function`.
    fn decode(self, function: &FunctionResource) -> Result<CallRecord, StoreError> {
        Ok(CallRecord {
            id: self.id.parse().map_err(unreadable)?,
            app_id: function.app_id,
            function_id: function.id,
            trigger_id: self.trigger_id.map(|id| id.parse()).transpose().map_err(unreadable)?,
            status: status_from_sql(self.status),
            error: self.error,
            created_at: time(self.created_at)?,
            started_at: self.started_at.map(time).transpose()?,
            completed_at: time(self.completed_at)?,
            cold: self.cold != 0,
            story: Story::default(),
        })
    }
}

fn time(millis: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_millisecond(millis).map_err(unreadable)
}

fn unreadable(error: impl Into<BoxDynError>) -> StoreError {
    StoreError::Database(sqlx::Error::Decode(error.into()))
}

pub(super) fn story_to_sql(story: &Story) -> Option<String> {
    (!story.is_empty()).then(|| serde_json::to_string(story).expect("a story always serializes"))
}

/// A story that a later version wrote in words of its own is not told; the call is shown all the same.
fn story_from_sql(text: &str, call_id: &str) -> Story {
    serde_json::from_str(text).unwrap_or_else(|error| {
        tracing::warn!(call = call_id, %error, "a call's story cannot be read");
        Story::default()
    })
}

pub(super) fn status_to_sql(status: CallStatus) -> i32 {
    match status {
        CallStatus::Success => 0,
        CallStatus::Error => 1,
        CallStatus::Timeout => 2,
    }
}

fn status_from_sql(status: i32) -> CallStatus {
    match status {
        0 => CallStatus::Success,
        2 => CallStatus::Timeout,
        _ => CallStatus::Error,
    }
}
