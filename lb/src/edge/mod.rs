//! The edge: one request from its head to its answer.
//!
//! Owns the phases of a call: route, guard, place, forward. Everything that is no call goes to the API, off the
//! hot path. No database is touched for a call, and no lock that another thread could hold.

mod answer;
mod api;
mod counters;
mod http2;
mod seating;
mod sniff;
mod timing;
mod unplaced;

use std::borrow::Cow;
use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use bytes::Bytes;
use http::Method;
use kiln_shared::body::Body;
use kiln_shared::call::{CallError, CallKind, CallRequest, CallResponse, Failure, FailureKind};
use kiln_shared::function::Function;
use kiln_shared::http1::HeaderBlock;
use kiln_shared::http1::head::RequestHead;
use kiln_shared::http1::server::{ConnectionLimits, Ended, Request, RequestError, Response, Service, serve};
use kiln_shared::ids::CallId;
use kiln_shared::listen::{Bounds, Listeners, Workers};
use kiln_shared::model::go_json;
use kiln_shared::record::RecordSink;
use kiln_shared::story::Placement;
use kiln_shared::telemetry::MetricsHandle;
use kiln_shared::token::Token;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use self::counters::Counters;
use self::seating::hold_place;
pub use self::timing::ServerTiming;
pub use self::unplaced::UNPLACED_RECORDS_PER_SECOND_MAX;
use self::unplaced::{Named, Unplaced};
use crate::detached::{DetachedCall, Intake};
use crate::fleet::{Attempts, Demand, FleetReader, Limits, Next, RetryPolicy};
use crate::forward::Forwarder;
use crate::guard::{BodyLimit, InFlightLimit, TokenGuard};
use crate::route::{Followed, Route, RouteReader, Target, classify, decode};

/// What the edge needs to know.
#[derive(Debug, Clone)]
pub struct EdgeConfig {
    /// This balancer's name, which its calls' records tell.
    pub balancer: Arc<str>,
    /// Bounds of a connection.
    pub connection: ConnectionLimits,
    /// Most open connections; further ones are closed when they come.
    pub connections_max: usize,
    /// Most calls under way; further ones get 503.
    pub calls_max: usize,
    /// Largest request body of a call in bytes; 0 is no limit.
    pub body_bytes_max: u64,
    /// Callers must show this token (`Authorization: Bearer`); `None` asks for none.
    pub token: Option<Token>,
    /// Longest time that a call may wait for a place on a node, from its arrival. Zero: no call waits.
    pub wait_max: Duration,
    /// Nodes may come for so long after the start: calls wait for one instead of being told that there is none. Zero where
    /// nodes do not come by themselves.
    pub nodes_within: Duration,
    /// Calls of one function that show one `Kiln-Affinity` header share a home.
    pub affinity: Affinity,
    /// How often a refused call is tried elsewhere.
    pub retry: RetryPolicy,
    /// Whether answers tell where the call's time went.
    pub server_timing: ServerTiming,
    /// How many calls run of functions that have a limit.
    pub limits: Arc<Limits>,
    /// Who takes detached calls in; `None` answers 501.
    pub intake: Option<Intake>,
}

impl Default for EdgeConfig {
    fn default() -> Self {
        Self {
            balancer: "local".into(),
            connection: ConnectionLimits::default(),
            connections_max: 50_000,
            calls_max: 20_000,
            body_bytes_max: 0,
            token: None,
            wait_max: Duration::from_secs(30),
            nodes_within: Duration::ZERO,
            affinity: Affinity::Ignored,
            retry: RetryPolicy::default(),
            limits: Arc::default(),
            intake: None,
            server_timing: ServerTiming::Hidden,
        }
    }
}

/// Whether callers may choose what shares a home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Affinity {
    /// They may not: a function has one home, which keeps the number of its warm containers small, and no caller can
    /// draw load to a node of its choice.
    Ignored,
    /// By the header `Kiln-Affinity`, of up to 256 bytes; a longer one is ignored.
    ByHeader,
}

/// Calls of one function that show the same text share a home.
const AFFINITY_HEADER: &str = "Kiln-Affinity";

/// The edge of one process. Shared by its workers.
pub struct Edge {
    config: EdgeConfig,
    token: TokenGuard,
    body_limit: BodyLimit,
    in_flight: InFlightLimit,
    catalog: Followed,
    fleet: FleetReader,
    forwarder: Forwarder,
    api: Router,
    metrics: MetricsHandle,
    counters: Counters,
    born: Instant,
    unplaced: Unplaced,
}

impl std::fmt::Debug for Edge {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Edge").field("config", &self.config).finish_non_exhaustive()
    }
}

thread_local! {
    static WORKER: RefCell<Option<Worker>> = const { RefCell::new(None) };
}

/// What a worker has of its own, so that reading it shares nothing with other workers.
struct Worker {
    routes: RouteReader,
    fleet: FleetReader,
    /// The balancer's name.
    balancer: Arc<str>,
}

/// What routing found, before the call is made of it.
struct Found {
    function: Arc<Function>,
    kind: CallKind,
    path: Cow<'static, str>,
}

impl Edge {
    /// An edge that sends calls to nodes through `forwarder` and everything else to `api`. What became of calls that no node
    /// took goes to `records`.
    pub fn new(
        config: EdgeConfig,
        catalog: Followed,
        fleet: FleetReader,
        forwarder: Forwarder,
        api: Router,
        metrics: MetricsHandle,
        records: RecordSink,
    ) -> Self {
        Self {
            token: TokenGuard::new(config.token.clone()),
            body_limit: BodyLimit::new(config.body_bytes_max),
            in_flight: InFlightLimit::new(config.calls_max),
            config,
            catalog,
            fleet,
            forwarder,
            api,
            metrics,
            counters: Counters::new(),
            born: Instant::now(),
            unplaced: Unplaced::new(records),
        }
    }

    fn with_readers<T>(&self, read: impl FnOnce(&mut RouteReader, &mut FleetReader) -> T) -> T {
        self.with_worker(|worker| read(&mut worker.routes, &mut worker.fleet))
    }

    fn with_worker<T>(&self, read: impl FnOnce(&mut Worker) -> T) -> T {
        WORKER.with_borrow_mut(|worker| {
            read(worker.get_or_insert_with(|| Worker {
                routes: self.catalog.routes.clone(),
                fleet: self.fleet.clone(),
                balancer: Arc::from(&*self.config.balancer),
            }))
        })
    }

    /// What is told of a call that came at `received`.
    fn placement(&self, attempts: &Attempts, received: Instant) -> Placement {
        self.with_worker(|worker| {
            let (view, balancer) = (worker.fleet.view(), Arc::clone(&worker.balancer));
            attempts.trail().placement(balancer, received.elapsed(), |node| view.name_of(node))
        })
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
        let bounds = Bounds { name: "edge", connections_max: self.config.connections_max, grace };
        let (edge, stopped) = (Arc::clone(self), stop.clone());
        listeners.serve(&bounds, stop, &move || {
            // The thread may have served another edge before.
            WORKER.set(None);
            // A token of its own, so that looking at it shares nothing with other workers.
            let (edge, stopped) = (Arc::clone(&edge), stopped.child_token());
            move |stream| connection(Arc::clone(&edge), stream, stopped.clone())
        })
    }

    async fn call(&self, head: RequestHead, body: Body, found: Found) -> Response {
        let received = Instant::now();
        let id = CallId::generate();
        if found.kind == CallKind::Invoke && is_detached(&head) {
            // Boxed, so that calls whose callers wait do not carry its size.
            return match Box::pin(self.accept(id, head, body, found)).await {
                Ok(response) => response,
                Err(failure) => failure_response(&failure, Some(id)),
            };
        }
        let method = head.method.clone();
        let call = Named {
            id,
            app_id: found.function.spec.app_id,
            trigger_id: match found.kind {
                CallKind::Trigger(id) => Some(id),
                CallKind::Invoke => None,
            },
            demand: self.demand(&found.function, &head.headers),
            received,
        };
        let mut attempts = Attempts::new();
        let outcome = match self.run(&call, head, body, found, &mut attempts).await {
            Ok(response) => answer::complete(&method, response).await,
            Err(failure) => Err(failure),
        };
        tracing::debug!(call = %id, trail = ?attempts.trail(), "call placed");
        let total = received.elapsed();
        let stages = outcome.as_ref().map(|response| response.stages);
        self.counters.ended(stages, total);
        let stages = stages.ok();
        let mut response = match outcome {
            Ok(CallResponse { status, mut headers, body, .. }) => {
                headers.push_valid(b"Fn-Call-Id", id.as_bytes());
                Response { status, headers, body }
            }
            Err(failure) => {
                self.record_unplaced(&call, &attempts, &failure);
                if let Some(detail) = &failure.detail {
                    tracing::info!(call = %id, status = failure.status, error = %failure, detail, "call failed");
                }
                failure_response(&failure, Some(id))
            }
        };
        if self.config.server_timing == ServerTiming::Shown {
            timing::push(&mut response.headers, attempts.trail().waited(), stages, total);
        }
        response
    }

    /// Takes a detached call in: 202 when it is safe in the queue.
    async fn accept(
        &self,
        id: CallId,
        head: RequestHead,
        body: Body,
        found: Found,
    ) -> Result<Response, Failure> {
        self.token.check(head.headers.get("Authorization")).map_err(Failure::from)?;
        let _admitted = self.in_flight.admit().map_err(Failure::from)?;
        let Some(intake) = &self.config.intake else {
            // Fn's words for a server without them (`spec/api-v2.md`, part 4).
            let message = "Detach call functions are not supported on this server";
            return Err(Failure::new(FailureKind::BadRequest, 501, message));
        };
        let body = self.body_limit.admit(body).map_err(Failure::from)?;
        let url = ["http://", &head.host, &head.target].concat();
        let Found { function, kind, path } = found;
        let stored = intake.accept(DetachedCall { id, function, kind, path, head, url, body }).await?;
        let mut headers = HeaderBlock::new();
        headers.push_valid(b"Fn-Call-Id", stored.as_bytes());
        Ok(Response { status: 202, headers, body: Body::Empty })
    }

    /// What a call of `function` asks of the fleet.
    fn demand(&self, function: &Function, headers: &HeaderBlock) -> Demand {
        let demand = Demand::of(function);
        if self.config.affinity == Affinity::ByHeader
            && let Some(affinity) = headers.get(AFFINITY_HEADER)
        {
            return demand.with_affinity(affinity);
        }
        demand
    }

    async fn run(
        &self,
        call: &Named,
        head: RequestHead,
        body: Body,
        found: Found,
        attempts: &mut Attempts,
    ) -> Result<CallResponse, Failure> {
        let Named { id, demand, received, .. } = *call;
        self.token.check(head.headers.get("Authorization")).map_err(Failure::from)?;
        let admitted = self.in_flight.admit().map_err(Failure::from)?;
        let body = self.body_limit.admit(body).map_err(Failure::from)?;
        let calls_max = found.function.spec.concurrency_max;
        let limit = calls_max.map(|calls_max| self.config.limits.of(&demand.function, calls_max));
        let mut request = Box::new(CallRequest {
            id,
            function: found.function,
            kind: found.kind,
            method: head.method,
            url: ["http://", &head.host, &head.target].concat(),
            path: found.path,
            headers: head.headers,
            body,
            received,
            placement: None,
        });
        let mut wait = None;
        loop {
            let place = self.seat(&demand, limit.as_ref(), attempts, wait.take(), received).await?;
            let hop = self
                .with_readers(|_, fleet| self.forwarder.hop(place.node(), fleet.view()))
                .ok_or_else(|| Failure::internal("a local node without an agent"))?;
            let next = loop {
                request.placement = Some(self.placement(attempts, received));
                let (reason, back) = match hop.call(request).await {
                    Ok(response) => {
                        place.answered();
                        return Ok(hold_place(response, place, admitted));
                    }
                    Err(CallError::Failed(failure)) => {
                        place.failed(failure.kind);
                        return Err(failure);
                    }
                    Err(CallError::Refused { reason, request }) => (reason, request),
                };
                request = back;
                self.counters.refused_by_node(reason);
                match attempts.refused(place.node().serial(), reason, &self.config.retry) {
                    Next::SameNode => hop.define(&request.function).await,
                    next => {
                        place.refused(reason);
                        break next;
                    }
                }
            };
            match next {
                // A node that let it wait for so long has had the time that it may wait.
                Next::OtherNode if self.is_late(received) => return Err(attempts.failure()),
                Next::SameNode | Next::OtherNode => {}
                Next::Wait(reason) => wait = Some(reason),
                Next::GiveUp(failure) => return Err(failure),
            }
        }
    }

    fn find(&self, method: &Method, path: &str) -> Result<Option<Found>, Failure> {
        let decoded = decode(path.as_bytes())?;
        let target = classify(&decoded);
        match target {
            Target::Other => return Ok(None),
            // Before anything is looked up, as Fn's router has it.
            Target::Invoke { .. } if method != Method::POST => {
                return Err(method_not_allowed(method, &decoded));
            }
            Target::Invoke { .. } | Target::Trigger { .. } => {}
        }
        self.with_readers(|routes, _| {
            Ok(match routes.routes().resolve(target)? {
                Route::Function(function) => Some(Found {
                    function: Arc::clone(function),
                    kind: CallKind::Invoke,
                    path: Cow::Borrowed("/invoke"),
                }),
                Route::Trigger(trigger) => Some(Found {
                    function: Arc::clone(&trigger.function),
                    kind: CallKind::Trigger(trigger.id),
                    path: Cow::Owned(trigger.source.to_string()),
                }),
                Route::Other => None,
            })
        })
    }

    fn show_metrics(&self, method: &Method) -> Response {
        if method != Method::GET && method != Method::HEAD {
            return failure_response(&method_not_allowed(method, b"/metrics"), None);
        }
        let mut headers = HeaderBlock::new();
        headers.push_valid(b"Content-Type", b"text/plain; version=0.0.4; charset=utf-8");
        Response { status: 200, headers, body: Body::from(Bytes::from(self.metrics.render())) }
    }
}

impl Service for Edge {
    async fn handle(&self, request: Request) -> Response {
        let Request { head, body } = request;
        let path = head.target.split('?').next().unwrap_or_default();
        match self.find(&head.method, path) {
            Ok(Some(found)) => self.call(head, body, found).await,
            Ok(None) if path == "/metrics" => self.show_metrics(&head.method),
            Ok(None) => match redirect(&head) {
                Some(redirect) => redirect,
                None => api::answer(self.api.clone(), &self.catalog, head, body).await,
            },
            Err(failure) => failure_response(&failure, None),
        }
    }

    fn refuse(&self, error: RequestError) -> Response {
        error_response(error.status(), &error.to_string())
    }
}

fn is_detached(head: &RequestHead) -> bool {
    head.headers.get("Fn-Invoke-Type").is_some_and(|kind| kind.eq_ignore_ascii_case(b"detached"))
}

async fn connection(edge: Arc<Edge>, stream: TcpStream, stop: CancellationToken) {
    let (reader, writer) = stream.into_split();
    let ended = serve(reader, writer, &*edge, &edge.config.connection, &stop).await;
    if let Ended::Http2(reader, writer, read) = ended
        && let Ok(stream) = reader.reunite(writer)
    {
        http2::serve(edge, stream, read, stop).await;
    }
}

/// Sends a caller of `/invoke/{id}/` to the path without the slash, as Fn's router does (gin's
/// `RedirectTrailingSlash`). Triggers are not redirected: their slash is part of the source.
fn redirect(head: &RequestHead) -> Option<Response> {
    let path_len = head.target.find('?').unwrap_or(head.target.len());
    let (path, query) = head.target.split_at(path_len);
    let path = path.strip_suffix('/')?;
    if head.method != Method::POST || !matches!(classify(path.as_bytes()), Target::Invoke { .. }) {
        return None;
    }
    let mut headers = HeaderBlock::new();
    headers.push_valid(b"Location", format!("{path}{query}").as_bytes());
    Some(Response { status: 307, headers, body: Body::Empty })
}

/// Fn's words for a path that exists for other methods only; the path without escapes.
fn method_not_allowed(method: &Method, path: &[u8]) -> Failure {
    let message = format!("Method not allowed: {method} {}", String::from_utf8_lossy(path));
    Failure::new(FailureKind::BadRequest, 405, message)
}

/// Seconds after which a busy caller may come back (`spec/api-v2.md`, part 1).
const RETRY_AFTER: Duration = Duration::from_secs(15);

fn failure_response(failure: &Failure, id: Option<CallId>) -> Response {
    let mut response = error_response(failure.status, &failure.message);
    if let Some(id) = id {
        response.headers.push_valid(b"Fn-Call-Id", id.as_bytes());
    }
    if failure.status == 401 {
        // RFC 9110, 11.6.1.
        response.headers.push_valid(b"WWW-Authenticate", b"Bearer");
    }
    if failure.status == 503 {
        response.headers.push_valid(b"Retry-After", RETRY_AFTER.as_secs().to_string().as_bytes());
    }
    response
}

fn error_response(status: u16, message: &str) -> Response {
    let mut headers = HeaderBlock::new();
    headers.push_valid(b"Content-Type", b"application/json; charset=utf-8");
    let body = go_json(&serde_json::json!({ "message": message })) + "\n";
    Response { status, headers, body: Body::from(Bytes::from(body)) }
}
