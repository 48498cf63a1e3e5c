//! Worker threads: a runtime each, a listening socket each, so that a connection never changes its core.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections that may wait to be accepted, per worker.
const BACKLOG: i32 = 4096;
/// Pause after an accept that failed for want of a resource.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else listens there.
    #[error("{address} is in use; stop the other process or choose another port")]
    InUse {
        /// The address.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("cannot listen on {address}; give an address of this machine and a port that you may use")]
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

/// How serving ended.
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

/// One worker a core.
pub fn workers_default() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
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
    // Without the wish to share first: two programs that share a port by accident would each get half the calls.
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
    /// The address, with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves on one thread per socket until `stop`, then gives connections at most `grace` to end. Blocks
    /// nothing: the returned handles are joined by [`Workers::join`]. `worker` is called once on each thread and
    /// makes what serves that thread's connections.
    ///
    /// # Errors
    /// If a thread or its runtime cannot be made.
    pub fn serve<W, S, F>(self, bounds: &Bounds, stop: &CancellationToken, worker: &W) -> io::Result<Workers>
    where
        W: Fn() -> S + Clone + Send + 'static,
        S: Fn(TcpStream) -> F + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let open = Arc::new(AtomicUsize::new(0));
        let mut threads = Vec::new();
        for (number, socket) in self.sockets.into_iter().enumerate() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (worker, bounds, stop, open) = (worker.clone(), *bounds, stop.clone(), Arc::clone(&open));
            let name = format!("{}-{number}", bounds.name);
            let thread = std::thread::Builder::new()
                .name(name)
                .spawn(move || runtime.block_on(accept(socket, worker(), open, stop, bounds)))?;
            threads.push(thread);
        }
        Ok(Workers { threads })
    }
}

/// Bounds of what the workers of one address serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Names the threads.
    pub name: &'static str,
    /// Most open connections over all workers; further ones are closed when they come.
    pub connections_max: usize,
    /// How long connections may take to end at shutdown.
    pub grace: Duration,
}

/// The threads that serve an address.
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
                Err(_) => tracing::error!("a worker panicked"),
            }
        }
        if cut == 0 { Drained::Clean } else { Drained::Forced { connections: cut } }
    }
}

async fn accept<F>(
    socket: std::net::TcpListener,
    serve: impl Fn(TcpStream) -> F,
    open: Arc<AtomicUsize>,
    stop: CancellationToken,
    bounds: Bounds,
) -> Drained
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = match TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "a worker cannot listen");
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
                if open.fetch_add(1, Ordering::AcqRel) >= bounds.connections_max {
                    open.fetch_sub(1, Ordering::AcqRel);
                    metrics::counter!("kiln_connections_refused_total").increment(1);
                    continue;
                }
                let counted = Counted(Arc::clone(&open));
                if stream.set_nodelay(true).is_err() {
                    // The peer is gone already.
                    continue;
                }
                let served = serve(stream);
                connections.spawn(async move {
                    served.await;
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
    match tokio::time::timeout(bounds.grace, connections.wait()).await {
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
