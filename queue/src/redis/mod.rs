//! Redis: a server that many nodes share. Messages are hashes; what waits is in sorted sets by the time it is due.
//!
//! Each change is one Lua script, which the server runs whole, alone and written to its log as one: so it is all or
//! nothing, for a batch too. What becomes of a message is decided here, by the rules that all backends share; a script
//! changes only what is still as it was when that was decided. Keys and their meaning: `lua/shared.lua`.

mod change;
mod enqueue;
mod open;
mod reply;
mod reserve;
mod script;
mod server;
mod settle;
mod sweep;
mod view;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_shared::queue::QueueError;

pub(crate) use open::open;

use crate::engine::{Core, Engine, Operation, Reply};
use server::Server;

/// The engine of a server.
pub(crate) struct Redis {
    server: Server,
    core: Arc<Core>,
}

impl Engine for Redis {
    async fn run(&self, operation: Operation) -> Result<Reply, QueueError> {
        Ok(match operation {
            Operation::Enqueue(messages) => Reply::Enqueued(self.enqueue(&messages).await?),
            Operation::Reserve(reserve) => Reply::Reserved(self.reserve(&reserve).await?),
            Operation::Renew(receipts, lease) => Reply::Held(self.renew(&receipts, lease).await?),
            Operation::Settle(settlements) => Reply::Settled(self.settle(&settlements).await?),
            Operation::Redrive(redrive) => Reply::Count(self.redrive(redrive).await?),
            Operation::Cancel(id) => Reply::Cancelled(self.cancel(id).await?),
            Operation::Purge(purge) => Reply::Count(self.purge(purge).await?),
            Operation::Sweep => Reply::Horizon(self.sweep().await?),
            Operation::Inspect(id) => Reply::Message(self.inspect(id).await?.map(Box::new)),
            Operation::List(list) => Reply::Page(self.list(&list).await?),
            Operation::Depth => Reply::Depth(self.depth().await?),
        })
    }

    async fn tell_time(&self) -> Result<(), QueueError> {
        let asked = Instant::now();
        let (seconds, micros) = self.server.time().await?;
        self.core.time.learn(seconds * 1_000 + micros / 1_000, asked);
        Ok(())
    }

    fn look_again(&self, _in_vain: u32) -> Duration {
        // Others publish what they store.
        Duration::MAX
    }

    async fn close(&self) {
        self.server.close();
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.server.name())
    }
}
