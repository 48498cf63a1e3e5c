//! Ended calls and their logs as rows.
//!
//! Appending happens for every call, so its statements are built once for a few numbers of rows and reused;
//! everything else is rare.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use kiln_shared::ids::{ParseIdError, TriggerId};
use kiln_shared::model::{ApiError, FunctionResource};
use kiln_shared::record::{CallRecord, CallStatus, LogChunk, Record};
use sea_query::{
    Condition, Expr, ExprTrait, Func, OnConflict, Order, Query, SelectStatement, SqliteQueryBuilder,
};
use sqlx::Arguments;
use sqlx::error::BoxDynError;
use sqlx::sqlite::SqliteArguments;

use super::db::{Durability, Session};
use super::sql::SqlStore;
use super::{CallsPage, Kept, RecordStore, Retention, StoreError, StoreFuture};

const CALL_COLUMNS: [&str; 10] = [
    "id",
    "fn_id",
    "app_id",
    "trigger_id",
    "status",
    "error",
    "created_at",
    "started_at",
    "completed_at",
    "cold",
];
const LOG_COLUMNS: [&str; 4] = ["call_id", "part", "bytes", "text"];

/// Rows per statement, largest first. A batch is cut into these, so that few statements serve all sizes.
const ROWS: [usize; 3] = [64, 8, 1];

/// Calls looked at in one go when old logs are removed.
const TRIM_CALLS: u64 = 1_000;

static INSERT_CALLS: LazyLock<[String; 3]> =
    LazyLock::new(|| ROWS.map(|rows| insert("calls", &CALL_COLUMNS, rows)));
static INSERT_LOGS: LazyLock<[String; 3]> =
    LazyLock::new(|| ROWS.map(|rows| insert("logs", &LOG_COLUMNS, rows)));

/// Text of a statement that inserts `rows` rows and leaves those that are there as they are.
fn insert(table: &'static str, columns: &[&'static str], rows: usize) -> String {
    let mut statement = Query::insert().into_table(table).columns(columns.iter().copied()).to_owned();
    for _ in 0..rows {
        statement.values_panic(columns.iter().map(|_| Expr::val(0)));
    }
    statement.on_conflict(OnConflict::new().do_nothing().to_owned()).build(SqliteQueryBuilder).0
}

impl Session {
    /// Inserts `items`, with `bind` adding one item's values; how many were new.
    async fn insert_rows<T>(
        &mut self,
        statements: &'static [String; 3],
        mut items: &[T],
        bind: impl Fn(&T, &mut SqliteArguments) -> Result<(), BoxDynError>,
    ) -> Result<u64, StoreError> {
        let mut inserted = 0;
        for (rows, statement) in ROWS.iter().zip(statements) {
            while let Some((now, later)) = items.split_at_checked(*rows) {
                let mut arguments = SqliteArguments::default();
                for item in now {
                    bind(item, &mut arguments).map_err(sqlx::Error::Encode)?;
                }
                inserted += self.execute_prepared(statement, arguments).await?;
                items = later;
            }
        }
        Ok(inserted)
    }

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
        let query =
            Query::select().expr(Func::sum(Expr::col("bytes"))).from("logs").cond_where(which).to_owned();
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
        self.remove_records(of_function, Condition::all().add(Expr::col("call_id").in_subquery(ids))).await
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
                .expr(Func::sum(Expr::col("bytes")))
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

    /// Refuses a function that is not there.
    async fn check_function(&mut self, fn_id: &str) -> Result<(), StoreError> {
        self.get::<FunctionResource>(fn_id).await.map(drop)
    }

    async fn find_call(&mut self, fn_id: &str, call_id: &str) -> Result<Option<CallRow>, StoreError> {
        let query = select_calls()
            .and_where(Expr::col("fn_id").eq(fn_id))
            .and_where(Expr::col("id").eq(call_id))
            .to_owned();
        self.first(&query).await
    }
}

/// Rows up to `last`, the oldest ones.
fn until(column: &'static str, last: &str) -> Condition {
    Condition::all().add(Expr::col(column).lte(last))
}

fn bind_call(call: &CallRecord, arguments: &mut SqliteArguments) -> Result<(), BoxDynError> {
    arguments.add(call.id.as_str())?;
    arguments.add(call.function_id.as_str())?;
    arguments.add(call.app_id.as_str())?;
    arguments.add(call.trigger_id.as_ref().map(TriggerId::as_str))?;
    arguments.add(call.status.as_str())?;
    arguments.add(call.error.as_deref())?;
    arguments.add(call.created_at.as_millisecond())?;
    arguments.add(call.started_at.map(Timestamp::as_millisecond))?;
    arguments.add(call.completed_at.as_millisecond())?;
    arguments.add(call.cold)
}

fn bind_log((part, chunk): &(i64, &LogChunk), arguments: &mut SqliteArguments) -> Result<(), BoxDynError> {
    arguments.add(chunk.call_id.as_str())?;
    arguments.add(*part)?;
    arguments.add(chunk.text.len() as i64)?;
    arguments.add(chunk.text.as_str())
}

/// How much is kept, counted once and then kept up to date: counting reads every row.
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
    /// Numbers for `count` pieces of logs, larger than all before, also those of earlier lives.
    fn log_parts(&self, count: usize) -> std::ops::Range<i64> {
        let now_micros = Timestamp::now().as_microsecond();
        let count = count as i64;
        let begin = |last: i64| Ord::max(last, now_micros);
        let last = self
            .log_part
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(begin(last) + count))
            .expect("the update never declines");
        begin(last)..begin(last) + count
    }

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
        Box::pin(async move {
            let mut calls: Vec<&CallRecord> = Vec::with_capacity(batch.len());
            let mut chunks: Vec<&LogChunk> = Vec::new();
            for record in batch {
                match record {
                    Record::Call(call) => calls.push(call),
                    Record::Log(chunk) => chunks.push(chunk),
                }
            }
            let log_bytes = chunks.iter().map(|chunk| chunk.text.len() as u64).sum();
            let logs: Vec<(i64, &LogChunk)> = self.log_parts(chunks.len()).zip(chunks).collect();
            let counters = self.counters().await?;
            let mut session = self.db.write(Durability::Relaxed).await?;
            let calls = session.insert_rows(&INSERT_CALLS, &calls, |call, to| bind_call(call, to)).await?;
            session.insert_rows(&INSERT_LOGS, &logs, bind_log).await?;
            session.commit().await?;
            Ok(counters.add(Kept { calls, log_bytes }))
        })
    }

    fn trim(&self, retention: Retention) -> StoreFuture<'_, Kept> {
        Box::pin(async move {
            let counters = self.counters().await?;
            let mut session = self.db.write(Durability::Relaxed).await?;
            let kept = counters.add(Kept::default());
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
        Box::pin(async move {
            let mut session = self.db.read().await?;
            session.check_function(fn_id).await?;
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
            rows.into_iter().map(CallRow::decode).collect()
        })
    }

    fn call<'a>(&'a self, fn_id: &'a str, call_id: &'a str) -> StoreFuture<'a, CallRecord> {
        Box::pin(async move {
            let mut session = self.db.read().await?;
            session.find_call(fn_id, call_id).await?.ok_or(ApiError::CallNotFound)?.decode()
        })
    }

    fn log<'a>(&'a self, fn_id: &'a str, call_id: &'a str) -> StoreFuture<'a, String> {
        Box::pin(async move {
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

fn select_calls() -> SelectStatement {
    Query::select().columns(CALL_COLUMNS).from("calls").to_owned()
}

/// A call as its row.
#[derive(sqlx::FromRow)]
struct CallRow {
    id: String,
    fn_id: String,
    app_id: String,
    trigger_id: Option<String>,
    status: String,
    error: Option<String>,
    created_at: i64,
    started_at: Option<i64>,
    completed_at: i64,
    cold: bool,
}

impl CallRow {
    fn decode(self) -> Result<CallRecord, StoreError> {
        let bad = |source: Box<dyn std::error::Error + Send + Sync>| {
            StoreError::Database(sqlx::Error::Decode(source))
        };
        let time = |millis: i64| Timestamp::from_millisecond(millis).map_err(|error| bad(error.into()));
        Ok(CallRecord {
            id: self.id.parse().map_err(|error: ParseIdError| bad(error.into()))?,
            app_id: self.app_id.parse().map_err(|error: ParseIdError| bad(error.into()))?,
            function_id: self.fn_id.parse().map_err(|error: ParseIdError| bad(error.into()))?,
            trigger_id: self
                .trigger_id
                .map(|id| id.parse())
                .transpose()
                .map_err(|error: ParseIdError| bad(error.into()))?,
            status: match self.status.as_str() {
                "success" => CallStatus::Success,
                "timeout" => CallStatus::Timeout,
                _ => CallStatus::Error,
            },
            error: self.error,
            created_at: time(self.created_at)?,
            started_at: self.started_at.map(time).transpose()?,
            completed_at: time(self.completed_at)?,
            cold: self.cold,
        })
    }
}
