//! A database that is a server, which balancers on many machines share: it comes and goes.
//!
//! Owns the connections while the database is there, and the bounds of every wait for it. What is asked of it, and
//! how, is in the folder of each kind of server.

mod keep;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::pool::PoolOptions;
use sqlx::{Database, Pool};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

pub(super) use keep::open;

use super::StoreError;

/// Longest wait for a connection, and for one's turn to change the catalog.
pub(super) const BEGIN_MAX: Duration = Duration::from_secs(3);
/// Longest run of one operation while the database is there, such as reading a large catalog.
pub(super) const OPERATION_MAX: Duration = Duration::from_secs(30);
/// The database ends a transaction that does nothing for this long, as one whose balancer was cut off: it may
/// hold the lock that all others wait for.
pub(super) const IDLE_TRANSACTION_MAX: Duration = Duration::from_secs(5);
/// Connections for the catalog, the one on which changes are waited for included.
pub(super) const CATALOG_CONNECTIONS_MAX: u32 = 6;
/// Connections for call records.
pub(super) const RECORDS_CONNECTIONS_MAX: u32 = 2;
/// A connection unused for this long is closed.
const IDLE_MAX: Duration = Duration::from_mins(1);

/// What a kind of server does in its own way.
pub(super) trait Server: fmt::Debug + Send + Sync + 'static {
    /// Its protocol.
    type Database: Database;
    /// What word of changes comes through: a connection, which also shows whether the server still answers.
    type Watch: Send;
    /// How often the revision is asked for: this finds a lost connection, and what no word told.
    const POLL: Duration;

    /// Name and address of the database, without secrets.
    fn address(&self) -> String;
    /// Its migrations.
    fn migrations() -> &'static Migrator;
    /// Makes one connection, which is none of a pool's.
    fn connect(&self) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
    /// Pools that have no connection yet.
    fn pools(&self) -> Pools<Self::Database>;
    /// Brings the schema up to date.
    fn migrate(&self, pool: &Pool<Self::Database>) -> impl Future<Output = Result<(), MigrateError>> + Send;
    /// Begins to wait for changes.
    fn watch(
        &self,
        pool: &Pool<Self::Database>,
    ) -> impl Future<Output = Result<Self::Watch, sqlx::Error>> + Send;
    /// Waits for word that the catalog changed; for ever where the server has none to give. Cancel-safe.
    fn word(watch: &mut Self::Watch) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
    /// The catalog's newest revision.
    fn revision(watch: &mut Self::Watch) -> impl Future<Output = Result<i64, sqlx::Error>> + Send;
}

/// A pool of connections to a server, with the bounds that hold for all of them.
pub(super) fn pool<D: Database>(connections_max: u32) -> PoolOptions<D> {
    PoolOptions::new().max_connections(connections_max).acquire_timeout(BEGIN_MAX).idle_timeout(IDLE_MAX)
}

/// The connections of one sight of the database, from finding to losing it.
#[derive(Debug)]
pub(super) struct Pools<D: Database> {
    pub(super) catalog: Pool<D>,
    pub(super) records: Pool<D>,
}

impl<D: Database> Clone for Pools<D> {
    fn clone(&self) -> Self {
        Self { catalog: self.catalog.clone(), records: self.records.clone() }
    }
}

/// Whether the database is there.
#[derive(Debug)]
struct Sight<D: Database> {
    /// Grows with every change.
    number: u64,
    /// The way to it, or why there is none.
    pools: Result<Pools<D>, Arc<sqlx::Error>>,
}

/// The way to the database, which comes and goes.
#[derive(Debug)]
pub(super) struct Connections<D: Database> {
    sight: watch::Receiver<Sight<D>>,
}

impl<D: Database> Connections<D> {
    pub(super) fn pools(&self) -> Result<Pools<D>, StoreError> {
        self.sight.borrow().pools.clone().map_err(StoreError::Unreachable)
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
