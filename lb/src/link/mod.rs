//! The balancer's side of the link: agents dial in, prove who they are, and tell how they are (`kiln_shared::link`).
//!
//! Owns the connections. What agents say goes to [`Nodes`], their records to the store; nothing here decides where a
//! call goes. Invariant: an agent speaks for the node that its certificate names, and for no other.

mod admit;
mod ask;
mod identity;
mod join;
mod peers;
mod records;
mod removed;
mod session;
mod start;
mod work;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kiln_api::StoredBatches;
use kiln_shared::identity::{Peer, Role, certificate_ended, peer_of_connection};
use kiln_shared::link::frame::{MessageReader, ReadError};
use kiln_shared::link::message::{Opening, Refused};
use kiln_shared::link::quic::{CODE_DONE, CODE_REFUSED};
use kiln_shared::link::{JOIN_ALPN, MESSAGE_BYTES_MAX};
use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, Endpoint, Incoming};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::ask::Answers;
pub use self::join::Registrar;
pub use self::removed::RemovedNodes;
use self::session::Ended;
pub use self::start::{LinkArgs, LinkParts, PreparedLink};
use crate::detached::Dispatcher;
use crate::nodes::Nodes;

/// Connections that may be open or in their handshake; further ones are turned away.
const CONNECTIONS_MAX: usize = 16_384;
/// Machines that may join at one time; further ones are turned away.
const JOINS_MAX: usize = 64;
/// Longest time for a handshake, and for the first message of a stream.
const OPENING_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for the streams of a broken connection to end.
const ENDING_TIMEOUT: Duration = Duration::from_secs(1);

/// What agents are served with.
#[derive(Debug, Clone)]
pub struct LinkServer {
    /// Where news of nodes go.
    pub nodes: Nodes,
    /// Where their records go.
    pub records: StoredBatches,
    /// What their questions are answered with.
    pub answers: Answers,
    /// Where queued work comes from, if this balancer has a queue.
    pub dispatcher: Option<Dispatcher>,
    /// Which of them may be none.
    pub removed: RemovedNodes,
    /// Where all balancers are.
    pub balancers: watch::Receiver<Vec<String>>,
    /// Who lets machines join, if this balancer has the key of the fleet's CA.
    pub registrar: Option<Registrar>,
}

impl LinkServer {
    /// Serves the agents that dial `endpoint` until `stop`.
    pub fn serve(self, endpoint: Endpoint, tasks: &TaskTracker, stop: &CancellationToken) {
        let (server, stop, connections) = (Arc::new(self), stop.clone(), tasks.clone());
        tasks.spawn(async move {
            let open = Arc::new(Semaphore::new(CONNECTIONS_MAX));
            let joins = Arc::new(Semaphore::new(JOINS_MAX));
            // Cancel-safe: a connection that was not taken stays in the endpoint's queue.
            while let Some(Some(incoming)) = stop.run_until_cancelled(endpoint.accept()).await {
                if !incoming.remote_address_validated() {
                    // Who sends from an address that is not its own gets no place (RFC 9000, 8.1.2).
                    if let Err(error) = incoming.retry() {
                        tracing::debug!(%error, "a handshake cannot be asked for again");
                    }
                    continue;
                }
                let Ok(permit) = Arc::clone(&open).try_acquire_owned() else {
                    metrics::counter!("kiln_link_refusals_total", "reason" => "full").increment(1);
                    incoming.refuse();
                    continue;
                };
                let (server, joins, stop) = (Arc::clone(&server), Arc::clone(&joins), stop.clone());
                let tasks = connections.clone();
                connections.spawn(async move {
                    server.connection(incoming, &joins, &tasks, &stop).await;
                    drop(permit);
                });
            }
            // What was said last has to arrive.
            endpoint.close(CODE_DONE, b"the balancer stops");
            drop(timeout(Duration::from_secs(1), endpoint.wait_idle()).await);
        });
    }

    async fn connection(
        &self,
        incoming: Incoming,
        joins: &Semaphore,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) {
        let address = incoming.remote_address();
        let connection = match timeout(OPENING_TIMEOUT, incoming).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                metrics::counter!("kiln_link_refusals_total", "reason" => "handshake").increment(1);
                tracing::warn!(%address, %error, "no link: the handshake failed; has the agent joined this fleet?");
                return;
            }
            Err(_elapsed) => {
                metrics::counter!("kiln_link_refusals_total", "reason" => "handshake").increment(1);
                tracing::warn!(%address, "no link: the handshake took too long");
                return;
            }
        };
        if protocol(&connection).as_deref() == Some(JOIN_ALPN) {
            // Anybody may ask to join, so those who do take no more than a part of the places.
            let Ok(_permit) = joins.try_acquire() else {
                metrics::counter!("kiln_link_refusals_total", "reason" => "full").increment(1);
                return connection.close(CODE_REFUSED, b"too many machines join at once");
            };
            return join::serve(self.registrar.as_ref(), &connection).await;
        }
        let agent = match peer_of_connection(&connection) {
            Ok(peer) if peer.role() == Role::Agent => peer,
            Ok(peer) => {
                return turn_away(&connection, &format!("a certificate of {peer}, which is no agent"));
            }
            Err(error) => return turn_away(&connection, &error.to_string()),
        };
        // Cancel-safe: the connection is closed when it is dropped.
        match stop.run_until_cancelled(self.streams(&connection, &agent, tasks)).await {
            Some(Ended::Refused(refused)) => {
                tracing::warn!(%address, node = agent.name(), "an agent is refused: {refused}");
                metrics::counter!("kiln_link_refusals_total", "reason" => refused.reason()).increment(1);
                connection.close(CODE_REFUSED, refused.reason().as_bytes());
            }
            Some(Ended::Goodbye) => tracing::info!(node = agent.name(), "an agent has stopped"),
            Some(Ended::Broken(error)) => {
                tracing::warn!(%address, node = agent.name(), error = &*error, "the link to an agent broke");
            }
            None => {}
        }
    }

    /// Waits until the agent may not be linked any more.
    async fn over(&self, connection: &Connection, agent: &Peer) -> Ended {
        let removed = async {
            self.removed.wait_for(agent.name()).await;
            // A session sees it for itself and tells the agent. This ends a connection without one.
            tokio::time::sleep(OPENING_TIMEOUT).await;
        };
        tokio::select! {
            () = removed => Ended::Refused(Refused::Removed),
            // TLS looks at it in the handshake alone. An agent that has a newer one comes back with that.
            () = certificate_ended(connection) => Ended::Broken("its certificate has ended".into()),
        }
    }

    /// Serves the connection's streams until its state stream ends, the node is removed or its certificate has ended. What is
    /// being taken from the queue then has a task of its own, since it must be given back.
    async fn streams(&self, connection: &Connection, agent: &Peer, tasks: &TaskTracker) -> Ended {
        let mut streams = JoinSet::new();
        let let_in = Arc::new(AtomicBool::new(false));
        let mut over = pin!(self.over(connection, agent));
        loop {
            // All are cancel-safe.
            let (mut writer, reader) = tokio::select! {
                accepted = connection.accept_bi() => match accepted {
                    Ok(stream) => stream,
                    Err(error) => {
                        // The state stream ends too and says that the node is lost; it must not be cut off in that.
                        // An agent that was refused may be gone before its stream knows.
                        break match timeout(ENDING_TIMEOUT, state_ended(&mut streams)).await {
                            Ok(Some(ended @ (Ended::Refused(_) | Ended::Goodbye))) => ended,
                            Ok(_) | Err(_) => Ended::Broken(error.into()),
                        };
                    }
                },
                ended = &mut over => {
                    // As above.
                    drop(timeout(ENDING_TIMEOUT, state_ended(&mut streams)).await);
                    break ended;
                }
                Some(ended) = streams.join_next() => match ended {
                    Ok(Some(ended)) => break ended,
                    Ok(None) => continue,
                    Err(error) => break Ended::Broken(error.into()),
                },
            };
            let (server, connection, agent) = (self.clone(), connection.clone(), agent.clone());
            let (tasks, let_in) = (tasks.clone(), Arc::clone(&let_in));
            streams.spawn(async move {
                let mut reader = MessageReader::new(reader, MESSAGE_BYTES_MAX);
                match timeout(OPENING_TIMEOUT, reader.next()).await {
                    Ok(Ok(Some(Opening::State(hello)))) => Some(
                        session::serve(&server, &agent, hello, &connection, &let_in, reader, writer).await,
                    ),
                    Ok(Ok(Some(Opening::Records | Opening::Work(_))))
                        if !let_in.load(Ordering::Acquire) || server.removed.check(agent.name()).is_err() =>
                    {
                        // Work holds what only nodes of the fleet may see.
                        drop(writer.reset(CODE_REFUSED));
                        None
                    }
                    Ok(Ok(Some(Opening::Records))) => {
                        records::serve(&server.records, reader, writer).await;
                        None
                    }
                    Ok(Ok(Some(Opening::Ask(question)))) => {
                        ask::serve(&server, &agent, question, writer).await;
                        None
                    }
                    Ok(Ok(Some(Opening::Work(question)))) => {
                        tasks.spawn(work::serve(server.dispatcher, agent, question, reader, writer));
                        None
                    }
                    Ok(Err(error @ ReadError::Malformed(_))) => {
                        Some(session::refuse_opening(error, writer).await)
                    }
                    // A stream that never said what it is for.
                    Ok(Ok(None) | Err(_)) | Err(_) => None,
                }
            });
        }
    }
}

/// Waits until the state stream has ended, or all have; how the state stream did.
async fn state_ended(streams: &mut JoinSet<Option<Ended>>) -> Option<Ended> {
    loop {
        match streams.join_next().await? {
            Ok(Some(ended)) => return Some(ended),
            Ok(None) => {}
            Err(error) => return Some(Ended::Broken(error.into())),
        }
    }
}

/// The protocol that the peer has asked for (ALPN).
fn protocol(connection: &Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<HandshakeData>().ok()?.protocol
}

/// Closes a connection whose peer may not speak here.
fn turn_away(connection: &Connection, why: &str) {
    let address = connection.remote_address();
    tracing::warn!(%address, "no link: {why}");
    metrics::counter!("kiln_link_refusals_total", "reason" => "certificate").increment(1);
    connection.close(CODE_REFUSED, why.as_bytes());
}
