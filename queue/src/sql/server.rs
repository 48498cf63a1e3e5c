//! What the databases that are servers share: transactions that are tried again.

use std::time::Duration;

use kiln_shared::queue::QueueError;
use sqlx::{Database, Pool, Transaction};
use tokio::time::{sleep, timeout};

use super::operation::{Done, Fault, run};
use super::refusal::{failure, is_worth_a_try};
use super::session::Session;
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
