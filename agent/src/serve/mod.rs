//! The agent's endpoint: what balancers elsewhere send it (`kiln_shared::link`).
//!
//! Calls and definitions come over TLS from balancers of the fleet, and from nobody else. On the same port `/health`,
//! `/ready` and `/metrics` are told in plain HTTP to whoever asks.

mod functions;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use kiln_shared::body::Body;
use kiln_shared::call::{CallError, CallHop, Refusal};
use kiln_shared::function::{Function, Revision};
use kiln_shared::http1::HeaderBlock;
use kiln_shared::http1::head::{HeadLimits, RequestHead};
use kiln_shared::http1::server::{ConnectionLimits, Request, Response, Service, plain, serve};
use kiln_shared::identity::{ClientAuth, Credentials, Role, peer_of, server_config};
use kiln_shared::link::call::{IncomingCall, answer, failure, refusal};
use kiln_shared::link::{CALL_PATH, FUNCTIONS_PATH, HEALTH_PATH, HTTP1_ALPN, MUX_ALPN, READY_PATH};
use kiln_shared::listen::{Bounds, Listeners, Workers};
use kiln_shared::mux::{self, Closed};
use kiln_shared::telemetry::MetricsHandle;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use self::functions::KnownFunctions;
use crate::link::Linked;

/// Longest definition of a function.
const DEFINITION_BYTES_MAX: u64 = 4 << 20;
/// Most open connections of balancers.
const CONNECTIONS_MAX: usize = 50_000;

/// Answers balancers. Shared by the worker threads.
pub struct Endpoint {
    hop: Arc<dyn CallHop>,
    tls: TlsAcceptor,
    functions: KnownFunctions,
    linked: Linked,
    limits: ConnectionLimits,
    metrics: MetricsHandle,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Endpoint").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Endpoint {
    /// An endpoint for what runs calls (an [`Agent`](crate::Agent)), which shows this agent's certificate.
    pub fn new(
        hop: Arc<dyn CallHop>,
        credentials: &Credentials,
        linked: Linked,
        metrics: MetricsHandle,
    ) -> Self {
        // Room for what a balancer adds to a client's head.
        let head = HeadLimits { bytes_max: 128 << 10, target_bytes_max: 1 << 10, fields_max: 128 };
        // The edge keeps its client's time and says so to the client, which must not come after this node's.
        let body_timeout = 2 * ConnectionLimits::default().body_timeout;
        Self {
            hop,
            tls: TlsAcceptor::from(server_config(credentials, &[MUX_ALPN, HTTP1_ALPN], ClientAuth::Required)),
            functions: KnownFunctions::default(),
            linked,
            limits: ConnectionLimits { head, body_timeout, ..ConnectionLimits::default() },
            metrics,
        }
    }

    /// Serves on one thread per socket until `stop`; see [`Listeners::serve`].
    ///
    /// # Errors
    /// If a thread or its runtime cannot be made.
    pub fn serve(
        self: &Arc<Self>,
        listeners: Listeners,
        stop: &CancellationToken,
        grace: Duration,
    ) -> io::Result<Workers> {
        let bounds = Bounds { name: "serve", connections_max: CONNECTIONS_MAX, grace };
        let (endpoint, stopped) = (Arc::clone(self), stop.clone());
        listeners.serve(&bounds, stop, &move || {
            // A token of its own, so that looking at it shares nothing with other workers.
            let (endpoint, stopped) = (Arc::clone(&endpoint), stopped.child_token());
            move |stream| connection(Arc::clone(&endpoint), stream, stopped.clone())
        })
    }

    async fn call(&self, head: RequestHead, body: Body, balancer: &Arc<str>) -> Response {
        let received = Instant::now();
        let call = match IncomingCall::read(head, balancer) {
            Ok(call) => call,
            Err(error) => return plain(400, &error.to_string()),
        };
        let Some(function) = self.functions.get(call.function, call.revision) else {
            return refusal(Refusal::UnknownFunction);
        };
        match self.hop.call(call.into_request(function, body, received)).await {
            Ok(response) => answer(response),
            Err(CallError::Refused { reason, .. }) => refusal(reason),
            Err(CallError::Failed(failed)) => failure(&failed),
        }
    }

    async fn define(&self, revision: &str, body: Body) -> Response {
        let Ok(revision) = u64::from_str_radix(revision, 16) else {
            return plain(400, "the revision is not a hexadecimal number");
        };
        let text = match body.collect(DEFINITION_BYTES_MAX).await {
            Ok(text) => text,
            Err(error) => return plain(400, &error.to_string()),
        };
        match serde_json::from_slice(&text) {
            Ok(spec) => {
                // The balancer's hash counts: it is what its calls will name.
                self.functions.learn(Function { spec, revision: Revision(revision) });
                empty(204)
            }
            Err(error) => plain(400, &format!("the definition cannot be read: {error}")),
        }
    }
}

/// What balancers of the fleet may ask, on a connection of the one with this name.
struct Asked {
    endpoint: Arc<Endpoint>,
    balancer: Arc<str>,
}

impl Service for Asked {
    async fn handle(&self, request: Request) -> Response {
        let Self { endpoint, balancer } = self;
        let Request { mut head, body } = request;
        let path = std::mem::take(&mut head.target);
        match (&head.method, &*path) {
            (&Method::POST, CALL_PATH) => endpoint.call(head, body, balancer).await,
            (&Method::PUT, path) => match path.strip_prefix(FUNCTIONS_PATH) {
                Some(revision) => endpoint.define(revision, body).await,
                None => plain(404, "no such path"),
            },
            _ => plain(404, "no such path"),
        }
    }

    fn sends_date(&self) -> bool {
        false
    }
}

/// What anybody may ask.
struct Status(Arc<Endpoint>);

impl Service for Status {
    async fn handle(&self, request: Request) -> Response {
        let Self(endpoint) = self;
        match request.head.target.split('?').next().unwrap_or_default() {
            READY_PATH if endpoint.linked.count() == 0 => {
                plain(503, "no balancer is linked; calls cannot come")
            }
            READY_PATH | HEALTH_PATH => plain(200, "ok"),
            "/metrics" => {
                let text = Body::from(Bytes::from(endpoint.metrics.render()));
                with_type(200, b"text/plain; version=0.0.4; charset=utf-8", text)
            }
            _ => plain(404, "calls come over TLS, from the balancers of the fleet"),
        }
    }
}

/// The first byte of a TLS connection: a handshake record (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// Serves a connection as its first byte says: TLS for balancers, plain HTTP/1.1 for those who want to know how it is.
async fn connection(endpoint: Arc<Endpoint>, stream: TcpStream, stop: CancellationToken) {
    let mut first = [0];
    let peeked = tokio::select! {
        biased; // what has not begun is not begun at shutdown
        () = stop.cancelled() => return,
        // Cancel-safe: nothing is taken.
        peeked = timeout(endpoint.limits.head_timeout, stream.peek(&mut first)) => peeked,
    };
    match peeked {
        Ok(Ok(1)) if first[0] == TLS_HANDSHAKE => balancer(endpoint, stream, &stop).await,
        Ok(Ok(1)) => {
            let (reader, writer) = stream.into_split();
            let limits = endpoint.limits.clone();
            serve(reader, writer, &Status(endpoint), &limits, &stop).await;
        }
        // It is gone, or says nothing.
        _ => {}
    }
}

/// Serves a balancer, one call after the other or many side by side, as it has asked for in the handshake.
async fn balancer(endpoint: Arc<Endpoint>, stream: TcpStream, stop: &CancellationToken) {
    let shaken = timeout(endpoint.limits.head_timeout, endpoint.tls.accept(stream)).await;
    let stream = match shaken {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::warn!(%error, "a caller is no balancer of this fleet");
            return;
        }
        Err(_elapsed) => return,
    };
    let (_, tls) = stream.get_ref();
    let balancer = match peer_of(tls.peer_certificates()) {
        Ok(peer) if peer.role() == Role::Balancer => Arc::from(peer.name()),
        Ok(peer) => {
            tracing::warn!(%peer, "only balancers may call");
            return;
        }
        Err(error) => {
            tracing::warn!(%error, "a caller is no balancer of this fleet");
            return;
        }
    };
    if tls.alpn_protocol() == Some(MUX_ALPN) {
        side_by_side(Asked { endpoint, balancer }, stream, stop).await;
    } else {
        let (reader, writer) = tokio::io::split(stream);
        one_by_one(Asked { endpoint, balancer }, reader, writer, stop).await;
    }
}

async fn side_by_side<I>(asked: Asked, io: I, stop: &CancellationToken)
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let limits = asked.endpoint.limits.clone();
    if let Closed::Violation(violation) = mux::serve(io, Arc::new(asked), &limits, stop).await {
        tracing::warn!(error = %violation, "a balancer's connection was closed");
    }
}

async fn one_by_one<R, W>(asked: Asked, reader: R, writer: W, stop: &CancellationToken)
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send,
{
    // Balancers speak HTTP/1.1; whatever else comes is closed.
    serve(reader, writer, &asked, &asked.endpoint.limits, stop).await;
}

fn empty(status: u16) -> Response {
    Response { status, headers: HeaderBlock::new(), body: Body::Empty }
}

fn with_type(status: u16, content_type: &[u8], body: Body) -> Response {
    let mut headers = HeaderBlock::new();
    headers.push_valid(b"Content-Type", content_type);
    Response { status, headers, body }
}
