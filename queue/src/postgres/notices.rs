//! Telling other processes that messages are due, and hearing it from them.
//!
//! Commits that notify wait for each other in the whole server, so an operation does not: one task notifies for all
//! that were committed meanwhile. What it cannot tell any more is found by the tender's next look.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgListener, PgPool};
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::engine::Core;

/// Shortest time between two notices of one process.
const ANNOUNCE_PAUSE: Duration = Duration::from_millis(2);
/// Time until a lost connection is made again.
const LISTEN_PAUSE: Duration = Duration::from_millis(500);

/// Where the processes of one queue hear each other.
#[derive(Debug, Clone)]
pub(super) struct Line {
    channel: String,
    /// This process's word, which it does not listen to.
    own: String,
    pool: PgPool,
}

impl Line {
    pub(super) fn new(channel: String, pool: PgPool) -> Self {
        Self { channel, own: rand::random::<u64>().to_string(), pool }
    }
}

/// Tells the others, each time that `announce` says so, until `stop`.
pub(super) async fn announce(line: Line, announce: Arc<Notify>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            // Cancel-safe: what is not waited for comes with the next call.
            () = announce.notified() => {}
        }
        let told =
            sqlx::query("SELECT pg_notify($1, $2)").bind(&line.channel).bind(&line.own).execute(&line.pool);
        tokio::select! {
            () = stop.cancelled() => return,
            told = told => if let Err(error) = told {
                tracing::debug!(%error, "other processes were not told of a message");
            },
        }
        sleep(ANNOUNCE_PAUSE).await;
    }
}

/// Wakes those who wait here when others announce, until `stop`.
pub(super) async fn listen(line: Line, core: Arc<Core>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            // What is dropped is one connection.
            error = listen_once(&line, &core) => {
                tracing::debug!(%error, "no notices of messages; their connection is made again");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(LISTEN_PAUSE) => {}
        }
    }
}

/// Listens until the connection is lost; why.
async fn listen_once(line: &Line, core: &Core) -> sqlx::Error {
    match try_listen(line, core).await {
        Ok(()) => sqlx::Error::Protocol("the connection ended".to_owned()),
        Err(error) => error,
    }
}

async fn try_listen(line: &Line, core: &Core) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(&line.pool).await?;
    listener.eager_reconnect(false);
    listener.listen(&line.channel).await?;
    // For what was told before.
    core.wake.wake();
    while let Some(notice) = listener.try_recv().await? {
        if notice.payload() != line.own {
            core.wake.wake();
        }
    }
    Ok(())
}
