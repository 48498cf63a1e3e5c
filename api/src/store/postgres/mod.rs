//! Postgres: a database that balancers on many machines share, and that tells them of changes.
//!
//! Invariant: whoever changes the catalog holds the lock on the row of `feed` from begin to commit.

mod batch;
mod url;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use kiln_shared::record::{CallRecord, LogChunk};
use sea_query::Value;
use sea_query_sqlx::SqlxValues;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPool};
use sqlx::{ConnectOptions, Postgres, Transaction};

use super::StoreError;
use super::db::Writing;
use super::notices::Notices;
use super::open::{Background, OpenError};
use super::server::{
    self, CATALOG_CONNECTIONS_MAX, Connections, Pools, RECORDS_CONNECTIONS_MAX, Server, pool,
};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

const EXAMPLE: &str = "postgres://user:password@host:port/database?sslmode=require";
/// The channel on which commits that change the catalog are told: this and the database's id, since catalogs may
/// share a database in schemas of their own.
const CHANNEL_PREFIX: &str = "kiln_";
/// Longest wait for locks that others hold, the database's own bound: less than [`BEGIN_MAX`], so that its
/// reason is the one that is told.
const LOCK_MAX: Duration = Duration::from_millis(2_500);
/// How often the revision is asked for, beside what notices tell.
const POLL: Duration = Duration::from_millis(500);

/// A way to the database at `url`; see [`server::open`].
pub(super) async fn open(
    url: &str,
    notices: Arc<Notices>,
    background: &Background,
) -> Result<Connections<Postgres>, OpenError> {
    let options = url::options(url).map_err(|reason| OpenError::ServerUrl { reason, example: EXAMPLE })?;
    server::open(Place { options }, notices, background).await
}

/// Where the database is, and as whom it is used.
#[derive(Debug)]
struct Place {
    options: PgConnectOptions,
}

impl Server for Place {
    type Database = Postgres;
    type Watch = PgListener;
    const POLL: Duration = POLL;

    fn address(&self) -> String {
        url::address(&self.options)
    }

    fn migrations() -> &'static Migrator {
        &MIGRATIONS
    }

    async fn connect(&self) -> Result<(), sqlx::Error> {
        // The database notices that it is gone.
        self.options.connect().await.map(drop)
    }

    fn pools(&self) -> Pools<Postgres> {
        let relaxed = self.options.clone().options([("synchronous_commit", "off")]);
        Pools {
            catalog: pool(CATALOG_CONNECTIONS_MAX).connect_lazy_with(self.options.clone()),
            records: pool(RECORDS_CONNECTIONS_MAX).connect_lazy_with(relaxed),
        }
    }

    async fn migrate(&self, pool: &PgPool) -> Result<(), MigrateError> {
        MIGRATIONS.run(pool).await
    }

    async fn watch(&self, pool: &PgPool) -> Result<PgListener, sqlx::Error> {
        let id: String = sqlx::query_scalar("SELECT database_id FROM feed").fetch_one(pool).await?;
        let mut listener = PgListener::connect_with(pool).await?;
        listener.eager_reconnect(false);
        listener.listen(&format!("{CHANNEL_PREFIX}{id}")).await?;
        Ok(listener)
    }

    // A notice stays buffered until it has arrived whole.
    async fn word(listener: &mut PgListener) -> Result<(), sqlx::Error> {
        let ended = || io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended");
        listener.try_recv().await?.map(drop).ok_or_else(|| ended().into())
    }

    async fn revision(listener: &mut PgListener) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar("SELECT revision FROM feed").fetch_one(listener).await
    }
}

impl Connections<Postgres> {
    pub(super) async fn read(&self) -> Result<Transaction<'static, Postgres>, StoreError> {
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        Ok(self.pools()?.catalog.begin_with(begin).await?)
    }

    /// Bound it by [`server::in_time`].
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
