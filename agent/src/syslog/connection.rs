//! A connection to a sink: streams that carry frames as they are, and sockets that carry one message a datagram.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::time::Duration;

use kiln_shared::syslog::{Endpoint, Target};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream, UdpSocket, UnixDatagram, UnixStream, lookup_host};
use tokio::time::{sleep, timeout};
use tokio_rustls::rustls::pki_types::ServerName;

use super::message::split_frame;
use super::queue::Piece;
use super::tls::Authorities;

/// Longest time for a connection and its handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Our kernel holds about twice as much for a peer that does not take it, in bytes.
const SEND_BUFFER_BYTES: u32 = 512 << 10;
/// A peer whose kernel does not answer for this long is gone (`TCP_USER_TIMEOUT`).
const DEAD_AFTER: Duration = Duration::from_mins(1);
/// A silent connection is tried after this long.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How long the word that nobody listens takes to come back from the machine that said it.
const REFUSAL_WAIT: Duration = Duration::from_millis(50);
/// Nothing slows down who sends datagrams but himself, and a receiver's socket holds some 200 KiB by default, in which a
/// message takes more than its bytes: after so many bytes there is a pause.
const BURST_BYTES: usize = 32 << 10;
/// That pause. Both together allow about 50,000 messages a second.
const BURST_PAUSE: Duration = Duration::from_millis(1);
/// Longest message in a datagram over a network, in bytes (RFC 5426, 3.2: what receivers should take).
pub(super) const DATAGRAM_BYTES_MAX: usize = 2048;

/// The end that reads what the sink says.
type Reader = Box<dyn AsyncRead + Send + Unpin>;
/// The end that writes.
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// An open connection.
pub(super) struct Connection {
    pub(super) reading: Reading,
    pub(super) writing: Writing,
    pub(super) kernel: Kernel,
}

/// Opens a connection.
///
/// # Errors
/// It cannot be reached in time, or is not whom its certificate must name.
pub(super) async fn connect(target: &Target, authorities: &Authorities) -> io::Result<Connection> {
    match timeout(CONNECT_TIMEOUT, open(target, authorities)).await {
        Ok(opened) => opened,
        Err(_elapsed) => Err(io::Error::new(io::ErrorKind::TimedOut, "does not answer")),
    }
}

async fn open(target: &Target, authorities: &Authorities) -> io::Result<Connection> {
    match target {
        Target::Tcp(endpoint) => {
            let stream = dial(endpoint).await?;
            let kernel = Kernel::of(&stream)?;
            let (reader, writer) = stream.into_split();
            Ok(Connection::stream(Box::new(reader), Box::new(writer), kernel))
        }
        Target::Tls(endpoint) => {
            let name = ServerName::try_from(endpoint.host.clone()).map_err(io::Error::other)?;
            let connector = authorities.connector().await?;
            let stream = dial(endpoint).await?;
            let kernel = Kernel::of(&stream)?;
            let (reader, writer) = tokio::io::split(connector.connect(name, stream).await?);
            Ok(Connection::stream(Box::new(reader), Box::new(writer), kernel))
        }
        Target::Unix(path) => {
            let stream = UnixStream::connect(path).await?;
            let kernel = Kernel::of(&stream)?;
            let (reader, writer) = stream.into_split();
            Ok(Connection::stream(Box::new(reader), Box::new(writer), kernel))
        }
        Target::Udp(endpoint) => {
            let address = first_address(endpoint).await?;
            let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).await?;
            socket.connect(address).await?;
            Ok(Connection::datagrams(Writing::Udp { socket, proved: false }))
        }
        Target::Unixgram(path) => {
            let socket = UnixDatagram::unbound()?;
            socket.connect(path)?;
            Ok(Connection::datagrams(Writing::Unixgram(socket)))
        }
    }
}

async fn first_address(endpoint: &Endpoint) -> io::Result<SocketAddr> {
    let mut addresses = lookup_host((&*endpoint.host, endpoint.port)).await?;
    addresses.next().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
}

/// Connects to the first of the host's addresses that answers.
async fn dial(endpoint: &Endpoint) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in lookup_host((&*endpoint.host, endpoint.port)).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
        match socket.connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                let options = SockRef::from(&stream);
                options.set_tcp_user_timeout(Some(DEAD_AFTER))?;
                options.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl Connection {
    fn stream(reader: Reader, writer: Writer, kernel: Kernel) -> Self {
        Self { reading: Reading(Some(reader)), writing: Writing::Stream(writer), kernel }
    }

    fn datagrams(writing: Writing) -> Self {
        Self { reading: Reading(None), writing, kernel: Kernel(None) }
    }
}

/// What comes from the sink: nothing that means anything, until its end. None for datagrams.
pub(super) struct Reading(Option<Reader>);

impl Reading {
    /// Waits until the sink closes the connection or it breaks, and says how. Passes over whatever the sink says.
    /// Cancel-safe. For datagrams it waits for ever.
    pub(super) async fn closed(&mut self) -> io::Result<()> {
        let Some(reader) = &mut self.0 else { return std::future::pending().await };
        let mut ignored = [0; 1024];
        loop {
            if reader.read(&mut ignored).await? == 0 {
                return Ok(());
            }
        }
    }
}

/// The way to the sink.
pub(super) enum Writing {
    Stream(Writer),
    Udp {
        socket: UdpSocket,
        /// A first datagram was not refused.
        proved: bool,
    },
    Unixgram(UnixDatagram),
}

impl Writing {
    /// True if a connection has an end, and bytes on their way that may be lost with it.
    pub(super) fn is_stream(&self) -> bool {
        matches!(self, Self::Stream(_))
    }

    /// Writes a piece. Not cancel-safe: of a piece that was dropped half-way the connection must be, too.
    ///
    /// # Errors
    /// The connection is of no more use. Some of the piece may have been written.
    pub(super) async fn write(&mut self, piece: &Piece) -> io::Result<()> {
        if let Self::Stream(writer) = self {
            writer.write_all(&piece.bytes).await?;
            return writer.flush().await;
        }
        let (mut rest, mut burst_bytes) = (&piece.bytes[..], 0);
        while let Some((message, next)) = split_frame(rest) {
            self.datagram(message).await?;
            rest = next;
            burst_bytes += message.len();
            if burst_bytes >= BURST_BYTES && matches!(self, Self::Udp { .. }) {
                sleep(BURST_PAUSE).await;
                burst_bytes = 0;
            }
        }
        Ok(())
    }

    async fn datagram(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Stream(_) => unreachable!("streams carry frames"),
            Self::Unixgram(socket) => drop(socket.send(message).await?),
            Self::Udp { socket, proved } => {
                socket.send(message).await?;
                // That nobody listens is told after the fact (RFC 1122, 4.1.3.3): the first one waits for it.
                if !std::mem::replace(proved, true) {
                    sleep(REFUSAL_WAIT).await;
                    if let Some(error) = socket.take_error()? {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    /// Tells the sink that nothing more comes.
    ///
    /// # Errors
    /// The connection is broken.
    pub(super) async fn end(&mut self) -> io::Result<()> {
        match self {
            Self::Stream(writer) => writer.shutdown().await,
            Self::Udp { .. } | Self::Unixgram(_) => Ok(()),
        }
    }
}

nix::ioctl_read_bad!(
    /// Bytes that were written and not taken: by the peer's kernel over TCP (tcp(7), `SIOCOUTQ`), by the peer itself over
    /// unix(7).
    untaken,
    nix::libc::TIOCOUTQ,
    nix::libc::c_int
);

/// What the kernel knows of a stream; none for datagrams.
#[derive(Debug)]
pub(super) struct Kernel(Option<OwnedFd>);

impl Kernel {
    fn of(stream: &impl AsFd) -> io::Result<Self> {
        Ok(Self(Some(stream.as_fd().try_clone_to_owned()?)))
    }

    /// Bytes that the peer's kernel has not acknowledged. Over TLS in bytes as they are encrypted, which are more.
    pub(super) fn unacknowledged(&self) -> usize {
        let Some(socket) = &self.0 else { return 0 };
        let mut bytes = 0;
        #[expect(unsafe_code, reason = "no safe way asks a socket how much of it is unacknowledged")]
        // SAFETY: the descriptor is open, and the kernel writes an int where one is.
        let asked = unsafe { untaken(socket.as_raw_fd(), &raw mut bytes) };
        // What cannot be known counts as missing: the window is bounded without it.
        asked.map_or(usize::MAX, |_| usize::try_from(bytes).unwrap_or(0))
    }
}
