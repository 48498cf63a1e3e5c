//! The connections, found again by themselves when they break.

use std::sync::{Mutex, PoisonError};

use kiln_shared::queue::QueueError;
use redis::aio::ConnectionManager;
use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, Script, ServerErrorKind, ToRedisArgs};

/// A queue's place in a server. Operations of many callers share a connection and wait for each other no longer than
/// the server works on each.
pub(super) struct Server {
    /// Scheme, host, port and database.
    name: String,
    /// How the queue's keys begin.
    keys: String,
    channel: String,
    /// Tells this process's publications from others'.
    origin: String,
    /// None: closed.
    connections: Mutex<Option<Connections>>,
}

/// Connections to one server.
#[derive(Clone)]
pub(super) struct Connections {
    pub(super) commands: ConnectionManager,
    /// Hears what is published. The server bounds what waits to be sent to such a one far more tightly, to less than
    /// what one reserve may give.
    pub(super) listener: ConnectionManager,
}

impl Server {
    pub(super) fn new(name: String, keys: String, channel: String, origin: String, to: Connections) -> Self {
        Self { name, keys, channel, origin, connections: Mutex::new(Some(to)) }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The server's time as seconds and microseconds, asked where it listens: who only listens would not notice that
    /// it is cut off.
    pub(super) async fn time(&self) -> Result<(i64, i64), QueueError> {
        let mut listener = self.connections()?.listener;
        redis::cmd("TIME").query_async(&mut listener).await.map_err(|error| failure(&error))
    }

    /// Runs a script.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        script: &Script,
        arguments: impl FnOnce(&mut Cmd),
    ) -> Result<T, QueueError> {
        let mut command = redis::cmd("EVALSHA");
        command.arg(script.get_hash()).arg(1).arg(&self.keys);
        arguments(&mut command);
        let mut connection = self.connections()?.commands;
        let mut answer = command.query_async(&mut connection).await;
        // A server that was started anew has forgotten the scripts.
        if matches!(&answer, Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)) {
            script.load_async(&mut connection).await.map_err(|error| failure(&error))?;
            answer = command.query_async(&mut connection).await;
        }
        answer.map_err(|error| failure(&error))
    }

    /// Adds what a script needs to publish.
    pub(super) fn publisher<'a>(&self, command: &'a mut Cmd) -> &'a mut Cmd {
        command.arg(&self.channel).arg(&self.origin)
    }

    /// Later operations are refused; those under way keep the connection until they are done.
    pub(super) fn close(&self) {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn connections(&self) -> Result<Connections, QueueError> {
        let connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner).clone();
        connections.ok_or_else(|| QueueError::Unavailable("it was closed".to_owned()))
    }
}

/// Adds an argument that may be missing.
pub(super) fn optional(command: &mut Cmd, argument: Option<impl ToRedisArgs>) {
    match argument {
        Some(argument) => command.arg(argument),
        None => command.arg(""),
    };
}

/// What a caller is told.
fn failure(error: &RedisError) -> QueueError {
    if passes(error) {
        QueueError::Unavailable(error.to_string())
    } else {
        QueueError::Failed(error.to_string())
    }
}

/// True if the server is away or cannot serve for now, so that waiting helps; also while it opens, so that a balancer
/// that starts after a power cut together with its server waits for it. Codes:
/// <https://redis.io/docs/latest/develop/reference/protocol-spec/#simple-errors>.
pub(super) fn passes(error: &RedisError) -> bool {
    use ServerErrorKind::{BusyLoading, ClusterDown, MasterDown, ReadOnly, ResponseError, TryAgain};
    let is_passing = match error.kind() {
        // Nobody answers; it reads its log; it, or the slot, waits for another to take over, or is about to itself.
        ErrorKind::Io | ErrorKind::Server(BusyLoading | ClusterDown | MasterDown | ReadOnly | TryAgain) => {
            true
        }
        // Too many connections have no code of their own.
        ErrorKind::Server(ResponseError) => {
            error.detail().is_some_and(|detail| detail.starts_with("max number of clients"))
        }
        // Memory is used up until calls end; another script runs too long; the disk of the log is full; replicas that
        // must hold a copy are away.
        _ => matches!(error.code(), Some("OOM" | "BUSY" | "MISCONF" | "NOREPLICAS")),
    };
    is_passing || error.is_connection_dropped()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a server answers, as the client reads it.
    fn answered(line: &str) -> RedisError {
        let read = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).expect("an answer");
        read.extract_error().expect_err("it is an error")
    }

    #[test]
    fn what_passes_is_no_failure() {
        for line in [
            "LOADING Redis is loading the dataset in memory",
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            "CLUSTERDOWN The cluster is down",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            "READONLY You can't write against a read only replica.",
            "OOM command not allowed when used memory > 'maxmemory'.",
            "BUSY Redis is busy running a script.",
            "MISCONF Errors writing to the AOF file: No space left on device",
            "NOREPLICAS Not enough good replicas to write.",
            "ERR max number of clients reached",
        ] {
            assert!(passes(&answered(line)), "{line}");
        }
        for line in
            ["NOPERM this user has no permissions", "WRONGPASS invalid", "ERR unknown command", "WRONGTYPE x"]
        {
            assert!(!passes(&answered(line)), "{line}");
        }
    }
}
