//! Worker threads: a runtime each, a listening socket each, so that a connection never changes its core.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use kiln_shared::http1::server::{Ended, serve};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Edge, http2};

/// Connections that may wait to be accepted, per worker.
const BACKLOG: i32 = 4096;
/// Pause after an accept that failed for want of a resource.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why the edge cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else listens there.
    #[error("{address} is in use; stop the other process or choose another port with --port")]
    InUse {
        /// The address.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("cannot listen on {address}")]
    Other {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Bound sockets, one per worker.
#[derive(Debug)]
pub struct Listeners {
    sockets: Vec<std::net::TcpListener>,
    address: SocketAddr,
}

/// How the edge ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every connection ended by itself.
    Clean,
    /// So many were cut.
    Forced {
        /// Connections cut.
        connections: usize,
    },
}

/// Binds one socket per worker to the same address. Port 0 takes a free one.
///
/// # Errors
/// If somebody else has the port, whether or not he would share it, or the address is none of this machine.
pub fn bind(address: SocketAddr, workers: usize) -> Result<Listeners, BindError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse { address },
        _ => BindError::Other { address, source },
    };
    // Without the wish to share first: two edges that share a port by accident would each get half the calls.
    let probe = socket(address, false).map_err(failed)?;
    let address = probe.local_addr().map_err(failed)?;
    drop(probe);
    let sockets =
        (0..workers.max(1)).map(|_| socket(address, true)).collect::<Result<_, _>>().map_err(failed)?;
    Ok(Listeners { sockets, address })
}

fn socket(address: SocketAddr, shared: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    if shared || address.port() != 0 {
        socket.listen(BACKLOG)?;
    }
    Ok(socket.into())
}

impl Listeners {
    /// Where clients reach the edge.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves on one thread per socket until `stop`, then gives connections at most `grace` to end. Blocks
    /// nothing: the returned handles are joined by [`Workers::join`].
    ///
    /// # Errors
    /// If a thread or its runtime cannot be made.
    pub fn serve(self, edge: &Arc<Edge>, stop: &CancellationToken, grace: Duration) -> io::Result<Workers> {
        let open = Arc::new(AtomicUsize::new(0));
        let mut threads = Vec::new();
        for (number, socket) in self.sockets.into_iter().enumerate() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (edge, stop, open) = (Arc::clone(edge), stop.clone(), Arc::clone(&open));
            let thread = std::thread::Builder::new().name(format!("edge-{number}")).spawn(move || {
                Edge::begin_worker();
                runtime.block_on(worker(socket, edge, open, stop, grace))
            })?;
            threads.push(thread);
        }
        Ok(Workers { threads })
    }
}

/// The edge's threads.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<JoinHandle<Drained>>,
}

impl Workers {
    /// Waits for all of them. Blocks the thread.
    pub fn join(self) -> Drained {
        let mut cut = 0;
        for thread in self.threads {
            match thread.join() {
                Ok(Drained::Clean) => {}
                Ok(Drained::Forced { connections }) => cut += connections,
                Err(_) => tracing::error!("an edge worker panicked"),
            }
        }
        if cut == 0 { Drained::Clean } else { Drained::Forced { connections: cut } }
    }
}

async fn worker(
    socket: std::net::TcpListener,
    edge: Arc<Edge>,
    open: Arc<AtomicUsize>,
    stop: CancellationToken,
    grace: Duration,
) -> Drained {
    let listener = match TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "an edge worker cannot listen");
            return Drained::Clean;
        }
    };
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased; // a full accept queue must not delay shutdown
            () = stop.cancelled() => break,
            // Cancel-safe: a connection that was not accepted stays in the queue.
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _peer)) => {
                if open.fetch_add(1, Ordering::AcqRel) >= edge.config.connections_max {
                    open.fetch_sub(1, Ordering::AcqRel);
                    metrics::counter!("kiln_connections_refused_total").increment(1);
                    continue;
                }
                let counted = Counted(Arc::clone(&open));
                let (edge, stop) = (Arc::clone(&edge), stop.clone());
                connections.spawn(async move {
                    connection(edge, stream, stop).await;
                    drop(counted);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    match tokio::time::timeout(grace, connections.wait()).await {
        Ok(()) => Drained::Clean,
        Err(_elapsed) => Drained::Forced { connections: connections.len() },
    }
}

struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

async fn connection(edge: Arc<Edge>, stream: TcpStream, stop: CancellationToken) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let (reader, writer) = stream.into_split();
    let ended = serve(reader, writer, &*edge, &edge.config.connection, &stop).await;
    if let Ended::Http2(reader, writer, read) = ended
        && let Ok(stream) = reader.reunite(writer)
    {
        http2::serve(edge, stream, read, stop).await;
    }
}
