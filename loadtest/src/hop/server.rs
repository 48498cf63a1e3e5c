//! The answering process: one thread, a socket for each agent that it stands for.

use std::io::{self, BufRead as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use kiln_shared::http1::server::{ConnectionLimits, serve};
use kiln_shared::mux;
use serde::{Deserialize, Serialize};
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::call::Echo;
use super::{Way, quic, tls};

/// What lies between a socket and TLS, which by itself reads 4 KiB at a time.
pub(super) const READ_AHEAD_BYTES: usize = 64 << 10;

/// What the process says when it is ready, as one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ready {
    /// Where its agents are.
    pub addresses: Vec<SocketAddr>,
    /// Their certificate in DER.
    pub certificate: Vec<u8>,
}

/// Serves until its standard input ends.
///
/// # Errors
/// If sockets or certificates cannot be had.
pub fn run(way: Way, agents: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (config, certificate) = tls::server()?;
        let tasks = TaskTracker::new();
        let mut addresses = Vec::with_capacity(agents);
        for _ in 0..agents {
            addresses.push(match way {
                Way::Quic => quic::serve(config.clone(), &tasks)?,
                _ => listen(way, TlsAcceptor::from(Arc::new(config.clone())), &tasks).await?,
            });
        }
        let ready = serde_json::to_string(&Ready { addresses, certificate })?;
        writeln!(io::stdout(), "{ready}").context("telling who started this")?;
        let ended = tokio::task::spawn_blocking(|| io::stdin().lock().read_line(&mut String::new()));
        ended.await?.context("waiting for the end")?;
        Ok(())
    })
}

async fn listen(way: Way, acceptor: TlsAcceptor, tasks: &TaskTracker) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let connections = tasks.clone();
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if stream.set_nodelay(true).is_ok() {
                connections.spawn(connection(way, stream, acceptor.clone()));
            }
        }
    });
    Ok(address)
}

async fn connection(way: Way, stream: TcpStream, acceptor: TlsAcceptor) {
    let limits = ConnectionLimits::default();
    let stop = CancellationToken::new();
    let accept = |stream| acceptor.accept(BufReader::with_capacity(READ_AHEAD_BYTES, stream));
    match way {
        Way::Pooled => {
            let (reader, writer) = stream.into_split();
            serve(reader, writer, &Echo, &limits, &stop).await;
        }
        Way::PooledTls => {
            // A client that fails the handshake says so itself.
            let Ok(stream) = accept(stream).await else { return };
            let (reader, writer) = tokio::io::split(stream);
            serve(reader, writer, &Echo, &limits, &stop).await;
        }
        Way::Mux => {
            mux::serve(stream, Arc::new(Echo), &limits, &stop).await;
        }
        Way::MuxTls => {
            let Ok(stream) = accept(stream).await else { return };
            mux::serve(stream, Arc::new(Echo), &limits, &stop).await;
        }
        Way::Quic => unreachable!("has sockets of its own"),
    }
}
