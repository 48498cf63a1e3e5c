//! MySQL from 8.0 and MariaDB from 10.6: a queue that balancers on many machines share.
//!
//! Owns the connections. Workers pass each other by with `SKIP LOCKED`. Nothing tells a process of the messages that
//! others store, so it looks: often while there is something to find, seldom when there is not.

mod open;
mod session;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_shared::queue::QueueError;
use sqlx::mysql::MySqlPool;

pub(crate) use open::open;

use crate::engine::{Core, Engine, Operation, Reply};
use crate::sql::refusal::failure;
use crate::sql::server;

/// Time to the next look after one that found something. Doubles with each that does not.
const LOOK_PAUSE_MIN: Duration = Duration::from_millis(10);
/// See [`LOOK_PAUSE_MIN`].
const LOOK_PAUSE_MAX: Duration = Duration::from_millis(500);

/// The engine of a database.
pub(crate) struct MySql {
    /// Name and address.
    address: String,
    core: Arc<Core>,
    pool: MySqlPool,
}

impl Engine for MySql {
    async fn run(&self, operation: Operation) -> Result<Reply, QueueError> {
        let (reply, _effect) = server::transact(&self.pool, &self.core, &operation).await?;
        Ok(reply)
    }

    async fn tell_time(&self) -> Result<(), QueueError> {
        let asked = Instant::now();
        let millis = sqlx::query_scalar("SELECT CAST(unix_timestamp(sysdate(3)) * 1000 AS SIGNED)")
            .fetch_one(&self.pool)
            .await
            .map_err(|error| failure(&error))?;
        self.core.time.learn(millis, asked);
        Ok(())
    }

    fn look_again(&self, in_vain: u32) -> Duration {
        LOOK_PAUSE_MAX.min(LOOK_PAUSE_MIN * 2_u32.saturating_pow(in_vain.min(16)))
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}

impl fmt::Debug for MySql {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.address)
    }
}
