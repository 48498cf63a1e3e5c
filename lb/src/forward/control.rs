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
use kiln_shared::link::TOKEN_HEADER;
use kiln_shared::token::Token;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// A silent connection is probed after this time, and as often.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// A peer whose host does not acknowledge for this long is gone.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(15);

/// A connection to an agent.
pub(super) type AgentConnection = Connection<OwnedReadHalf, OwnedWriteHalf>;

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
    address: Arc<str>,
    token: Option<Token>,
    connect_timeout: Duration,
    connection: Option<AgentConnection>,
}

impl Clone for Control {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.address), self.token.clone(), self.connect_timeout)
    }
}

impl Control {
    /// For the agent at `address` (`host:port`).
    pub fn new(address: Arc<str>, token: Option<Token>, connect_timeout: Duration) -> Self {
        Self { address, token, connect_timeout, connection: None }
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }

    /// A new connection for one request at a time.
    pub(super) async fn connect(&self) -> io::Result<AgentConnection> {
        let (reader, writer) = self.stream().await?.into_split();
        Ok(Connection::new(reader, writer))
    }

    /// A new connection.
    pub(super) async fn stream(&self) -> io::Result<TcpStream> {
        let stream = tokio::time::timeout(self.connect_timeout, TcpStream::connect(&*self.address))
            .await
            .map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))??;
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
        socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
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
        let token = self.token.as_ref().map(|token| format!("{TOKEN_HEADER}: {}\r\n", token.expose()));
        let head = format!(
            "{method} {target} HTTP/1.1\r\n{}Host: {}\r\nContent-Length: {}\r\n\r\n",
            token.unwrap_or_default(),
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
