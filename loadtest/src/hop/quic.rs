//! The prototype over QUIC: a bidirectional stream a call, the head in front of the body.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use kiln_shared::body::Body;
use kiln_shared::http1::head::{BodyLength, ResponseHead, find_end, parse_request, parse_response};
use kiln_shared::http1::server::{Request, Service};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Connection, Endpoint, MtuDiscoveryConfig, RecvStream, SendStream, ServerConfig,
    TransportConfig, VarInt,
};
use tokio_util::task::TaskTracker;

use super::call::{Call, Echo, head_limits};
use super::tls;

/// Largest datagram that is tried. With the loopback's 64 KiB the library was unstable.
const MTU_MAX: u16 = 1452;
/// Streams at a time, as many as the other ways need.
const STREAMS_MAX: u32 = 1024;
/// Most bytes read from a stream at once.
const READ_BYTES: usize = 64 << 10;
/// Longest time without a sign of the peer.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

fn transport() -> Result<Arc<TransportConfig>> {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_MAX);
    let mut config = TransportConfig::default();
    config
        .mtu_discovery_config(Some(mtu))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_idle_timeout(Some(IDLE_TIMEOUT.try_into().context("an idle timeout")?));
    Ok(Arc::new(config))
}

/// Answers on a socket of its own; where.
///
/// # Errors
/// If no socket can be had.
pub fn serve(config: rustls::ServerConfig, tasks: &TaskTracker) -> Result<SocketAddr> {
    let crypto = QuicServerConfig::try_from(config).context("QUIC's TLS")?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport()?);
    let endpoint = Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into())?;
    let address = endpoint.local_addr()?;
    let of_connections = tasks.clone();
    tasks.spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let of_calls = of_connections.clone();
            of_connections.spawn(async move {
                let Ok(connection) = incoming.await else { return };
                while let Ok((sender, receiver)) = connection.accept_bi().await {
                    // One that breaks off is the client's to report.
                    of_calls.spawn(async move { drop(answer(sender, receiver).await) });
                }
            });
        }
    });
    Ok(address)
}

async fn answer(mut sender: SendStream, mut receiver: RecvStream) -> Result<()> {
    let (head, rest) = read_head(&mut receiver).await?;
    let head = parse_request(&head, &head_limits())?;
    let BodyLength::Fixed(length) = head.length else { bail!("a body of unknown length") };
    let whole = rest.len() as u64 == length;
    let body = if whole { Body::from(rest.clone()) } else { Body::Empty };
    let response = Echo.handle(Request { head, body }).await;
    let mut head = format!("HTTP/1.1 {} OK\r\n", response.status).into_bytes();
    head.extend_from_slice(response.headers.as_bytes());
    head.extend_from_slice(format!("Content-Length: {length}\r\n\r\n").as_bytes());
    if whole && rest.len() <= 4 << 10 {
        head.extend_from_slice(&rest);
        sender.write_chunk(head.into()).await?;
    } else {
        sender.write_chunk(head.into()).await?;
        if !rest.is_empty() {
            sender.write_chunk(rest).await?;
        }
        while let Some(chunk) = receiver.read_chunk(READ_BYTES, true).await? {
            sender.write_chunk(chunk.bytes).await?;
        }
    }
    sender.finish()?;
    Ok(())
}

async fn read_head(receiver: &mut RecvStream) -> Result<(Bytes, Bytes)> {
    let mut begun = BytesMut::new();
    loop {
        let chunk = receiver.read_chunk(READ_BYTES, true).await?.context("no head")?;
        if begun.is_empty()
            && let Some(end) = find_end(&chunk.bytes, 0, &head_limits())?
        {
            let mut head = chunk.bytes;
            let rest = head.split_off(end);
            return Ok((head, rest));
        }
        let seen = begun.len();
        begun.extend_from_slice(&chunk.bytes);
        if let Some(end) = find_end(&begun, seen, &head_limits())? {
            let head = begun.split_to(end).freeze();
            return Ok((head, begun.freeze()));
        }
    }
}

/// Connects to every agent.
///
/// # Errors
/// If one does not answer.
pub async fn connect(addresses: &[SocketAddr], certificate: &[u8]) -> Result<(Endpoint, Vec<Connection>)> {
    let crypto = tls::client(certificate)?;
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(crypto).context("QUIC's TLS")?));
    config.transport_config(transport()?);
    let mut endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
    endpoint.set_default_client_config(config);
    let mut connections = Vec::with_capacity(addresses.len());
    for address in addresses {
        connections.push(endpoint.connect(*address, tls::NAME)?.await.context("QUIC's handshake")?);
    }
    Ok((endpoint, connections))
}

/// Calls once.
///
/// # Errors
/// If there is no good answer.
pub async fn call(connection: &Connection, call: &Call) -> Result<(ResponseHead, usize)> {
    let (mut sender, mut receiver) = connection.open_bi().await?;
    let mut head = call.head()?;
    let body = call.body_bytes();
    let send = async {
        if body.len() <= 4 << 10 {
            head.extend_from_slice(&body);
            sender.write_chunk(head.into()).await?;
        } else {
            sender.write_all_chunks(&mut [Bytes::from(head), body]).await?;
        }
        sender.finish()?;
        anyhow::Ok(())
    };
    let receive = async {
        let (head, rest) = read_head(&mut receiver).await?;
        let head = parse_response(&head, &head_limits())?;
        let mut bytes = rest.len();
        while let Some(chunk) = receiver.read_chunk(READ_BYTES, true).await? {
            bytes += chunk.bytes.len();
        }
        Ok((head, bytes))
    };
    let ((), answer) = tokio::try_join!(send, receive)?;
    Ok(answer)
}
