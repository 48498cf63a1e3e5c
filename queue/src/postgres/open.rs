//! From a URL to an open queue with the present schema.

use std::sync::{Arc, LazyLock};

use sqlx::ConnectOptions;
use sqlx::error::DatabaseError;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Postgres, notices};
use crate::engine::{Core, Engine, EngineQueue};
use crate::sql::refusal::{Place, wrong_url};
use crate::sql::server::{CONNECT_MAX, CONNECTIONS_MAX, IDLE_MAX, check_parameters};
use crate::{OpenError, Options};

static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrations = sqlx::migrate!("migrations/postgres");
    // The database may be the catalog's, which keeps its own.
    migrations.dangerous_set_table_name("queue_migrations");
    migrations
});

const EXAMPLE: &str =
    "postgres://user:password@host:port/database?sslmode=require, with %XX for special characters";
const PARAMETERS: [&str; 7] =
    ["sslmode", "sslrootcert", "sslcert", "sslkey", "host", "application_name", "options"];

/// What a connection is set to.
const SETTINGS: [(&str, &str); 6] = [
    // A commit is on the disk when it is answered.
    ("synchronous_commit", "on"),
    // Tables grow from nothing to much faster than the server learns of it.
    ("enable_seqscan", "off"),
    ("jit", "off"),
    ("lock_timeout", "5s"),
    ("statement_timeout", "10s"),
    // One whose process was cut off holds locks.
    ("idle_in_transaction_session_timeout", "5s"),
];

/// Opens `postgres://...`, making tables where they are missing.
pub(crate) async fn open(url: &str, options: Options) -> Result<EngineQueue<Postgres>, OpenError> {
    let connect = parse(url).map_err(|reason| OpenError::Url { reason, example: EXAMPLE })?;
    let address = address(&connect);
    let database = connect.get_database().unwrap_or_default().to_owned();
    // https://www.postgresql.org/docs/15/ddl-schemas.html#DDL-SCHEMAS-PRIV: from 15 on not everybody may.
    let grant = format!("GRANT CREATE ON SCHEMA public TO \"{}\"", connect.get_username());
    let place = Place { queue: address.clone(), database, grant };
    // One that is none of a pool's, which would try for seconds where nobody listens.
    let first = timeout(CONNECT_MAX, connect.connect()).await.unwrap_or(Err(sqlx::Error::PoolTimedOut));
    // SQLSTATE 3D000: invalid catalog name.
    let is_missing = |refusal: &dyn DatabaseError| refusal.code().as_deref() == Some("3D000");
    // The server notices that it is gone.
    drop(first.map_err(|error| place.not_opened(&error, is_missing))?);
    let pool = PgPoolOptions::new()
        .max_connections(CONNECTIONS_MAX)
        .acquire_timeout(CONNECT_MAX)
        .idle_timeout(IDLE_MAX)
        // A broken one shows when it is used; then the operation is tried again.
        .test_before_acquire(false)
        .connect_lazy_with(connect);
    MIGRATIONS.run(&pool).await.map_err(|error| place.not_migrated(&error))?;
    let channel: String = sqlx::query_scalar("SELECT 'kiln_queue_' || 'queue_messages'::regclass::oid")
        .fetch_one(&pool)
        .await
        .map_err(|error| place.no_tables(&error))?;
    let core = Arc::new(Core::new(options));
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let announce = Arc::new(Notify::new());
    let line = notices::Line::new(channel, pool.clone());
    tasks.spawn(notices::announce(line.clone(), Arc::clone(&announce), stop.clone()));
    tasks.spawn(notices::listen(line, Arc::clone(&core), stop.clone()));
    let engine = Postgres { address: address.clone(), core: Arc::clone(&core), pool, announce };
    engine
        .tell_time()
        .await
        .map_err(|error| OpenError::Unreachable { queue: address, reason: error.to_string() })?;
    Ok(EngineQueue::new(engine, core, tasks, stop))
}

/// The settings of a connection, or what is wrong with the URL in words that show none of it.
fn parse(url: &str) -> Result<PgConnectOptions, String> {
    check_parameters(url, &PARAMETERS)?;
    let options: PgConnectOptions = url.parse().map_err(|error| wrong_url(&error))?;
    if options.get_database().is_none_or(str::is_empty) {
        return Err("it names no database".to_owned());
    }
    let options =
        if url.contains("application_name=") { options } else { options.application_name("kiln-queue") };
    Ok(options.options(SETTINGS).disable_statement_logging())
}

/// Where the database is, without secrets.
fn address(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or_default();
    match options.get_socket() {
        Some(socket) => format!("postgres {database} at {}", socket.display()),
        None => format!("postgres {database} at {}:{}", options.get_host(), options.get_port()),
    }
}
