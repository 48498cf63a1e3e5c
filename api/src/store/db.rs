//! The database behind one narrow surface: statements of sea-query in, rows out.
//!
//! This file and [`super::open`] alone know which database it is, so that the query functions serve others too.
//! Invariant: one transaction of this process writes at a time, so that none finds the database locked.

use std::sync::Arc;

use sea_query_sqlx::SqlxBinder;
use sqlx::sqlite::{SqliteArguments, SqlitePool, SqliteRow};
use sqlx::{AssertSqlSafe, FromRow, Sqlite, Transaction};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::StoreError;

/// A row that can be read from every database.
pub(crate) trait Row: for<'r> FromRow<'r, SqliteRow> + Send + Unpin {}
impl<T: for<'r> FromRow<'r, SqliteRow> + Send + Unpin> Row for T {}

/// What a power cut may cost. A crash of the process alone costs nothing either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Nothing that was committed.
    Full,
    /// The last commits, but never the database.
    Relaxed,
}

/// Connections to the database.
#[derive(Debug, Clone)]
pub(crate) struct Db {
    readers: SqlitePool,
    full: SqlitePool,
    relaxed: SqlitePool,
    writing: Arc<Semaphore>,
}

impl Db {
    /// The pools may be one and the same, as they are for a database in memory.
    pub(crate) fn new(readers: SqlitePool, full: SqlitePool, relaxed: SqlitePool) -> Self {
        Self { readers, full, relaxed, writing: Arc::new(Semaphore::new(1)) }
    }

    /// Begins a transaction that sees one state of the database and changes nothing.
    pub(crate) async fn read(&self) -> Result<Session, StoreError> {
        Ok(Session { transaction: self.readers.begin().await?, _writing: None })
    }

    /// Begins a transaction that may change the database. Waits until no other does. Rolled back unless
    /// [`Session::commit`] is called.
    pub(crate) async fn write(&self, durability: Durability) -> Result<Session, StoreError> {
        let writing = Arc::clone(&self.writing).acquire_owned().await.expect("nobody closes the semaphore");
        let pool = match durability {
            Durability::Full => &self.full,
            Durability::Relaxed => &self.relaxed,
        };
        Ok(Session { transaction: pool.begin_with("BEGIN IMMEDIATE").await?, _writing: Some(writing) })
    }

    /// Waits for what is under way and closes all connections.
    pub(crate) async fn close(&self) {
        self.readers.close().await;
        self.full.close().await;
        self.relaxed.close().await;
    }
}

/// A transaction.
pub(crate) struct Session {
    transaction: Transaction<'static, Sqlite>,
    _writing: Option<OwnedSemaphorePermit>,
}

impl Session {
    /// Runs a statement; how many rows it changed.
    pub(crate) async fn execute(&mut self, statement: &impl SqlxBinder) -> Result<u64, StoreError> {
        let (sql, values) = statement.build_sqlx(sea_query::SqliteQueryBuilder);
        Ok(sqlx::query_with(AssertSqlSafe(sql), values)
            .execute(&mut *self.transaction)
            .await?
            .rows_affected())
    }

    /// Runs a statement whose text is at hand, with values for its placeholders.
    pub(crate) async fn execute_prepared(
        &mut self,
        sql: &'static str,
        values: SqliteArguments,
    ) -> Result<u64, StoreError> {
        Ok(sqlx::query_with(sql, values).execute(&mut *self.transaction).await?.rows_affected())
    }

    /// All rows of a query.
    pub(crate) async fn all<T: Row>(&mut self, query: &impl SqlxBinder) -> Result<Vec<T>, StoreError> {
        let (sql, values) = query.build_sqlx(sea_query::SqliteQueryBuilder);
        Ok(sqlx::query_as_with(AssertSqlSafe(sql), values).fetch_all(&mut *self.transaction).await?)
    }

    /// The first row of a query, if there is one.
    pub(crate) async fn first<T: Row>(&mut self, query: &impl SqlxBinder) -> Result<Option<T>, StoreError> {
        let (sql, values) = query.build_sqlx(sea_query::SqliteQueryBuilder);
        Ok(sqlx::query_as_with(AssertSqlSafe(sql), values).fetch_optional(&mut *self.transaction).await?)
    }

    /// Makes all of it durable.
    pub(crate) async fn commit(self) -> Result<(), StoreError> {
        Ok(self.transaction.commit().await?)
    }
}
