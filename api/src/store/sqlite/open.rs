//! From a path to an open database with the present schema.

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};

use super::Connections;
use crate::store::db::Engine;
use crate::store::notices::Notices;
use crate::store::open::{Background, OpenError};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// Connections that read at the same time.
const READERS_MAX: u32 = 2;
/// A reading connection unused for this long is closed.
const READER_IDLE_MAX: Duration = Duration::from_mins(1);
/// Pages of 4 KiB that collect in the log of changes before they go to the database: pages that many batches
/// of call records touch are then written once.
const WAL_PAGES_MAX: &str = "4000";
/// Longest wait for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(3);

/// Opens a path or `:memory:`, making directory, file and tables where they are missing.
pub(in crate::store) async fn open(
    database: &str,
    notices: Arc<Notices>,
    background: &Background,
) -> Result<Engine, OpenError> {
    let options = SqliteConnectOptions::new()
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        // Else each INSERT of several rows writes what it may have to undo to a temporary file.
        .pragma("temp_store", "MEMORY")
        .disable_statement_logging();
    let in_memory = database == ":memory:";
    let connections =
        if in_memory { open_memory(options).await } else { open_file(database, options).await }?;
    let revision = connections
        .revision()
        .await
        .map_err(|source| OpenError::Database { database: database.to_owned(), source })?;
    notices.found(0, revision);
    if !in_memory {
        let connections = connections.clone();
        background.spawn(|stop| connections.poll(notices, stop));
    }
    Ok(Engine::Sqlite(connections))
}

async fn open_memory(options: SqliteConnectOptions) -> Result<Connections, OpenError> {
    let failed = |source| OpenError::Database { database: ":memory:".to_owned(), source };
    // The database lives as long as its one connection.
    let pool = SqlitePoolOptions::new()
        .test_before_acquire(false)
        .max_connections(1)
        .min_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options.in_memory(true))
        .await
        .map_err(failed)?;
    migrate(":memory:", &pool).await?;
    Ok(Connections { readers: pool.clone(), full: pool.clone(), relaxed: pool })
}

async fn open_file(database: &str, options: SqliteConnectOptions) -> Result<Connections, OpenError> {
    let path = Path::new(database);
    prepare_file(path)?;
    let failed = |source| OpenError::Database { database: database.to_owned(), source };
    let options = options
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .pragma("wal_autocheckpoint", WAL_PAGES_MAX);
    let writer = |synchronous| {
        SqlitePoolOptions::new()
            .test_before_acquire(false)
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(options.clone().synchronous(synchronous))
    };
    // The meaning of both in WAL mode: https://www.sqlite.org/pragma.html#pragma_synchronous
    let (full, relaxed) = (writer(SqliteSynchronous::Full), writer(SqliteSynchronous::Normal));
    full.acquire().await.map_err(failed)?;
    migrate(database, &full).await?;
    let readers = SqlitePoolOptions::new()
        .max_connections(READERS_MAX)
        .test_before_acquire(false)
        .idle_timeout(READER_IDLE_MAX)
        .connect_lazy_with(options.clone().read_only(true));
    Ok(Connections { readers, full, relaxed })
}

async fn migrate(database: &str, pool: &SqlitePool) -> Result<(), OpenError> {
    let Err(source) = MIGRATIONS.run(pool).await else { return Ok(()) };
    OpenError::schema(database.to_owned(), &source, &MIGRATIONS)?;
    Err(OpenError::Schema { database: database.to_owned(), source })
}

/// Makes the directory, and the file with access for its owner only: config often holds secrets. SQLite gives
/// its side files the same access.
fn prepare_file(path: &Path) -> Result<(), OpenError> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        fs::create_dir_all(directory)
            .map_err(|source| OpenError::Directory { path: directory.to_owned(), source })?;
    }
    let not_writable = |source| OpenError::File { path: path.to_owned(), source };
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(not_writable)?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(not_writable)
}
