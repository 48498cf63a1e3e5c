//! From a URL to an open database with the present schema.

use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use super::StoreError;
use super::db::Db;
use super::sql::SqlStore;

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// Connections that read at the same time.
const READERS_MAX: u32 = 2;
/// A reading connection unused for this long is closed.
const READER_IDLE_MAX: Duration = Duration::from_mins(1);
/// Pages of 4 KiB that collect in the log of changes before they go to the database: pages that many batches
/// of call records touch are then written once.
const WAL_PAGES_MAX: &str = "4000";
/// Longest wait for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the catalog could not be opened. One line each, with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL names no database that Kiln knows.
    #[error("database URL {0:?} is not supported; use sqlite:///path/to/kiln.db or sqlite://:memory:")]
    Url(String),
    /// The directory could not be made.
    #[error("cannot create directory {} for the database: {source}; choose another path or make it writable", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("database file {} cannot be written: {source}; give this user write access to it and its directory, or choose another path", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not a database, or the database does not work.
    #[error(
        "database {database} cannot be opened: {source}; check that it is a SQLite database, or choose another path"
    )]
    Database {
        /// The file or `:memory:`.
        database: String,
        /// Why not.
        source: sqlx::Error,
    },
    /// The schema is newer than this Kiln, or a migration failed.
    #[error(
        "database {database} cannot be brought to this version's schema: {source}; use the version of Kiln that wrote it, or a copy from before"
    )]
    Schema {
        /// The file or `:memory:`.
        database: String,
        /// Why not.
        source: MigrateError,
    },
}

impl OpenError {
    /// The database opened, but its tables cannot be read.
    pub(crate) fn unreadable(url: &str, error: StoreError) -> Self {
        let source = match error {
            StoreError::Database(source) => source,
            other => sqlx::Error::Protocol(other.to_string()),
        };
        Self::Database { database: url.to_owned(), source }
    }
}

/// Opens `url`, making directory, file and tables where they are missing.
pub(crate) async fn open(url: &str) -> Result<SqlStore, OpenError> {
    let database = url
        .strip_prefix("sqlite:")
        .map(|rest| rest.strip_prefix("//").unwrap_or(rest))
        .filter(|database| !database.is_empty() && !database.contains('?'))
        .ok_or_else(|| OpenError::Url(url.to_owned()))?;
    let options = SqliteConnectOptions::new()
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        // Else each INSERT of several rows writes what it may have to undo to a temporary file.
        .pragma("temp_store", "MEMORY")
        .disable_statement_logging();
    let db =
        if database == ":memory:" { open_memory(options).await } else { open_file(database, options).await }?;
    Ok(SqlStore::new(db))
}

async fn open_memory(options: SqliteConnectOptions) -> Result<Db, OpenError> {
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
    let schema = |source| OpenError::Schema { database: ":memory:".to_owned(), source };
    MIGRATIONS.run(&pool).await.map_err(schema)?;
    Ok(Db::new(pool.clone(), pool.clone(), pool))
}

async fn open_file(database: &str, options: SqliteConnectOptions) -> Result<Db, OpenError> {
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
    let schema = |source| OpenError::Schema { database: database.to_owned(), source };
    MIGRATIONS.run(&full).await.map_err(schema)?;
    let readers = SqlitePoolOptions::new()
        .max_connections(READERS_MAX)
        .test_before_acquire(false)
        .idle_timeout(READER_IDLE_MAX)
        .connect_lazy_with(options.clone().read_only(true));
    Ok(Db::new(readers, full, relaxed))
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
