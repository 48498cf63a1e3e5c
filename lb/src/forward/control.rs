//! Connections to an agent, and what is asked of it beside calls.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kiln_shared::body::Body;
use kiln_shared::http1::buffer::WriteFraming;
use kiln_shared::http1::client::{Connection, Exchange, ExchangeError, SendBody};
use kiln_shared::http1::head::HeadLimits;
use kiln_shared::identity::{Credentials, Role, client_config, peer_of};
use kiln_shared::ids::NodeId;
use kiln_shared::link::{HTTP1_ALPN, MUX_ALPN};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;

/// A silent connection is probed after this time, and as often.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// A peer whose host does not acknowledge for this long is gone.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(15);

/// The name that is asked for in the TLS handshake. An agent is known by the name in its certificate, not by this.
const SERVER_NAME: &str = "agent.kiln";

/// The two ways of a connection to an agent.
pub(super) type AgentReader = ReadHalf<TlsStream<TcpStream>>;
/// See [`AgentReader`].
pub(super) type AgentWriter = WriteHalf<TlsStream<TcpStream>>;
/// A connection to an agent for one request at a time.
pub(super) type AgentConnection = Connection<AgentReader, AgentWriter>;

/// This balancer's TLS settings towards agents. Cheap to clone.
#[derive(Clone)]
pub struct AgentTls {
    mux: TlsConnector,
    http1: TlsConnector,
}

impl std::fmt::Debug for AgentTls {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("AgentTls")
    }
}

impl AgentTls {
    /// Settings that show the balancer's certificate, as it is at each handshake.
    pub fn new(credentials: &Credentials) -> Self {
        let connector = |alpn| TlsConnector::from(client_config(credentials, Role::Agent, alpn));
        Self { mux: connector(MUX_ALPN), http1: connector(HTTP1_ALPN) }
    }
}

/// Why an agent did not answer a question.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No connection.
    #[error("cannot reach the agent")]
    Unreachable(#[source] io::Error),
    /// It took too long.
    #[error("the agent did not answer in time")]
    TimedOut,
    /// The exchange broke.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// The answer is larger than allowed.
    #[error("the agent's answer is larger than {bytes_max} bytes")]
    TooLarge {
        /// What is allowed.
        bytes_max: usize,
    },
    /// It says no.
    #[error("the agent answered with status {0}")]
    Status(u16),
    /// Its answer is not what was asked for.
    #[error("the agent's answer cannot be read")]
    Answer(#[from] serde_json::Error),
}

/// Speaks with one agent about everything but calls. Clones have connections of their own.
#[derive(Debug)]
pub struct Control {
    node: NodeId,
    address: Arc<str>,
    tls: AgentTls,
    connect_timeout: Duration,
    connection: Option<AgentConnection>,
}

impl Clone for Control {
    fn clone(&self) -> Self {
        Self::new(self.node.clone(), Arc::clone(&self.address), self.tls.clone(), self.connect_timeout)
    }
}

impl Control {
    /// For the agent of `node` at `address` (`host:port`).
    pub fn new(node: NodeId, address: Arc<str>, tls: AgentTls, connect_timeout: Duration) -> Self {
        Self { node, address, tls, connect_timeout, connection: None }
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// A new connection for one request at a time.
    pub(super) async fn connect(&self) -> io::Result<AgentConnection> {
        let (reader, writer) = tokio::io::split(self.stream(&self.tls.http1).await?);
        Ok(Connection::new(reader, writer))
    }

    /// A new connection for requests side by side.
    pub(super) async fn connect_mux(&self) -> io::Result<TlsStream<TcpStream>> {
        self.stream(&self.tls.mux).await
    }

    async fn stream(&self, tls: &TlsConnector) -> io::Result<TlsStream<TcpStream>> {
        let connected = tokio::time::timeout(self.connect_timeout, self.shake_hands(tls)).await;
        connected.map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn shake_hands(&self, tls: &TlsConnector) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(&*self.address).await?;
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
        socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
        let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
        let stream = tls.connect(name, stream).await?;
        let peer = peer_of(stream.get_ref().1.peer_certificates()).map_err(io::Error::other)?;
        // The address may be another agent's by now: its node would run the call under a wrong name.
        if peer.name() != self.node.as_str() {
            return Err(io::Error::other(format!("{} answers at the address of {}", peer, self.node)));
        }
        Ok(stream)
    }

    /// Asks, and waits at most `timeout` for the whole answer of at most `bytes_max` bytes. Returns its status, 200
    /// to 299, and body.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn ask(
        &mut self,
        method: &str,
        target: &str,
        body: Bytes,
        timeout: Duration,
        bytes_max: usize,
    ) -> Result<(u16, Bytes), ControlError> {
        let asked = self.exchange(method, target, body, bytes_max);
        let (status, body) =
            tokio::time::timeout(timeout, asked).await.map_err(|_elapsed| ControlError::TimedOut)??;
        if (200..300).contains(&status) { Ok((status, body)) } else { Err(ControlError::Status(status)) }
    }

    async fn exchange(
        &mut self,
        method: &str,
        target: &str,
        body: Bytes,
        bytes_max: usize,
    ) -> Result<(u16, Bytes), ControlError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await.map_err(ControlError::Unreachable)?,
        };
        if !poll_fn(|context| std::task::Poll::Ready(connection.is_reusable(context))).await {
            connection = self.connect().await.map_err(ControlError::Unreachable)?;
        }
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        let (head, mut exchange) = Exchange::start(
            connection,
            head.into_bytes(),
            Body::from(body.clone()),
            WriteFraming::Fixed(body.len() as u64),
            SendBody::AtOnce,
            &HeadLimits::default(),
        )
        .await?;
        let mut whole = Vec::new();
        while let Some(chunk) = poll_fn(|context| exchange.poll_chunk(context)).await {
            let chunk = chunk?;
            if whole.len() + chunk.len() > bytes_max {
                return Err(ControlError::TooLarge { bytes_max });
            }
            whole.extend_from_slice(&chunk);
        }
        self.connection = exchange.finish().1;
        Ok((head.status, whole.into()))
    }
}
