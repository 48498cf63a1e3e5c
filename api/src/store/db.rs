//! The database behind one narrow surface: statements of sea-query in, rows out.
//!
//! This file, [`super::open`] and the folders of the databases alone know which database it is, so that the
//! query functions serve all. Invariant: one transaction of this process changes the catalog at a time, and on
//! a database that processes share, one of all of them; so revisions are committed in their order.

use std::future::Future;
use std::sync::Arc;

use jiff::Timestamp;
use kiln_shared::record::{CallRecord, LogChunk};
use sea_query::{Expr, ExprTrait, MysqlQueryBuilder, PostgresQueryBuilder, Query, SqliteQueryBuilder};
use sea_query_sqlx::SqlxBinder;
use sqlx::mysql::MySqlRow;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, FromRow, MySql, Postgres, Sqlite, Transaction};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::server::{Connections, in_time};
use super::{StoreError, mysql, postgres, sqlite};

/// A row that can be read from every database.
pub(crate) trait Row:
    for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, MySqlRow> + Send + Unpin
{
}
impl<T> Row for T where
    T: for<'r> FromRow<'r, SqliteRow>
        + for<'r> FromRow<'r, PgRow>
        + for<'r> FromRow<'r, MySqlRow>
        + Send
        + Unpin
{
}

/// What a transaction changes. A crash of the process alone costs nothing that was committed either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writing {
    /// The catalog: after all others that do, and a power cut costs nothing that was committed.
    Catalog,
    /// Call records: a power cut may cost the last commits, but never the database.
    Records,
}

/// Connections to the database.
#[derive(Debug)]
pub(crate) struct Db {
    engine: Engine,
    writing: Arc<Semaphore>,
}

#[derive(Debug)]
pub(super) enum Engine {
    Sqlite(sqlite::Connections),
    Postgres(Connections<Postgres>),
    MySql(Connections<MySql>),
}

impl Db {
    pub(super) fn new(engine: Engine) -> Self {
        Self { engine, writing: Arc::new(Semaphore::new(1)) }
    }

    /// True if the database is a server.
    pub(super) fn is_remote(&self) -> bool {
        !matches!(self.engine, Engine::Sqlite(_))
    }

    /// The database's own time, in milliseconds since 1970. A file's is this host's.
    pub(super) fn now(&self) -> Expr {
        match &self.engine {
            Engine::Sqlite(_) => Expr::val(Timestamp::now().as_millisecond()),
            Engine::Postgres(_) => Expr::cust("(extract(epoch FROM clock_timestamp()) * 1000)::bigint"),
            Engine::MySql(_) => Expr::cust("CAST(unix_timestamp(sysdate(3)) * 1000 AS SIGNED)"),
        }
    }

    /// Runs an operation, but not longer than its database is there: a few seconds after it is lost the
    /// operation fails. A file is always there.
    pub(super) async fn bounded<T>(
        &self,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        match &self.engine {
            Engine::Sqlite(_) => operation.await,
            Engine::Postgres(connections) => connections.bounded(operation).await,
            Engine::MySql(connections) => connections.bounded(operation).await,
        }
    }

    /// Begins a transaction that sees one state of the database and changes nothing.
    pub(crate) async fn read(&self) -> Result<Session, StoreError> {
        let transaction = match &self.engine {
            Engine::Sqlite(connections) => OnOne::Sqlite(connections.read().await?),
            Engine::Postgres(connections) => OnOne::Postgres(connections.read().await?),
            Engine::MySql(connections) => OnOne::MySql(connections.read().await?),
        };
        Ok(Session { transaction, _writing: None })
    }

    /// Begins a transaction that may change the database. Waits until no other does. Rolled back unless
    /// [`Session::commit`] is called.
    pub(crate) async fn write(&self, writing: Writing) -> Result<Session, StoreError> {
        let turn = self.turn();
        let (transaction, turn) = match &self.engine {
            Engine::Sqlite(connections) => {
                let turn = turn.await;
                (OnOne::Sqlite(connections.write(writing).await?), turn)
            }
            Engine::Postgres(connections) => {
                let begun = async {
                    let turn = turn.await;
                    Ok((OnOne::Postgres(connections.write(writing).await?), turn))
                };
                in_time(begun).await?
            }
            Engine::MySql(connections) => {
                let begun = async {
                    let turn = turn.await;
                    Ok((OnOne::MySql(connections.write(writing).await?), turn))
                };
                in_time(begun).await?
            }
        };
        Ok(Session { transaction, _writing: Some(turn) })
    }

    /// Stores calls and numbered pieces of logs in one transaction, those that are there already staying as they
    /// are; how many calls were new.
    pub(super) async fn append(&self, calls: &[&CallRecord], logs: &[&LogChunk]) -> Result<u64, StoreError> {
        match &self.engine {
            Engine::Sqlite(connections) => {
                let _turn = self.turn().await;
                connections.append(calls, logs).await
            }
            // Others may append at the same time.
            Engine::Postgres(connections) => connections.append(calls, logs).await,
            Engine::MySql(connections) => connections.append(calls, logs).await,
        }
    }

    /// Waits until nobody else in this process writes.
    async fn turn(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.writing).acquire_owned().await.expect("nobody closes the semaphore")
    }

    /// Waits for what is under way and closes all connections.
    pub(crate) async fn close(&self) {
        match &self.engine {
            Engine::Sqlite(connections) => connections.close().await,
            Engine::Postgres(connections) => connections.close().await,
            Engine::MySql(connections) => connections.close().await,
        }
    }
}

/// A transaction.
pub(crate) struct Session {
    transaction: OnOne,
    _writing: Option<OwnedSemaphorePermit>,
}

enum OnOne {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
    MySql(Transaction<'static, MySql>),
}

/// Builds a statement for the session's database and runs it with a method of sqlx.
macro_rules! run {
    ($session:ident, $statement:ident, $query:path, $method:ident) => {
        match &mut $session.transaction {
            OnOne::Sqlite(transaction) => {
                let (sql, values) = $statement.build_sqlx(SqliteQueryBuilder);
                $query(AssertSqlSafe(sql), values).$method(&mut **transaction).await.map(Into::into)
            }
            OnOne::Postgres(transaction) => {
                let (sql, values) = $statement.build_sqlx(PostgresQueryBuilder);
                let values = postgres::storable(values);
                $query(AssertSqlSafe(sql), values).$method(&mut **transaction).await.map(Into::into)
            }
            OnOne::MySql(transaction) => {
                let (sql, values) = $statement.build_sqlx(MysqlQueryBuilder);
                $query(AssertSqlSafe(sql), values).$method(&mut **transaction).await.map(Into::into)
            }
        }
    };
}

/// How many rows a statement changed.
struct Changed(u64);

impl From<sqlx::sqlite::SqliteQueryResult> for Changed {
    fn from(result: sqlx::sqlite::SqliteQueryResult) -> Self {
        Self(result.rows_affected())
    }
}

impl From<sqlx::postgres::PgQueryResult> for Changed {
    fn from(result: sqlx::postgres::PgQueryResult) -> Self {
        Self(result.rows_affected())
    }
}

impl From<sqlx::mysql::MySqlQueryResult> for Changed {
    fn from(result: sqlx::mysql::MySqlQueryResult) -> Self {
        Self(result.rows_affected())
    }
}

impl Session {
    /// Runs a statement; how many rows it changed.
    pub(crate) async fn execute(&mut self, statement: &impl SqlxBinder) -> Result<u64, StoreError> {
        let Changed(rows) = run!(self, statement, sqlx::query_with, execute)?;
        Ok(rows)
    }

    /// All rows of a query.
    pub(crate) async fn all<T: Row>(&mut self, query: &impl SqlxBinder) -> Result<Vec<T>, StoreError> {
        Ok(run!(self, query, sqlx::query_as_with, fetch_all)?)
    }

    /// The first row of a query, if there is one.
    pub(crate) async fn first<T: Row>(&mut self, query: &impl SqlxBinder) -> Result<Option<T>, StoreError> {
        Ok(run!(self, query, sqlx::query_as_with, fetch_optional)?)
    }

    /// The name of the type of whole numbers of 64 bits, to convert to.
    pub(super) fn integer(&self) -> &'static str {
        match &self.transaction {
            OnOne::Sqlite(_) | OnOne::Postgres(_) => "bigint",
            OnOne::MySql(_) => "signed",
        }
    }

    /// Takes the next revision of the catalog.
    pub(super) async fn next_revision(&mut self) -> Result<i64, StoreError> {
        if let OnOne::MySql(transaction) = &mut self.transaction {
            return mysql::next_revision(transaction).await;
        }
        let next = Query::update()
            .table("feed")
            .value("revision", Expr::col("revision").add(1))
            .returning(Query::returning().column("revision"))
            .to_owned();
        let next: Option<(i64,)> = self.first(&next).await?;
        Ok(next.map_or(0, |(revision,)| revision))
    }

    /// Removes all logs of a function's calls.
    pub(super) async fn remove_logs_of(&mut self, fn_id: &str) -> Result<(), StoreError> {
        if let OnOne::MySql(transaction) = &mut self.transaction {
            return mysql::remove_logs_of(transaction, fn_id).await;
        }
        let calls =
            Query::select().column("id").from("calls").and_where(Expr::col("fn_id").eq(fn_id)).to_owned();
        let logs = Expr::col("call_id").in_subquery(calls);
        self.execute(Query::delete().from_table("logs").and_where(logs)).await.map(drop)
    }

    /// Has the commit tell all processes that the catalog changed, where the database can.
    pub(super) async fn notify(&mut self) -> Result<(), StoreError> {
        match &mut self.transaction {
            OnOne::Sqlite(_) | OnOne::MySql(_) => Ok(()),
            OnOne::Postgres(transaction) => postgres::notify(transaction).await,
        }
    }

    /// True if no other process removes old records now, nor will before the end of this transaction.
    pub(super) async fn alone_removes_records(&mut self) -> Result<bool, StoreError> {
        match &mut self.transaction {
            // Who writes is alone.
            OnOne::Sqlite(_) => Ok(true),
            OnOne::Postgres(transaction) => postgres::alone_removes_records(transaction).await,
            OnOne::MySql(transaction) => mysql::alone_removes_records(transaction).await,
        }
    }

    /// Makes all of it durable.
    pub(crate) async fn commit(self) -> Result<(), StoreError> {
        match self.transaction {
            OnOne::Sqlite(transaction) => transaction.commit().await?,
            OnOne::Postgres(transaction) => transaction.commit().await?,
            OnOne::MySql(transaction) => transaction.commit().await?,
        }
        Ok(())
    }
}
