//! Ended calls and their logs as rows.
//!
//! Appending happens for every call, so its statements are built once for a few numbers of rows and reused;
//! everything else is rare.

use std::sync::LazyLock;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use kiln_shared::ids::ParseIdError;
use kiln_shared::model::{ApiError, FunctionResource};
use kiln_shared::record::{CallRecord, CallStatus, LogChunk, Record};
use sea_query::{Expr, ExprTrait, Func, OnConflict, Order, Query, SelectStatement, SqliteQueryBuilder};
use sqlx::Arguments;
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

/// Logs looked at in one go when old ones are removed.
const TRIM_ROWS: u64 = 1_000;

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
    /// Inserts `items`, with `bind` adding one item's values.
    async fn insert_rows<T>(
        &mut self,
        statements: &'static [String; 3],
        mut items: &[T],
        bind: impl Fn(&T, &mut SqliteArguments) -> Result<(), sqlx::error::BoxDynError>,
    ) -> Result<(), StoreError> {
        for (rows, statement) in ROWS.iter().zip(statements) {
            while let Some((now, later)) = items.split_at_checked(*rows) {
                let mut arguments = SqliteArguments::default();
                for item in now {
                    bind(item, &mut arguments).map_err(sqlx::Error::Encode)?;
                }
                self.execute_prepared(statement, arguments).await?;
                items = later;
            }
        }
        Ok(())
    }

    /// Removes all calls and logs of a function.
    pub(super) async fn remove_records(&mut self, fn_id: &str) -> Result<(), StoreError> {
        let of_function = Expr::col("fn_id").eq(fn_id);
        let ids = Query::select().column("id").from("calls").and_where(of_function.clone()).to_owned();
        let logs = Expr::col("call_id").in_subquery(ids);
        self.execute(Query::delete().from_table("logs").and_where(logs)).await?;
        self.execute(Query::delete().from_table("calls").and_where(of_function)).await?;
        Ok(())
    }

    /// How many rows a table has.
    async fn count(&mut self, table: &'static str) -> Result<u64, StoreError> {
        let query = Query::select().expr(Func::count(Expr::val(1))).from(table).to_owned();
        Ok(self.first::<(i64,)>(&query).await?.map_or(0, |(count,)| count.unsigned_abs()))
    }

    async fn log_bytes(&mut self) -> Result<u64, StoreError> {
        let query = Query::select().expr(Func::sum(Expr::col("bytes"))).from("logs").to_owned();
        let sum: Option<(Option<i64>,)> = self.first(&query).await?;
        Ok(sum.and_then(|(bytes,)| bytes).map_or(0, i64::unsigned_abs))
    }

    /// Refuses a function that is not there.
    async fn check_function(&mut self, fn_id: &str) -> Result<(), StoreError> {
        self.get::<FunctionResource>(fn_id).await.map(drop)
    }
}

fn bind_call(call: &CallRecord, arguments: &mut SqliteArguments) -> Result<(), sqlx::error::BoxDynError> {
    arguments.add(call.id.as_str())?;
    arguments.add(call.function_id.as_str())?;
    arguments.add(call.app_id.as_str())?;
    arguments.add(call.trigger_id.as_ref().map(|id| id.as_str()))?;
    arguments.add(call.status.as_str())?;
    arguments.add(call.error.as_deref())?;
    arguments.add(call.created_at.as_millisecond())?;
    arguments.add(call.started_at.map(Timestamp::as_millisecond))?;
    arguments.add(call.completed_at.as_millisecond())?;
    arguments.add(call.cold)
}

fn bind_log(
    (part, chunk): &(i64, &LogChunk),
    arguments: &mut SqliteArguments,
) -> Result<(), sqlx::error::BoxDynError> {
    arguments.add(chunk.call_id.as_str())?;
    arguments.add(*part)?;
    arguments.add(chunk.text.len() as i64)?;
    arguments.add(chunk.text.as_str())
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
}

impl RecordStore for SqlStore {
    fn append<'a>(&'a self, batch: &'a [Record]) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let mut calls: Vec<&CallRecord> = Vec::with_capacity(batch.len());
            let mut chunks: Vec<&LogChunk> = Vec::new();
            for record in batch {
                match record {
                    Record::Call(call) => calls.push(call),
                    Record::Log(chunk) => chunks.push(chunk),
                }
            }
            let logs: Vec<(i64, &LogChunk)> = self.log_parts(chunks.len()).zip(chunks).collect();
            let mut session = self.db.write(Durability::Relaxed).await?;
            session.insert_rows(&INSERT_CALLS, &calls, |call, to| bind_call(call, to)).await?;
            session.insert_rows(&INSERT_LOGS, &logs, bind_log).await?;
            session.commit().await
        })
    }

    fn kept(&self) -> StoreFuture<'_, Kept> {
        Box::pin(async move {
            let mut session = self.db.read().await?;
            Ok(Kept { calls: session.count("calls").await?, log_bytes: session.log_bytes().await? })
        })
    }

    fn trim(&self, retention: Retention) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            let mut session = self.db.write(Durability::Relaxed).await?;
            session.trim_calls(retention.calls_max).await?;
            session.trim_logs(retention.log_bytes_max).await?;
            session.commit().await
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

impl Session {
    /// Removes the oldest calls until `calls_max` are left, and logs that are older than all of these.
    async fn trim_calls(&mut self, calls_max: u64) -> Result<(), StoreError> {
        let query = Query::select()
            .column("id")
            .from("calls")
            .order_by("id", Order::Desc)
            .limit(1)
            .offset(calls_max)
            .to_owned();
        let Some((newest_removed,)) = self.first::<(String,)>(&query).await? else { return Ok(()) };
        let calls = Expr::col("id").lte(newest_removed.as_str());
        self.execute(Query::delete().from_table("calls").and_where(calls)).await?;
        self.remove_logs_until(&newest_removed).await
    }

    /// Removes the logs of the oldest calls until `bytes_max` are left.
    async fn trim_logs(&mut self, bytes_max: u64) -> Result<(), StoreError> {
        let mut bytes = self.log_bytes().await?;
        let mut last_removed = String::new();
        while bytes > bytes_max {
            let query = Query::select()
                .columns(["call_id", "bytes"])
                .from("logs")
                .and_where(Expr::col("call_id").gt(last_removed.as_str()))
                .order_by("call_id", Order::Asc)
                .limit(TRIM_ROWS)
                .to_owned();
            let rows: Vec<(String, i64)> = self.all(&query).await?;
            let Some((newest, _)) = rows.last() else { break };
            for (call_id, piece) in &rows {
                // All pieces of a call go together; those beyond this page were only not counted.
                if bytes <= bytes_max && *call_id != last_removed {
                    break;
                }
                bytes = bytes.saturating_sub(piece.unsigned_abs());
                last_removed.clone_from(call_id);
            }
            tracing::debug!(until = %newest, "old logs removed");
            self.remove_logs_until(&last_removed).await?;
        }
        Ok(())
    }

    async fn remove_logs_until(&mut self, call_id: &str) -> Result<(), StoreError> {
        let old = Expr::col("call_id").lte(call_id);
        self.execute(Query::delete().from_table("logs").and_where(old)).await.map(drop)
    }

    async fn find_call(&mut self, fn_id: &str, call_id: &str) -> Result<Option<CallRow>, StoreError> {
        let query = select_calls()
            .and_where(Expr::col("fn_id").eq(fn_id))
            .and_where(Expr::col("id").eq(call_id))
            .to_owned();
        self.first(&query).await
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
