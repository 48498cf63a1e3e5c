//! The database behind one narrow surface: statements of sea-query in, rows out.
//!
//! This file and [`super::open`] alone know which database it is, so that the query functions serve others too.
//! Invariant: one transaction of this process writes at a time, so that none finds the database locked.

use std::sync::Arc;

use sea_query_sqlx::SqlxBinder;
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{AssertSqlSafe, FromRow, Sqlite, Transaction};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::StoreError;
use super::batch::Insert;

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
        let (writing, pool) = self.turn(durability).await;
        Ok(Session { transaction: pool.begin_with("BEGIN IMMEDIATE").await?, _writing: Some(writing) })
    }

    /// Inserts `first`, then `second`, in one transaction; how many rows of `first` were new.
    pub(super) async fn insert(
        &self,
        mut first: Vec<Insert>,
        second: Vec<Insert>,
        durability: Durability,
    ) -> Result<u64, StoreError> {
        if let ([_], []) = (&*first, &*second)
            && let Some(insert) = first.pop()
        {
            // A statement alone is its own transaction and saves two ways to the database's thread and back.
            let (_writing, pool) = self.turn(durability).await;
            return Ok(sqlx::query_with(insert.sql, insert.values).execute(pool).await?.rows_affected());
        }
        let mut session = self.write(durability).await?;
        let mut inserted = 0;
        for insert in first {
            inserted += session.run(insert).await?;
        }
        for insert in second {
            session.run(insert).await?;
        }
        session.commit().await?;
        Ok(inserted)
    }

    /// Waits until nobody else writes.
    async fn turn(&self, durability: Durability) -> (OwnedSemaphorePermit, &SqlitePool) {
        let writing = Arc::clone(&self.writing).acquire_owned().await.expect("nobody closes the semaphore");
        let pool = match durability {
            Durability::Full => &self.full,
            Durability::Relaxed => &self.relaxed,
        };
        (writing, pool)
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

    async fn run(&mut self, insert: Insert) -> Result<u64, StoreError> {
        let statement = sqlx::query_with(insert.sql, insert.values);
        Ok(statement.execute(&mut *self.transaction).await?.rows_affected())
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

/// Text of a statement that inserts up to `rows` rows; those whose first value is absent are left out, and
/// those that are there already stay as they are.
pub(super) fn insert_rows_sql(table: &str, columns: &[&str], rows: usize) -> String {
    let row = format!("({})", vec!["?"; columns.len()].join(", "));
    let rows = vec![row; rows].join(", ");
    let columns = columns.join(", ");
    format!(
        "INSERT INTO {table} ({columns}) SELECT * FROM (VALUES {rows}) WHERE column1 IS NOT NULL ON CONFLICT DO NOTHING"
    )
}
