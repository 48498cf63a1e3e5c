//! Postgres: a queue that balancers on many machines share.
//!
//! Owns the connections. Workers pass each other by with `SKIP LOCKED`; other processes are told of messages with
//! `NOTIFY` (`notices.rs`).

mod notices;
mod open;
mod session;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_shared::queue::QueueError;
use sqlx::postgres::PgPool;
use tokio::sync::Notify;

pub(crate) use open::open;

use crate::engine::{Core, Effect, Engine, Operation, Reply};
use crate::sql::refusal::failure;
use crate::sql::server;

/// The engine of a database.
pub(crate) struct Postgres {
    /// Name and address.
    address: String,
    core: Arc<Core>,
    pool: PgPool,
    /// Has other processes be told that messages are due.
    announce: Arc<Notify>,
}

impl Engine for Postgres {
    async fn run(&self, operation: Operation) -> Result<Reply, QueueError> {
        let (reply, effect) = server::transact(&self.pool, &self.core, &operation).await?;
        if effect == Effect::Due {
            self.announce.notify_one();
        }
        Ok(reply)
    }

    async fn tell_time(&self) -> Result<(), QueueError> {
        let asked = Instant::now();
        let millis = sqlx::query_scalar("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
            .fetch_one(&self.pool)
            .await
            .map_err(|error| failure(&error))?;
        self.core.time.learn(millis, asked);
        Ok(())
    }

    fn look_again(&self, _in_vain: u32) -> Duration {
        // Notices tell.
        Duration::MAX
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}

impl fmt::Debug for Postgres {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.address)
    }
}
