//! The calling side: one thread with its connections to every agent.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use kiln_shared::http1::buffer::WriteFraming;
use kiln_shared::http1::client::{Connection, Exchange, ExchangeError, SendBody};
use kiln_shared::http1::head::ResponseHead;
use kiln_shared::mux;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;

use super::call::{Call, head_limits};
use super::server::{READ_AHEAD_BYTES, Ready};
use super::{Way, quic, tls};

/// Longer than any run.
const IDLE_TIMEOUT: Duration = Duration::from_mins(10);

type Reader = Box<dyn AsyncRead + Unpin>;
type Writer = Box<dyn AsyncWrite + Unpin>;

/// Calls agents.
pub struct Client {
    way: Way,
    addresses: Vec<SocketAddr>,
    connector: TlsConnector,
    /// Idle connections to each agent, the last used last.
    pools: Vec<RefCell<Vec<Connection<Reader, Writer>>>>,
    /// Multiplexed connections to each agent.
    muxes: Vec<RefCell<Vec<mux::Client>>>,
    quic: Option<(quinn::Endpoint, Vec<quinn::Connection>)>,
    drivers: TaskTracker,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Client").field("way", &self.way).finish_non_exhaustive()
    }
}

impl Client {
    /// A client of these agents.
    ///
    /// # Errors
    /// If they cannot be reached.
    pub async fn new(way: Way, ready: Ready) -> Result<Self> {
        let Ready { addresses, certificate } = ready;
        let quic = match way {
            Way::Quic => Some(quic::connect(&addresses, &certificate).await?),
            _ => None,
        };
        Ok(Self {
            way,
            connector: TlsConnector::from(tls::client(&certificate)?),
            pools: addresses.iter().map(|_| RefCell::default()).collect(),
            muxes: addresses.iter().map(|_| RefCell::default()).collect(),
            addresses,
            quic,
            drivers: TaskTracker::new(),
        })
    }

    /// Calls an agent and takes the whole answer.
    ///
    /// # Errors
    /// If there is no good answer.
    pub async fn call(&self, agent: usize, call: &Call) -> Result<()> {
        let (head, bytes) = match self.way {
            Way::Pooled | Way::PooledTls => self.pooled(agent, call).await?,
            Way::Mux | Way::MuxTls => self.multiplexed(agent, call).await?,
            Way::Quic => {
                let (_, connections) = self.quic.as_ref().context("no QUIC connection")?;
                quic::call(&connections[agent], call).await?
            }
        };
        call.check(head, bytes)
    }

    async fn pooled(&self, agent: usize, call: &Call) -> Result<(ResponseHead, usize)> {
        let idle = self.pools[agent].borrow_mut().pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => self.connect(agent).await.context("connecting")?,
        };
        let reusable = poll_fn(|context| Poll::Ready(connection.is_reusable(context))).await;
        anyhow::ensure!(reusable, "an agent closed a connection");
        let (head, body) = (call.head()?, call.body());
        let framing = WriteFraming::of(&body);
        let limits = head_limits();
        let (head, mut exchange) =
            Exchange::start(connection, head, body, framing, SendBody::AtOnce, &limits).await?;
        let bytes = match exchange.take_arrived_body() {
            Some(body) => body.len(),
            None => count(|context| exchange.poll_chunk(context)).await?,
        };
        let connection = exchange.finish().1.context("a connection that cannot be used again")?;
        self.pools[agent].borrow_mut().push(connection);
        Ok((head, bytes))
    }

    async fn connect(&self, agent: usize) -> io::Result<Connection<Reader, Writer>> {
        let stream = tcp(self.addresses[agent]).await?;
        Ok(if self.way == Way::PooledTls {
            let stream = BufReader::with_capacity(READ_AHEAD_BYTES, stream);
            let (reader, writer) = tokio::io::split(self.connector.connect(tls::name(), stream).await?);
            Connection::new(Box::new(reader), Box::new(writer))
        } else {
            let (reader, writer) = stream.into_split();
            Connection::new(Box::new(reader), Box::new(writer))
        })
    }

    async fn multiplexed(&self, agent: usize, call: &Call) -> Result<(ResponseHead, usize)> {
        let mut exchange = self.start(agent, call)?;
        let head = exchange.answer(&head_limits()).await?;
        let bytes = match exchange.take_arrived_body() {
            Some(body) => body.len(),
            None => count(|context| exchange.poll_chunk(context)).await?,
        };
        Ok((head, bytes))
    }

    /// Begins on the first connection that has room, or on a new one.
    fn start(&self, agent: usize, call: &Call) -> Result<mux::Exchange> {
        let mut clients = self.muxes[agent].borrow_mut();
        let free = clients.iter().position(mux::Client::has_room).unwrap_or_else(|| {
            clients.push(self.new_mux(agent));
            clients.len() - 1
        });
        clients[free].start(call.head()?, call.body()).map_err(|_| anyhow!("a connection without room"))
    }

    fn new_mux(&self, agent: usize) -> mux::Client {
        let (client, driver) = mux::Client::new();
        let address = self.addresses[agent];
        if self.way == Way::MuxTls {
            let connector = self.connector.clone();
            let connect = async move {
                let stream = BufReader::with_capacity(READ_AHEAD_BYTES, tcp(address).await?);
                connector.connect(tls::name(), stream).await
            };
            self.drivers.spawn(driver.run(connect, IDLE_TIMEOUT));
        } else {
            self.drivers.spawn(driver.run(tcp(address), IDLE_TIMEOUT));
        }
        client
    }

    /// Multiplexed connections that were made.
    pub fn connections(&self) -> usize {
        let multiplexed: usize = self.muxes.iter().map(|clients| clients.borrow().len()).sum();
        let pooled: usize = self.pools.iter().map(|pool| pool.borrow().len()).sum();
        multiplexed + pooled
    }
}

async fn tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn count(
    mut poll: impl FnMut(&mut std::task::Context<'_>) -> Poll<Option<Result<Bytes, ExchangeError>>>,
) -> Result<usize> {
    let mut bytes = 0;
    while let Some(piece) = poll_fn(&mut poll).await {
        bytes += piece?.len();
    }
    Ok(bytes)
}
