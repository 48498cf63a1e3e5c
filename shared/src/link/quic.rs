//! The link's transport: QUIC endpoints with the settings that suit it.
//!
//! Few small messages and now and then a large one, on connections that live long and must be missed soon.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use quinn::{AckFrequencyConfig, ClientConfig, Endpoint, IdleTimeout, ServerConfig, TransportConfig, VarInt};

/// A connection on which nothing came for this long is gone. Agents say something every [`BEAT`](super::BEAT).
const SILENCE_MAX: Duration = Duration::from_secs(2);
/// Assumed round trip before one was measured: a lost first packet is sent again after about three times this.
const INITIAL_ROUND_TRIP: Duration = Duration::from_millis(50);
/// Bytes of one stream that may arrive before they are read.
const STREAM_BYTES_MAX: u32 = 1 << 20;
/// Bytes of one connection that may arrive before they are read.
const CONNECTION_BYTES_MAX: u32 = 4 << 20;
/// Bytes of one connection that may be on their way or wait to be acknowledged.
const SEND_BYTES_MAX: u64 = 4 << 20;
/// Streams that an agent may have open: state, records and questions.
const STREAMS_MAX: u32 = 16;
/// Longest time that a balancer may put off an acknowledgement. quinn asks for no more than the round trip, or 25 ms if
/// that is less: a beat that was lost is sent again soon after.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_millis(100);
/// Packets that a balancer may leave unacknowledged meanwhile. None: beats come further apart than acknowledgements can
/// be put off, so each is acknowledged alone, and doing it at once spares a timer and waking up for it.
const UNACKNOWLEDGED_MAX: u32 = 0;

/// The close code of a link that ends as it should.
pub const CODE_DONE: VarInt = VarInt::from_u32(0);
/// The close code of a link whose agent was refused; the reason was said before, or is the close's text. Also of a stream
/// of records whose last batch the balancer would refuse again.
pub const CODE_REFUSED: VarInt = VarInt::from_u32(1);
/// The close code of a link whose place a newer one of the same agent has taken.
pub const CODE_REPLACED: VarInt = VarInt::from_u32(2);

/// TLS settings that QUIC cannot work with.
#[derive(Debug, thiserror::Error)]
#[error("the link's TLS settings have no cipher suite for QUIC")]
pub struct NoCipherSuite(#[from] NoInitialCipherSuite);

/// Settings of balancers, which are dialled.
///
/// # Errors
/// `tls` allows no TLS 1.3.
pub fn server_config(tls: Arc<rustls::ServerConfig>) -> Result<ServerConfig, NoCipherSuite> {
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    let mut transport = transport();
    transport.max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Settings of agents, which dial.
///
/// # Errors
/// `tls` allows no TLS 1.3.
pub fn client_config(tls: Arc<rustls::ClientConfig>) -> Result<ClientConfig, NoCipherSuite> {
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    let mut transport = transport();
    let mut acknowledgements = AckFrequencyConfig::default();
    acknowledgements
        .max_ack_delay(Some(ACKNOWLEDGE_WITHIN))
        .ack_eliciting_threshold(VarInt::from_u32(UNACKNOWLEDGED_MAX));
    transport.max_concurrent_bidi_streams(VarInt::from_u32(0)).ack_frequency_config(Some(acknowledgements));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Listens for agents.
///
/// # Errors
/// The address cannot be bound.
pub fn listen(address: SocketAddr, config: ServerConfig) -> io::Result<Endpoint> {
    Endpoint::server(config, address)
}

/// A socket to dial from.
///
/// # Errors
/// No socket can be had.
pub fn dialer(address: SocketAddr) -> io::Result<Endpoint> {
    Endpoint::client(address)
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    let silence = IdleTimeout::try_from(SILENCE_MAX).expect("two seconds are few");
    transport
        .max_idle_timeout(Some(silence))
        .initial_rtt(INITIAL_ROUND_TRIP)
        .stream_receive_window(VarInt::from_u32(STREAM_BYTES_MAX))
        .receive_window(VarInt::from_u32(CONNECTION_BYTES_MAX))
        .send_window(SEND_BYTES_MAX)
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    transport
}
