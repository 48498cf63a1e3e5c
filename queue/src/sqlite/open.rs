//! From a URL to an open file with the present schema.

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Sqlite, checkpoint, writer};
use crate::engine::{Core, EngineQueue};
use crate::{OpenError, Options};

pub(super) static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrations = sqlx::migrate!("migrations/sqlite");
    // The file may be the catalog's, which keeps its own.
    migrations.dangerous_set_table_name("queue_migrations");
    migrations
});

/// Connections that read at the same time.
const READERS_MAX: u32 = 2;
/// A reading connection unused for this long is closed.
const READER_IDLE_MAX: Duration = Duration::from_mins(1);
/// Longest wait for other processes that write; SQLite does not have them take turns.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests that wait for the writer; more callers wait for room.
const REQUESTS_MAX: usize = 1024;

/// Opens `sqlite:///path`, making directory, file and tables where they are missing.
pub(crate) async fn open(url: &str, options: Options) -> Result<EngineQueue<Sqlite>, OpenError> {
    let rest = url.strip_prefix("sqlite:").map_or(url, |rest| rest.strip_prefix("//").unwrap_or(rest));
    if rest.is_empty() || rest.contains('?') || rest == ":memory:" {
        let reason =
            if rest == ":memory:" { "memory keeps nothing" } else { "it has no path, or parameters" };
        return Err(OpenError::Url { reason: reason.to_owned(), example: "sqlite:///path/to/queue.db" });
    }
    let path = Path::new(rest);
    prepare_file(path)?;
    let file = SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        // A commit is on the disk when it is answered: https://www.sqlite.org/pragma.html#pragma_synchronous
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        .pragma("wal_autocheckpoint", checkpoint::LOG_PAGES_MAX)
        .pragma("temp_store", "MEMORY")
        .disable_statement_logging();
    let not_opened =
        |error: sqlx::Error| OpenError::Database { path: path.to_owned(), reason: error.to_string() };
    let writers =
        SqlitePoolOptions::new().max_connections(1).connect_with(file.clone()).await.map_err(not_opened)?;
    MIGRATIONS.run(&writers).await.map_err(|error| OpenError::Schema {
        queue: path.display().to_string(),
        reason: error.to_string(),
    })?;
    let connection = writers.acquire().await.map_err(not_opened)?.detach();
    let mover = file.connect().await.map_err(not_opened)?;
    let readers = SqlitePoolOptions::new()
        .max_connections(READERS_MAX)
        .test_before_acquire(false)
        .idle_timeout(READER_IDLE_MAX)
        .connect_lazy_with(file.read_only(true));
    let core = Arc::new(Core::new(options));
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let (sender, requests) = mpsc::channel(REQUESTS_MAX);
    tasks.spawn(writer::write(connection, mover, Arc::clone(&core), requests, stop.clone()));
    let engine = Sqlite { path: path.to_owned(), core: Arc::clone(&core), readers, writer: sender };
    Ok(EngineQueue::new(engine, core, tasks, stop))
}

/// Makes the directory, and the file with access for its owner only: payloads may be anybody's secrets.
fn prepare_file(path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::File { path: path.to_owned(), source };
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    let file =
        OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path).map_err(failed)?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)
}
