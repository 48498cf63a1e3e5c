//! SQLite: a file of one machine, for one process or a few. What a fleet of one node needs and nothing beside it.
//!
//! Owns the connections. One task writes, and commits what waits for it together (`writer.rs`): a commit costs a
//! write to the disk that is waited for, whatever it holds.

mod checkpoint;
mod insert;
mod open;
mod session;
mod writer;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kiln_shared::queue::QueueError;
use sqlx::sqlite::SqlitePool;
use tokio::sync::{mpsc, oneshot};

pub(crate) use open::open;

use crate::engine::{Core, Engine, Operation, Reply};
use crate::sql::{self, Fault};
use session::SqliteSession;
use writer::Request;

/// The engine of a file.
pub(crate) struct Sqlite {
    path: PathBuf,
    core: Arc<Core>,
    readers: SqlitePool,
    writer: mpsc::Sender<Request>,
}

impl Engine for Sqlite {
    async fn run(&self, operation: Operation) -> Result<Reply, QueueError> {
        if operation.only_reads() {
            let mut transaction = self.readers.begin().await.map_err(|error| failure(&error))?;
            let done = sql::run(&mut SqliteSession::new(&mut transaction), &self.core, &operation).await;
            return done.map(|done| done.reply).map_err(|fault| refusal(&fault));
        }
        let (answer, answered) = oneshot::channel();
        // Waits for room: so many callers wait for the disk already.
        self.writer.send(Request { operation, answer }).await.map_err(|_| closed())?;
        answered.await.unwrap_or_else(|_| Err(closed()))
    }

    async fn tell_time(&self) -> Result<(), QueueError> {
        self.core.time.learn_own();
        Ok(())
    }

    fn look_again(&self, _in_vain: u32) -> Duration {
        // Messages that another process stored in the file may wait for the tender's next look.
        Duration::MAX
    }

    async fn close(&self) {
        let (answer, answered) = oneshot::channel();
        if self.writer.send(Request { operation: Operation::Sweep, answer }).await.is_ok() {
            // All before it is done by then; how the sweep itself went is nobody's concern any more.
            drop(answered.await);
        }
        self.readers.close().await;
    }
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "sqlite://{}", self.path.display())
    }
}

fn closed() -> QueueError {
    QueueError::Unavailable("it was closed".to_owned())
}

/// What a caller is told of an operation that was rolled back.
fn refusal(fault: &Fault) -> QueueError {
    match fault {
        Fault::Refused(refusal) => refusal.clone(),
        Fault::Sql(error) => failure(error),
    }
}

fn failure(error: &sqlx::Error) -> QueueError {
    match error {
        sqlx::Error::PoolClosed | sqlx::Error::PoolTimedOut => QueueError::Unavailable(error.to_string()),
        // SQLITE_BUSY, SQLITE_FULL and SQLITE_IOERR pass; the file is still there.
        sqlx::Error::Database(database)
            if database.code().and_then(|code| code.parse::<u32>().ok()).is_some_and(is_passing) =>
        {
            QueueError::Unavailable(error.to_string())
        }
        other => QueueError::Failed(other.to_string()),
    }
}

/// Result codes: <https://www.sqlite.org/rescode.html>. The low byte is the primary one.
fn is_passing(code: u32) -> bool {
    const BUSY: u32 = 5;
    const IOERR: u32 = 10;
    const FULL: u32 = 13;
    matches!(code & 0xff, BUSY | IOERR | FULL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Options;
    use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
    use std::time::Instant;

    #[tokio::test]
    async fn a_clock_that_was_set_or_a_machine_that_slept_is_noticed() {
        let core = Arc::new(Core::new(Options::default()));
        let readers = SqlitePoolOptions::new().connect_lazy_with(SqliteConnectOptions::new());
        let (writer, _requests) = mpsc::channel(1);
        let queue = Sqlite { path: PathBuf::new(), core: Arc::clone(&core), readers, writer };
        let right = core.time.now_millis();
        for wrong_by in [8 * 3_600_000, -8 * 3_600_000] {
            core.time.learn(right + wrong_by, Instant::now());
            queue.tell_time().await.expect("it is told");
            assert!((right..right + 60_000).contains(&core.time.now_millis()), "wrong by {wrong_by} ms");
        }
    }
}
