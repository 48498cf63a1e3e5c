//! One worker's connections to one agent that carry small calls side by side.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kiln_shared::body::Body;
use kiln_shared::mux::{Client, Closed, Exchange};
use tokio_util::task::TaskTracker;

use super::control::Control;

/// Connections, the first one preferred. The lock is never contended: only the worker's own calls take it.
#[derive(Debug)]
pub(super) struct Multiplexed {
    clients: Mutex<Vec<Client>>,
    connections_max: usize,
    idle_timeout: Duration,
    /// Each connection's bytes are moved by a task of the worker's runtime, which ends with that at the latest.
    drivers: TaskTracker,
}

impl Multiplexed {
    pub(super) fn new(connections_max: usize, idle_timeout: Duration) -> Self {
        Self { clients: Mutex::default(), connections_max, idle_timeout, drivers: TaskTracker::new() }
    }

    /// Begins a call on the first connection that has room, or on a new one, which it does not wait for.
    ///
    /// # Errors
    /// There is no room, and no further connection may be made; the head comes back.
    pub(super) fn start(&self, head: Vec<u8>, body: Body, agent: &Control) -> Result<Exchange, Vec<u8>> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.iter().any(|client| !client.is_open()) {
            clients.retain(Client::is_open);
        }
        let mut request = (head, body);
        for client in &*clients {
            match client.start(request.0, request.1) {
                Ok(exchange) => return Ok(exchange),
                Err(back) => request = back,
            }
        }
        if clients.len() >= self.connections_max {
            return Err(request.0);
        }
        let client = self.connect(agent.clone());
        let started = client.start(request.0, request.1).map_err(|(head, _)| head);
        clients.push(client);
        started
    }

    fn connect(&self, agent: Control) -> Client {
        let (client, driver) = Client::new();
        let idle_timeout = self.idle_timeout;
        self.drivers.spawn(async move {
            let how = driver.run(agent.connect_mux(), idle_timeout).await;
            let agent = agent.address();
            match how {
                Closed::Unused | Closed::ByPeer | Closed::Draining => {}
                Closed::Unconnected(error) => tracing::info!(agent, %error, "cannot reach an agent"),
                how => tracing::warn!(agent, error = %how, "a connection to an agent broke"),
            }
        });
        client
    }
}
