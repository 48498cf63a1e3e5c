//! quinn on turmoil's simulated UDP, with losses and doubles of single packets, and who heard whom when.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Endpoint, EndpointConfig, ServerConfig, TokioRuntime, UdpPoller};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use turmoil::net::UdpSocket;

/// What happens to packets, each by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Weather {
    /// The share that is lost, 0 to 1.
    pub(crate) loss: f64,
    /// The share that arrives twice, 0 to 1.
    pub(crate) doubles: f64,
}

#[derive(Debug)]
struct State {
    weather: Weather,
    draws: StdRng,
    now: Duration,
    /// When the second address last got a packet of the first.
    heard: HashMap<(IpAddr, IpAddr), Duration>,
}

/// The network that all sockets share. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Network(Arc<Mutex<State>>);

impl Network {
    pub(crate) fn new(seed: u64) -> Self {
        let draws = StdRng::seed_from_u64(seed);
        let (weather, now, heard) = (Weather::default(), Duration::ZERO, HashMap::new());
        Self(Arc::new(Mutex::new(State { weather, draws, now, heard })))
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        self.state().weather = weather;
    }

    /// When `to` last got a packet of `from`, in the simulation's time.
    pub(crate) fn heard_at(&self, from: IpAddr, to: IpAddr) -> Option<Duration> {
        self.state().heard.get(&(from, to)).copied()
    }

    /// The time of the simulation, which no host's clock changes.
    pub(crate) fn now(&self) -> Duration {
        self.state().now
    }

    pub(crate) fn set_now(&self, now: Duration) {
        self.state().now = now;
    }

    /// A QUIC endpoint of the host of that name, which calls this.
    pub(crate) async fn endpoint(
        &self,
        host: &str,
        port: u16,
        server: Option<ServerConfig>,
    ) -> io::Result<Endpoint> {
        let socket = UdpSocket::bind(("0.0.0.0", port)).await?;
        let address = SocketAddr::new(turmoil::lookup(host), socket.local_addr()?.port());
        let socket = SimSocket {
            socket: Arc::new(socket),
            address,
            network: self.clone(),
            readable: Mutex::default(),
        };
        let mut config = EndpointConfig::default();
        config.rng_seed(Some(self.state().draws.random()));
        Endpoint::new_with_abstract_socket(config, server, Arc::new(socket), Arc::new(TokioRuntime))
    }

    /// How often a packet that is sent now arrives.
    fn copies(&self) -> u32 {
        let mut state = self.state();
        let Weather { loss, doubles } = state.weather;
        if state.draws.random_bool(loss) { 0 } else { 1 + u32::from(state.draws.random_bool(doubles)) }
    }

    fn delivered(&self, from: IpAddr, to: IpAddr) {
        let mut state = self.state();
        let now = state.now;
        state.heard.insert((from, to), now);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics with it")
    }
}

type Readable = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

struct SimSocket {
    socket: Arc<UdpSocket>,
    address: SocketAddr,
    network: Network,
    /// Waits for the next packet.
    readable: Mutex<Option<Readable>>,
}

impl fmt::Debug for SimSocket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SimSocket").field("address", &self.address).finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for SimSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        for _ in 0..self.network.copies() {
            self.socket.try_send_to(transmit.contents, transmit.destination)?;
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut readable = self.readable.lock().expect("no test panics with it");
        loop {
            let waiting = readable.get_or_insert_with(|| {
                let socket = Arc::clone(&self.socket);
                Box::pin(async move { socket.readable().await })
            });
            let Poll::Ready(ready) = waiting.as_mut().poll(context) else { return Poll::Pending };
            *readable = None;
            ready?;
            match self.socket.try_recv_from(&mut buffers[0]) {
                Ok((len, from)) => {
                    self.network.delivered(from.ip(), self.address.ip());
                    meta[0] = RecvMeta { addr: from, len, stride: len, ecn: None, dst_ip: None };
                    return Poll::Ready(Ok(1));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
