//! From a URL to an open queue with the present schema.

use std::sync::{Arc, LazyLock};

use kiln_shared::mysql_url;
use sqlx::error::DatabaseError;
use sqlx::migrate::Migrator;
use sqlx::mysql::{MySqlConnectOptions, MySqlDatabaseError, MySqlPoolOptions};
use sqlx::{ConnectOptions, Executor};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::MySql;
use crate::engine::{Core, Engine, EngineQueue};
use crate::sql::refusal::{Place, wrong_url};
use crate::sql::server::{CONNECT_MAX, CONNECTIONS_MAX, IDLE_MAX, check_parameters};
use crate::{OpenError, Options};

static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrations = sqlx::migrate!("migrations/mysql");
    migrations.dangerous_set_table_name("queue_migrations");
    migrations
});

const EXAMPLE: &str =
    "mysql://user:password@host:port/database?ssl-mode=REQUIRED, with %XX for special characters";
const PARAMETERS: [&str; 9] =
    ["ssl-mode", "sslmode", "ssl-ca", "sslca", "ssl-cert", "sslcert", "ssl-key", "sslkey", "socket"];

/// What a connection is set to: each statement sees what was committed before it, and locks only what it finds. A
/// transaction whose process was cut off holds its locks no longer than the server waits for the next statement:
/// MariaDB 5 s (<https://mariadb.com/docs/server/server-management/variables-and-modes/server-system-variables>), MySQL,
/// which takes the rest of the line for a comment, as long as for any connection that is not used.
const SETTINGS: [&str; 2] = [
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    "SET SESSION innodb_lock_wait_timeout = 5, wait_timeout = 15 /*M!100300 , idle_transaction_timeout = 5 */",
];
/// The server's number for a database that is not there.
const UNKNOWN_DATABASE: u16 = 1049;

/// Opens `mysql://...`, making tables where they are missing.
pub(crate) async fn open(url: &str, options: Options) -> Result<EngineQueue<MySql>, OpenError> {
    let connect = parse(url).map_err(|reason| OpenError::Url { reason, example: EXAMPLE })?;
    let address = address(&connect);
    let database = connect.get_database().unwrap_or_default().to_owned();
    let grant = format!("GRANT ALL ON `{database}`.* TO '{}'@'its host'", connect.get_username());
    let place = Place { queue: address.clone(), database, grant };
    // One that is none of a pool's, which would try for seconds where nobody listens.
    let first = timeout(CONNECT_MAX, connect.connect()).await.unwrap_or(Err(sqlx::Error::PoolTimedOut));
    // The server notices that it is gone.
    let is_missing = |refusal: &dyn DatabaseError| {
        refusal
            .try_downcast_ref::<MySqlDatabaseError>()
            .is_some_and(|refusal| refusal.number() == UNKNOWN_DATABASE)
    };
    drop(first.map_err(|error| place.not_opened(&error, is_missing))?);
    let pool = MySqlPoolOptions::new()
        .max_connections(CONNECTIONS_MAX)
        .acquire_timeout(CONNECT_MAX)
        .idle_timeout(IDLE_MAX)
        // A broken one shows when it is used; then the operation is tried again.
        .test_before_acquire(false)
        .after_connect(|connection, _| {
            Box::pin(async move {
                for setting in SETTINGS {
                    connection.execute(setting).await?;
                }
                Ok(())
            })
        })
        .connect_lazy_with(connect);
    MIGRATIONS.run(&pool).await.map_err(|error| place.not_migrated(&error))?;
    let core = Arc::new(Core::new(options));
    let engine = MySql { address: address.clone(), core: Arc::clone(&core), pool };
    engine
        .tell_time()
        .await
        .map_err(|error| OpenError::Unreachable { queue: address, reason: error.to_string() })?;
    Ok(EngineQueue::new(engine, core, TaskTracker::new(), CancellationToken::new()))
}

/// The settings of a connection, or what is wrong with the URL in words that show none of it.
fn parse(url: &str) -> Result<MySqlConnectOptions, String> {
    let url = mysql_url::standard(url);
    check_parameters(&url, &PARAMETERS)?;
    let options: MySqlConnectOptions = url.parse().map_err(|error| wrong_url(&error))?;
    if options.get_database().is_none_or(str::is_empty) {
        return Err("it names no database".to_owned());
    }
    Ok(options.disable_statement_logging())
}

/// Where the database is, without secrets.
fn address(options: &MySqlConnectOptions) -> String {
    let database = options.get_database().unwrap_or_default();
    match options.get_socket() {
        Some(socket) => format!("mysql {database} at {}", socket.display()),
        None => format!("mysql {database} at {}:{}", options.get_host(), options.get_port()),
    }
}
