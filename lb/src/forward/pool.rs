//! One worker's idle connections to one agent: the last used first.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kiln_shared::link::QUEUE_WAIT_MAX;

use super::control::AgentConnection;

/// Bounds of a worker's connections to one agent, and of the calls on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolConfig {
    /// Most idle connections that are kept.
    pub idle_connections_max: usize,
    /// A connection that was idle for longer is not used again. Shorter than what agents allow, so that the one who
    /// closes is the one who would use it.
    pub idle_timeout: Duration,
    /// Longest time for a new connection.
    pub connect_timeout: Duration,
    /// Most connections that carry small calls side by side; a further one is made when those there are full. Beyond, and
    /// with 0, each call has a connection of its own.
    pub mux_connections_max: usize,
    /// How much longer than its function may run a call waits for its answer; then its node is taken for lost. More than an
    /// agent lets it wait, so that only one that does nothing any more is found so.
    pub answer_wait_max: Duration,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            idle_connections_max: 1024,
            idle_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(1),
            mux_connections_max: 4,
            answer_wait_max: QUEUE_WAIT_MAX + Duration::from_secs(10),
        }
    }
}

#[derive(Debug)]
struct Idle {
    connection: AgentConnection,
    since: Instant,
}

/// Idle connections. The lock is never contended: only the worker's own calls take it.
#[derive(Debug)]
pub(super) struct Pool {
    idle: Mutex<VecDeque<Idle>>,
    config: PoolConfig,
}

impl Pool {
    pub(super) fn new(config: PoolConfig) -> Self {
        Self { idle: Mutex::default(), config }
    }

    /// The connection that was used last, if it is young enough.
    pub(super) fn take(&self) -> Option<AgentConnection> {
        let mut idle = self.idle();
        let Idle { connection, since } = idle.pop_back()?;
        if since.elapsed() < self.config.idle_timeout {
            return Some(connection);
        }
        // All others are older.
        idle.clear();
        None
    }

    /// Keeps a connection for the next call, and drops the oldest ones that are too many or too old.
    pub(super) fn put(&self, connection: AgentConnection) {
        let mut idle = self.idle();
        let since = Instant::now();
        let too_old = |other: &Idle| since.duration_since(other.since) >= self.config.idle_timeout;
        while idle.len() >= self.config.idle_connections_max.max(1) || idle.front().is_some_and(too_old) {
            idle.pop_front();
        }
        idle.push_back(Idle { connection, since });
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
