//! SQLite: a file that processes of one machine may share, or memory.
//!
//! Owns the connections, and the poll that finds what other processes wrote.

mod batch;
mod open;

use std::sync::Arc;
use std::time::Duration;

use kiln_shared::record::{CallRecord, LogChunk};
use sqlx::sqlite::SqlitePool;
use sqlx::{Sqlite, Transaction};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

pub(super) use open::open;

use super::StoreError;
use super::db::Writing;
use super::notices::Notices;
use batch::Insert;

/// How often to look for what another process wrote.
const POLL: Duration = Duration::from_millis(100);

/// Connections to the database. They may be one and the same, as they are for a database in memory.
#[derive(Debug, Clone)]
pub(super) struct Connections {
    readers: SqlitePool,
    full: SqlitePool,
    relaxed: SqlitePool,
}

impl Connections {
    pub(super) async fn read(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        Ok(self.readers.begin().await?)
    }

    /// Waits, for a bounded time, until no other process writes.
    pub(super) async fn write(&self, writing: Writing) -> Result<Transaction<'static, Sqlite>, StoreError> {
        Ok(self.writer(writing).begin_with("BEGIN IMMEDIATE").await?)
    }

    /// Stores calls and pieces of logs in one transaction; how many calls were new.
    pub(super) async fn append(&self, calls: &[&CallRecord], logs: &[&LogChunk]) -> Result<u64, StoreError> {
        let (mut calls, logs) = (batch::calls(calls)?, batch::logs(logs)?);
        if let ([_], []) = (&*calls, &*logs)
            && let Some(Insert { sql, values }) = calls.pop()
        {
            // A statement alone is its own transaction and saves two ways to the database's thread and back.
            return Ok(sqlx::query_with(sql, values).execute(&self.relaxed).await?.rows_affected());
        }
        let mut transaction = self.write(Writing::Records).await?;
        let mut inserted = 0;
        for Insert { sql, values } in calls {
            inserted += sqlx::query_with(sql, values).execute(&mut *transaction).await?.rows_affected();
        }
        for Insert { sql, values } in logs {
            sqlx::query_with(sql, values).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(inserted)
    }

    fn writer(&self, writing: Writing) -> &SqlitePool {
        match writing {
            Writing::Catalog => &self.full,
            Writing::Records => &self.relaxed,
        }
    }

    /// Tells what other processes commit, until `stop`.
    async fn poll(self, notices: Arc<Notices>, stop: CancellationToken) {
        let mut ticks = interval(POLL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Cancel-safe: a tick that is not waited for comes with the next call.
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let known = notices.known();
            match self.revision().await {
                Ok(revision) => notices.read(known, revision),
                Err(error) => tracing::debug!(%error, "the catalog's revision could not be read"),
            }
        }
    }

    async fn revision(&self) -> Result<u64, sqlx::Error> {
        let (revision,): (i64,) =
            sqlx::query_as("SELECT revision FROM feed").fetch_one(&self.readers).await?;
        Ok(revision.unsigned_abs())
    }

    pub(super) async fn close(&self) {
        self.readers.close().await;
        self.full.close().await;
        self.relaxed.close().await;
    }
}
