//! The database behind one narrow surface: statements of sea-query in, rows out.
//!
//! This file, [`super::open`] and the folders of the databases alone know which database it is, so that the
//! query functions serve all. Invariant: one transaction of this process changes the catalog at a time, and on
//! a database that processes share, one of all of them; so revisions are committed in their order.

use std::future::Future;
use std::sync::Arc;

use jiff::Timestamp;
use kiln_shared::record::{CallRecord, LogChunk};
use sea_query::{Expr, PostgresQueryBuilder, SqliteQueryBuilder};
use sea_query_sqlx::SqlxBinder;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, FromRow, Postgres, Sqlite, Transaction};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{StoreError, postgres, sqlite};

/// A row that can be read from every database.
pub(crate) trait Row:
    for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin
{
}
impl<T: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin> Row for T {}

/// What a transaction changes. A crash of the process alone costs nothing that was committed either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writing {
    /// The catalog: after all others that do, and a power cut costs nothing that was committed.
    Catalog,
    /// Call records: a power cut may cost the last commits, but never the database.
    Records,
}

/// Connections to the database.
#[derive(Debug, Clone)]
pub(crate) struct Db {
    engine: Engine,
    writing: Arc<Semaphore>,
}

#[derive(Debug, Clone)]
pub(super) enum Engine {
    Sqlite(sqlite::Connections),
    Postgres(postgres::Connections),
}

impl Db {
    pub(super) fn new(engine: Engine) -> Self {
        Self { engine, writing: Arc::new(Semaphore::new(1)) }
    }

    /// True if the database is a server.
    pub(super) fn is_remote(&self) -> bool {
        matches!(self.engine, Engine::Postgres(_))
    }

    /// The database's own time, in milliseconds since 1970. A file's is this host's.
    pub(super) fn now(&self) -> Expr {
        match &self.engine {
            Engine::Sqlite(_) => Expr::val(Timestamp::now().as_millisecond()),
            Engine::Postgres(_) => Expr::cust("(extract(epoch FROM clock_timestamp()) * 1000)::bigint"),
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
        }
    }

    /// Begins a transaction that sees one state of the database and changes nothing.
    pub(crate) async fn read(&self) -> Result<Session, StoreError> {
        let transaction = match &self.engine {
            Engine::Sqlite(connections) => OnOne::Sqlite(connections.read().await?),
            Engine::Postgres(connections) => OnOne::Postgres(connections.read().await?),
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
                postgres::in_time(begun).await?
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

    /// Has the commit tell all processes that the catalog changed, where the database can.
    pub(super) async fn notify(&mut self) -> Result<(), StoreError> {
        match &mut self.transaction {
            OnOne::Sqlite(_) => Ok(()),
            OnOne::Postgres(transaction) => postgres::notify(transaction).await,
        }
    }

    /// True if no other process removes old records now, nor will before the end of this transaction.
    pub(super) async fn alone_removes_records(&mut self) -> Result<bool, StoreError> {
        match &mut self.transaction {
            // Who writes is alone.
            OnOne::Sqlite(_) => Ok(true),
            OnOne::Postgres(transaction) => postgres::alone_removes_records(transaction).await,
        }
    }

    /// Makes all of it durable.
    pub(crate) async fn commit(self) -> Result<(), StoreError> {
        match self.transaction {
            OnOne::Sqlite(transaction) => transaction.commit().await?,
            OnOne::Postgres(transaction) => transaction.commit().await?,
        }
        Ok(())
    }
}
