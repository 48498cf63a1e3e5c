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

/// True if the server is away, or says that it will not be long: it reads its files after a start, for example.
pub(super) fn passes(error: &RedisError) -> bool {
    use ServerErrorKind::{BusyLoading, ClusterDown, MasterDown, ReadOnly, TryAgain};
    // Codes: https://redis.io/docs/latest/develop/reference/protocol-spec/#simple-errors
    let passes = match error.kind() {
        ErrorKind::Io => true,
        ErrorKind::Server(kind) => {
            matches!(kind, BusyLoading | ClusterDown | MasterDown | ReadOnly | TryAgain)
        }
        // Memory is used up; another script runs too long; the log cannot be written.
        _ => matches!(error.code(), Some("OOM" | "BUSY" | "MISCONF")),
    };
    passes || error.is_connection_dropped()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_still_reads_its_files_is_away_and_refuses_nobody() {
        let error = |kind| RedisError::from((ErrorKind::Server(kind), "said"));
        assert!(passes(&error(ServerErrorKind::BusyLoading)));
        assert!(!passes(&error(ServerErrorKind::NoPerm)));
    }
}
