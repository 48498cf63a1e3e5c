//! What the databases that are servers share: transactions that are tried again, and what their errors mean.

use std::time::Duration;

use kiln_shared::queue::QueueError;
use sqlx::error::DatabaseError;
use sqlx::migrate::MigrateError;
use sqlx::{Database, Pool, Transaction};
use tokio::time::{sleep, timeout};

use super::operation::{Done, Fault, run};
use super::session::Session;
use crate::OpenError;
use crate::engine::{Core, Effect, Operation, Reply};

/// Longest run of one operation, its tries included.
const OPERATION_MAX: Duration = Duration::from_secs(15);
/// Tries of one operation: as many as there may be connections that a restart of the server broke, and some.
const TRIES_MAX: u32 = 20;
/// Longest pause before the second try; that before the third is twice as long, and so on.
const TRY_PAUSE: Duration = Duration::from_millis(10);
/// Longest wait for a connection.
pub(crate) const CONNECT_MAX: Duration = Duration::from_secs(3);
/// Connections of one queue.
pub(crate) const CONNECTIONS_MAX: u32 = 8;
/// A connection unused for this long is closed.
pub(crate) const IDLE_MAX: Duration = Duration::from_mins(1);

/// A transaction that was not committed, as far as anybody knows.
enum Broken {
    /// Nothing was changed.
    Before(Fault),
    /// It may have been committed.
    AtCommit(sqlx::Error),
}

/// Runs an operation; the answer, and what it means once committed.
pub(crate) async fn transact<D: Database>(
    pool: &Pool<D>,
    core: &Core,
    operation: &Operation,
) -> Result<(Reply, Effect), QueueError>
where
    for<'c> Transaction<'c, D>: Session,
{
    let tried = async {
        let mut tries = 1;
        loop {
            match attempt(pool, core, operation).await {
                Ok(Done { reply, effect }) => {
                    core.tell(effect);
                    return Ok((reply, effect));
                }
                Err(Broken::Before(Fault::Refused(refusal))) => return Err(refusal),
                Err(Broken::Before(Fault::Sql(error))) if tries < TRIES_MAX && is_worth_a_try(&error) => {
                    // Those who were in each other's way must not meet again.
                    sleep(TRY_PAUSE.mul_f64(f64::from(tries) * rand::random::<f64>())).await;
                    tries += 1;
                }
                Err(Broken::Before(Fault::Sql(error)) | Broken::AtCommit(error)) => {
                    return Err(failure(&error));
                }
            }
        }
    };
    let late = || QueueError::Unavailable(format!("its database did not answer within {OPERATION_MAX:?}"));
    timeout(OPERATION_MAX, tried).await.unwrap_or_else(|_| Err(late()))
}

async fn attempt<D: Database>(pool: &Pool<D>, core: &Core, operation: &Operation) -> Result<Done, Broken>
where
    for<'c> Transaction<'c, D>: Session,
{
    let mut transaction = pool.begin().await.map_err(|error| Broken::Before(Fault::Sql(error)))?;
    let done = run(&mut transaction, core, operation).await.map_err(Broken::Before)?;
    transaction.commit().await.map_err(Broken::AtCommit)?;
    Ok(done)
}

/// True if others were in the way, or the connection was of the server's last life.
fn is_worth_a_try(error: &sqlx::Error) -> bool {
    // Who waited for a connection in vain has waited long enough.
    is_conflict(error)
        || is_gone(error) && !matches!(error, sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed)
}

/// Deadlocks and transactions that could not be put in an order: SQLSTATE 40001, and 40P01 of Postgres.
fn is_conflict(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(database) if matches!(database.code().as_deref(), Some("40001" | "40P01")))
}

fn is_gone(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        // Connection exceptions, shutting down or starting, too many connections, no room, locks held too long.
        sqlx::Error::Database(database) => database
            .code()
            .is_some_and(|code| ["08", "57P", "53", "55P03"].iter().any(|class| code.starts_with(class))),
        _ => false,
    }
}

/// What a caller is told.
pub(crate) fn failure(error: &sqlx::Error) -> QueueError {
    match error {
        sqlx::Error::PoolTimedOut => {
            QueueError::Unavailable(format!("no connection to its database within {CONNECT_MAX:?}"))
        }
        sqlx::Error::PoolClosed => QueueError::Unavailable("it was closed".to_owned()),
        error if is_gone(error) || is_conflict(error) => QueueError::Unavailable(error.to_string()),
        error => QueueError::Failed(error.to_string()),
    }
}

/// Why the first connection was not made. `is_missing` knows the refusal of a database that is not there.
pub(crate) fn not_opened(
    error: &sqlx::Error,
    queue: String,
    database: &str,
    is_missing: impl Fn(&dyn DatabaseError) -> bool,
) -> OpenError {
    match error {
        sqlx::Error::Database(refusal) if is_missing(&**refusal) => {
            OpenError::Missing { queue, missing: format!("database '{database}'") }
        }
        // One that is starting or stopping passes.
        sqlx::Error::Database(refusal) if !is_gone(error) => {
            OpenError::Refused { queue, reason: refusal.message().to_owned() }
        }
        sqlx::Error::PoolTimedOut => {
            OpenError::Unreachable { queue, reason: format!("no answer within {CONNECT_MAX:?}") }
        }
        error => OpenError::Unreachable { queue, reason: error.to_string() },
    }
}

/// Why the tables were not made: the server went away meanwhile, or they are another version's.
pub(crate) fn not_made(error: &MigrateError, queue: String) -> OpenError {
    let reason = error.to_string();
    match error {
        MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _) if is_gone(cause) => {
            OpenError::Unreachable { queue, reason }
        }
        _ => OpenError::Schema { queue, reason },
    }
}

/// Checks the names of a URL's parameters: sqlx would log the values of others, which may be secrets.
pub(crate) fn check_parameters(url: &str, known: &[&str]) -> Result<(), String> {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        if !known.contains(&pair.split('=').next().unwrap_or(pair)) {
            return Err(format!("its parameters may be {}", known.join(", ")));
        }
    }
    Ok(())
}

/// What is wrong with a URL, without it.
pub(crate) fn wrong_url(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Configuration(cause) => cause.to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_server_that_dies_while_tables_are_made_is_away_and_no_other_version() {
        let made = |error| not_made(&error, "q".to_owned());
        let gone = || sqlx::Error::Io(io::ErrorKind::UnexpectedEof.into());
        assert!(matches!(made(MigrateError::Execute(gone())), OpenError::Unreachable { .. }));
        assert!(matches!(made(MigrateError::ExecuteMigration(gone(), 1)), OpenError::Unreachable { .. }));
        assert!(matches!(made(MigrateError::VersionMissing(7)), OpenError::Schema { .. }));
        assert!(matches!(made(MigrateError::Execute(sqlx::Error::RowNotFound)), OpenError::Schema { .. }));
    }
}
