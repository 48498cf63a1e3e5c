//! Postgres: a database that balancers on many machines share.
//!
//! Owns the connections while the database is there, and the bounds of every wait for it. Invariant: whoever
//! changes the catalog holds the lock on the row of `feed` from begin to commit.

mod batch;
mod keep;
mod url;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use kiln_shared::record::{CallRecord, LogChunk};
use sea_query::Value;
use sea_query_sqlx::SqlxValues;
use sqlx::postgres::PgPool;
use sqlx::{Postgres, Transaction};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

pub(super) use keep::open;

use super::StoreError;
use super::db::Writing;

/// The channel on which commits that change the catalog are told: this and the database's id, since catalogs may
/// share a database in schemas of their own.
const CHANNEL_PREFIX: &str = "kiln_";
/// Longest wait for a connection, and for one's turn to change the catalog.
const BEGIN_MAX: Duration = Duration::from_secs(3);
/// Longest wait for locks that others hold, the database's own bound: less than [`BEGIN_MAX`], so that its
/// reason is the one that is told.
const LOCK_MAX: Duration = Duration::from_millis(2_500);
/// Longest run of one operation while the database is there, such as reading a large catalog.
const OPERATION_MAX: Duration = Duration::from_secs(30);
/// The database ends a transaction that does nothing for this long, as one whose balancer was cut off: it may
/// hold the lock that all others wait for.
const IDLE_TRANSACTION_MAX: Duration = Duration::from_secs(5);
/// Connections for the catalog, the listener's included.
const CATALOG_CONNECTIONS_MAX: u32 = 6;
/// Connections for call records.
const RECORDS_CONNECTIONS_MAX: u32 = 2;
/// A connection unused for this long is closed.
const IDLE_MAX: Duration = Duration::from_mins(1);

/// The connections of one sight of the database, from finding to losing it.
#[derive(Debug, Clone)]
struct Pools {
    catalog: PgPool,
    records: PgPool,
}

/// Whether the database is there.
#[derive(Debug, Clone)]
struct Sight {
    /// Grows with every change.
    number: u64,
    /// The way to it, or why there is none.
    pools: Result<Pools, Arc<sqlx::Error>>,
}

/// The way to the database, which comes and goes.
#[derive(Debug, Clone)]
pub(super) struct Connections {
    sight: watch::Receiver<Sight>,
}

impl Connections {
    fn pools(&self) -> Result<Pools, StoreError> {
        self.sight.borrow().pools.clone().map_err(StoreError::Unreachable)
    }

    pub(super) async fn read(&self) -> Result<Transaction<'static, Postgres>, StoreError> {
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        Ok(self.pools()?.catalog.begin_with(begin).await?)
    }

    /// Bound it by [`in_time`].
    pub(super) async fn write(&self, writing: Writing) -> Result<Transaction<'static, Postgres>, StoreError> {
        let pools = self.pools()?;
        match writing {
            Writing::Catalog => {
                let mut transaction = pools.catalog.begin().await?;
                // Statements that follow see all that was committed before: READ COMMITTED looks anew each time.
                sqlx::query("SELECT 1 FROM feed FOR UPDATE").execute(&mut *transaction).await?;
                Ok(transaction)
            }
            Writing::Records => Ok(pools.records.begin().await?),
        }
    }

    pub(super) async fn append(&self, calls: &[&CallRecord], logs: &[&LogChunk]) -> Result<u64, StoreError> {
        Ok(batch::append(&self.pools()?.records, calls, logs).await?)
    }

    /// Runs an operation until the database is out of sight, or a fixed time at most.
    pub(super) async fn bounded<T>(
        &self,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let mut sight = self.sight.clone();
        let number = sight.borrow().number;
        tokio::select! {
            biased; // what is done is done, though the database went away meanwhile
            done = operation => done,
            // Whatever is dropped here is rolled back by its connection, or by the database.
            changed = sight.wait_for(|sight| sight.number != number) => Err(match changed {
                Ok(sight) => StoreError::Unreachable(
                    sight.pools.as_ref().err().cloned().unwrap_or_else(|| Arc::new(sqlx::Error::WorkerCrashed)),
                ),
                Err(_) => sqlx::Error::PoolClosed.into(),
            }),
            () = sleep(OPERATION_MAX) => Err(sqlx::Error::PoolTimedOut.into()),
        }
    }

    /// Closes the connections once they are free, within a bounded time.
    pub(super) async fn close(&self) {
        if let Ok(Pools { catalog, records }) = self.pools() {
            let closed = async { tokio::join!(catalog.close(), records.close()) };
            if timeout(BEGIN_MAX, closed).await.is_err() {
                tracing::warn!("the catalog's database did not answer at the end; its connections are cut");
            }
        }
    }
}

/// Bounds what begins a transaction.
pub(super) async fn in_time<T>(begin: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    timeout(BEGIN_MAX, begin).await.unwrap_or_else(|_| Err(sqlx::Error::PoolTimedOut.into()))
}

/// Has the commit tell everyone who listens.
pub(super) async fn notify(transaction: &mut Transaction<'static, Postgres>) -> Result<(), StoreError> {
    let notify = sqlx::query("SELECT pg_notify($1 || database_id, '') FROM feed").bind(CHANNEL_PREFIX);
    notify.execute(&mut **transaction).await?;
    Ok(())
}

/// Takes the lock on removing records if it is free, until the transaction ends.
pub(super) async fn alone_removes_records(
    transaction: &mut Transaction<'static, Postgres>,
) -> Result<bool, StoreError> {
    let lock = sqlx::query_scalar("SELECT pg_try_advisory_xact_lock(hashtext(database_id)) FROM feed");
    Ok(lock.fetch_one(&mut **transaction).await?)
}

/// Values in which no text holds a NUL, which Postgres does not take: [`without_nul`].
pub(super) fn storable(mut values: SqlxValues) -> SqlxValues {
    for value in &mut values.0.0 {
        if let Value::String(Some(text)) = value
            && text.contains('\0')
        {
            *text = without_nul(text);
        }
    }
    values
}

/// The text with U+2400, the picture of NUL, for each NUL.
fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{2400}")
}
