//! MySQL from 8.0 and MariaDB from 10.6: a database that balancers on many machines share. Nothing tells them of
//! changes, so each asks for the revision.
//!
//! Invariant: whoever changes the catalog holds the lock on the row of `feed` from begin to commit.

mod batch;
mod migrate;
mod url;

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use kiln_shared::record::{CallRecord, LogChunk};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::mysql::{MySqlConnectOptions, MySqlPool, MySqlPoolOptions};
use sqlx::pool::PoolConnection;
use sqlx::{ConnectOptions, Executor, MySql, Transaction};

use super::StoreError;
use super::db::Writing;
use super::notices::Notices;
use super::open::{Background, OpenError};
use super::server::{
    self, CATALOG_CONNECTIONS_MAX, Connections, Pools, RECORDS_CONNECTIONS_MAX, Server, pool,
};

const EXAMPLE: &str = "mysql://user:password@host:port/database?ssl-mode=REQUIRED";
/// How often the revision is asked for: one row by its key, on a connection that does nothing else. Costs the server
/// some 40 us of CPU a time, and bounds how late a change of another balancer is noticed.
const POLL: Duration = Duration::from_millis(100);
/// A connection unused for this long is closed, before the server does.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// What a connection is set to. A transaction whose process was cut off holds its locks no longer than the server waits
/// for the next statement: MariaDB 5 s
/// (<https://mariadb.com/docs/server/server-management/variables-and-modes/server-system-variables>), MySQL, which takes
/// that part for a comment, 15 s, as for any connection that is not used. A wait for a lock is short, since an
/// operation that waited in vain is tried again.
const SETTINGS: &str = "SET SESSION sql_mode = 'TRADITIONAL,NO_ENGINE_SUBSTITUTION', innodb_lock_wait_timeout = 1, \
     wait_timeout = 15 /*M!100300 , idle_transaction_timeout = 5, max_statement_time = 30 */";

/// A way to the database at `url`; see [`server::open`].
pub(super) async fn open(
    url: &str,
    notices: Arc<Notices>,
    background: &Background,
) -> Result<Connections<MySql>, OpenError> {
    let options = url::options(url).map_err(|reason| OpenError::ServerUrl { reason, example: EXAMPLE })?;
    server::open(Place { options }, notices, background).await
}

/// Where the database is, and as whom it is used.
#[derive(Debug)]
struct Place {
    options: MySqlConnectOptions,
}

impl Place {
    fn pool(&self, connections_max: u32) -> MySqlPool {
        let pool: MySqlPoolOptions = pool(connections_max);
        pool.idle_timeout(IDLE_MAX)
            .after_connect(|connection, _| {
                Box::pin(async move { connection.execute(SETTINGS).await.map(drop) })
            })
            .connect_lazy_with(self.options.clone())
    }
}

impl Server for Place {
    type Database = MySql;
    type Watch = PoolConnection<MySql>;
    const POLL: Duration = POLL;

    fn address(&self) -> String {
        url::address(&self.options)
    }

    fn migrations() -> &'static Migrator {
        &migrate::MIGRATIONS
    }

    async fn connect(&self) -> Result<(), sqlx::Error> {
        // The server notices that it is gone.
        self.options.connect().await.map(drop)
    }

    fn pools(&self) -> Pools<MySql> {
        Pools { catalog: self.pool(CATALOG_CONNECTIONS_MAX), records: self.pool(RECORDS_CONNECTIONS_MAX) }
    }

    async fn migrate(&self, pool: &MySqlPool) -> Result<(), MigrateError> {
        migrate::run(pool).await
    }

    async fn watch(&self, pool: &MySqlPool) -> Result<PoolConnection<MySql>, sqlx::Error> {
        pool.acquire().await
    }

    async fn word(_watch: &mut PoolConnection<MySql>) -> Result<(), sqlx::Error> {
        pending().await
    }

    async fn revision(watch: &mut PoolConnection<MySql>) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar("SELECT revision FROM feed").fetch_one(&mut **watch).await
    }
}

impl Connections<MySql> {
    /// One state of the database, that of the begin, whatever is read.
    pub(super) async fn read(&self) -> Result<Transaction<'static, MySql>, StoreError> {
        let begin = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; \
             START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY";
        Ok(self.pools()?.catalog.begin_with(begin).await?)
    }

    /// Bound it by [`server::in_time`].
    pub(super) async fn write(&self, writing: Writing) -> Result<Transaction<'static, MySql>, StoreError> {
        // Each statement sees what was committed before it, and locks only what it finds.
        let begin = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION";
        let pools = self.pools()?;
        match writing {
            Writing::Catalog => {
                let mut transaction = pools.catalog.begin_with(begin).await?;
                sqlx::query("SELECT revision FROM feed FOR UPDATE").execute(&mut *transaction).await?;
                Ok(transaction)
            }
            Writing::Records => Ok(pools.records.begin_with(begin).await?),
        }
    }

    pub(super) async fn append(&self, calls: &[&CallRecord], logs: &[&LogChunk]) -> Result<u64, StoreError> {
        let mut transaction = self.write(Writing::Records).await?;
        let new = batch::append(&mut transaction, calls, logs).await?;
        transaction.commit().await?;
        Ok(new)
    }
}

/// Takes the next revision, in one way to the server and back.
pub(super) async fn next_revision(transaction: &mut Transaction<'static, MySql>) -> Result<i64, StoreError> {
    let next = sqlx::query("UPDATE feed SET revision = LAST_INSERT_ID(revision + 1)");
    let done = next.execute(&mut **transaction).await?;
    Ok(i64::try_from(done.last_insert_id()).unwrap_or(i64::MAX))
}

/// Takes the lock on removing records if it is free, until the transaction ends.
pub(super) async fn alone_removes_records(
    transaction: &mut Transaction<'static, MySql>,
) -> Result<bool, StoreError> {
    let lock = sqlx::query("SELECT name FROM locks WHERE name = 'records' FOR UPDATE SKIP LOCKED");
    Ok(lock.fetch_optional(&mut **transaction).await?.is_some())
}

/// Removes all logs of a function's calls: joined, since of a subquery in a DELETE the server looks at every row.
pub(super) async fn remove_logs_of(
    transaction: &mut Transaction<'static, MySql>,
    fn_id: &str,
) -> Result<(), StoreError> {
    let delete = "DELETE logs FROM calls JOIN logs ON logs.call_id = calls.id WHERE calls.fn_id = ?";
    sqlx::query(delete).bind(fn_id).execute(&mut **transaction).await?;
    Ok(())
}
