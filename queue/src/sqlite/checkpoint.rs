//! Moving what was committed from the log of changes to the database, beside the writer.
//!
//! A checkpoint writes every changed page to its place and waits for the disk: milliseconds in which the writer would
//! commit nothing. A connection of its own does it while commits go on. It never gets to the end of a log that grows
//! meanwhile, and only a log that is at its end begins anew in its file: so when it has become long, the writer moves the
//! little that is left itself. <https://www.sqlite.org/wal.html#checkpointing>

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use sqlx::{Row, SqliteConnection};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::engine::Operation;

/// Size of a page, SQLite's default.
const PAGE_BYTES: usize = 4096;
/// Pages that are changed, by a guess, before they are moved.
const PAGES: usize = 1_000;
/// Pages that a message's row and its places in indices take, by a guess.
const MESSAGE_PAGES: usize = 2;
/// Pages in the log, moved or not, from which on the writer lets it begin anew.
const LOG_PAGES: i64 = 8_000;
/// Pages in the log at which SQLite makes the writer move all of them, in case nobody else does.
pub(super) const LOG_PAGES_MAX: &str = "32000";

/// What the writer and the one who moves changes tell each other.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// Changed pages, by a guess, since changes were moved.
    pages: AtomicUsize,
    is_due: Notify,
    is_long: AtomicBool,
}

impl Log {
    /// These operations were committed.
    pub(super) fn committed(&self, operations: &[Operation]) {
        let pages: usize = operations.iter().map(changed_pages).sum();
        if self.pages.fetch_add(pages, Ordering::Relaxed) + pages >= PAGES {
            self.pages.store(0, Ordering::Relaxed);
            self.is_due.notify_one();
        }
    }

    /// True once each time that the log has become long: the writer is to move what is left.
    pub(super) fn is_long(&self) -> bool {
        self.is_long.load(Ordering::Relaxed) && self.is_long.swap(false, Ordering::Relaxed)
    }
}

fn changed_pages(operation: &Operation) -> usize {
    match operation {
        Operation::Enqueue(messages) => {
            messages.iter().map(|message| MESSAGE_PAGES + message.payload.len() / PAGE_BYTES).sum()
        }
        Operation::Settle(settlements) => MESSAGE_PAGES * settlements.len(),
        Operation::Reserve(reserve) => MESSAGE_PAGES * reserve.messages_max,
        _ => MESSAGE_PAGES,
    }
}

/// Moves changes when there are many, until `stop`.
pub(super) async fn run(mut connection: SqliteConnection, log: &Log, stop: &CancellationToken) {
    while stop.run_until_cancelled(log.is_due.notified()).await.is_some() {
        match checkpoint(&mut connection).await {
            Ok(pages) if pages >= LOG_PAGES => log.is_long.store(true, Ordering::Relaxed),
            Ok(_) => {}
            // The writer does it, when the log is long.
            Err(error) => tracing::debug!(%error, "changes stay in the queue's log"),
        }
    }
}

/// Moves what can be moved while others read and write. Returns the length of the log in pages.
pub(super) async fn checkpoint(connection: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    // It answers whether it was kept from it, the pages in the log, and how many of them are in the database.
    sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").fetch_one(connection).await?.try_get(1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kiln_shared::ids::{AppId, CallId, FunctionId};
    use kiln_shared::queue::NewMessage;
    use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
    use sqlx::{ConnectOptions, Connection};

    use super::*;

    async fn write(connection: &mut SqliteConnection, pages: i64) {
        let insert = sqlx::query("INSERT INTO t VALUES (zeroblob(?))").bind(pages * PAGE_BYTES as i64);
        insert.execute(connection).await.expect("written");
    }

    #[tokio::test]
    async fn a_long_log_begins_anew_once_the_writer_has_moved_what_is_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = SqliteConnectOptions::new()
            .filename(folder.path().join("q"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .pragma("wal_autocheckpoint", "0");
        let mut writer = file.connect().await.expect("opens");
        sqlx::query("CREATE TABLE t (b BLOB)").execute(&mut writer).await.expect("made");
        let (log, stop) = (Log::default(), CancellationToken::new());
        let mover = file.connect().await.expect("opens");
        let mut reader = file.connect().await.expect("opens");
        let write_until_long = async {
            write(&mut writer, LOG_PAGES).await;
            // Who reads keeps what was written since in the log.
            let mut reading = reader.begin().await.expect("begins");
            sqlx::query("SELECT count(*) FROM t").fetch_one(&mut *reading).await.expect("read");
            write(&mut writer, 1).await;
            let (function, app) = (FunctionId::generate(), AppId::generate());
            let payload = vec![0; PAGES * PAGE_BYTES];
            let message = NewMessage::new(CallId::generate(), function, app, payload);
            assert!(!log.is_long());
            log.committed(&[Operation::Enqueue(vec![message])]);
            kiln_testkit::until("the log is long", async || log.is_long().then_some(())).await;
            assert!(!log.is_long(), "it is told once");
            reading.commit().await.expect("ends");
            write(&mut writer, 1).await;
            assert!(checkpoint(&mut writer).await.expect("moved") > LOG_PAGES);
            write(&mut writer, 1).await;
            assert!(checkpoint(&mut writer).await.expect("moved") < 100, "it has begun anew");
            stop.cancel();
        };
        let both = async { tokio::join!(run(mover, &log, &stop), write_until_long) };
        tokio::time::timeout(Duration::from_mins(1), both).await.expect("it ends");
        writer.close().await.expect("closes");
    }
}
