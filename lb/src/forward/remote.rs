//! Calls to an agent elsewhere, each on a connection of its own while it runs.
//!
//! Invariant: a call is given back for another try only if no byte of it can have reached a function: no connection
//! could be made, or the agent said so.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use kiln_shared::body::{Body, BodyError};
use kiln_shared::call::{
    CallError, CallFuture, CallHop, CallRequest, CallResponse, DefineFuture, Failure, FailureKind, Refusal,
};
use kiln_shared::function::Function;
use kiln_shared::http1::buffer::{WriteError, WriteFraming};
use kiln_shared::http1::client::{Exchange, ExchangeError, SendBody};
use kiln_shared::http1::head::{BodyLength, HeadLimits};
use kiln_shared::link::FUNCTIONS_PATH;
use kiln_shared::link::call::{ProtocolError, Verdict, read_answer, read_failure, request_head};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::control::{AgentConnection, Control};
use super::pool::{Pool, PoolConfig};

/// A declared body up to this size is read whole before the call is sent: it can be sent again if a node refuses, and
/// a slow client holds no slot.
const WHOLE_BODY_BYTES_MAX: u64 = 64 << 10;
/// Longest text of a failure.
const FAILURE_BYTES_MAX: u64 = 64 << 10;
/// Longest time for an agent to take a definition.
const DEFINE_TIMEOUT: Duration = Duration::from_secs(5);

/// Status of an agent that wants another token. No function is involved yet.
const STATUS_UNAUTHORIZED: u16 = 401;

type AgentExchange = Exchange<OwnedReadHalf, OwnedWriteHalf>;

/// The way to one agent from one worker.
#[derive(Debug)]
pub(super) struct RemoteHop {
    control: Control,
    pool: Arc<Pool>,
}

impl RemoteHop {
    pub(super) fn new(control: Control, config: PoolConfig) -> Self {
        Self { control, pool: Arc::new(Pool::new(config)) }
    }

    async fn run(&self, mut request: Box<CallRequest>) -> Result<CallResponse, CallError> {
        let mut body = std::mem::take(&mut request.body);
        if matches!(body, Body::Stream { length: Some(length), .. } if length <= WHOLE_BODY_BYTES_MAX) {
            let whole = body.collect(WHOLE_BODY_BYTES_MAX).await;
            body = Body::from(whole.map_err(|error| Failure::of_body(&error))?);
        }
        let Some(connection) = self.connection().await else {
            return Err(refused(Refusal::Unreachable, request, body));
        };
        // What is at hand costs nothing to keep for another try.
        let (send, at_hand) = match &body {
            Body::Empty => (SendBody::AtOnce, Some(Bytes::new())),
            Body::Full(bytes) => (SendBody::AtOnce, Some(bytes.clone())),
            Body::Stream { .. } => (SendBody::WhenAsked, None),
        };
        let framing = WriteFraming::of(&body);
        let head = request_head(&request, self.control.token(), self.control.address(), framing, send)
            .map_err(|error| Failure::internal(error.to_string()))?;
        let limits = head_limits();
        let (mut head, mut exchange) =
            Exchange::start(connection, head, body, framing, send, &limits).await.map_err(|e| broken(&e))?;
        let verdict = match read_answer(&mut head) {
            Ok(verdict) => verdict,
            Err(_) if head.status == STATUS_UNAUTHORIZED => {
                tracing::error!(
                    agent = self.control.address(),
                    "an agent does not accept this balancer's fleet token"
                );
                Verdict::Refused(Refusal::Unreachable)
            }
            Err(error) => return Err(foreign(&error).into()),
        };
        match verdict {
            Verdict::Answer(headers, stages) => {
                let status = head.status;
                if let Some(body) = exchange.take_arrived_body() {
                    self.give_back(exchange, send);
                    return Ok(CallResponse { status, headers, body: Body::from(body), stages });
                }
                let length = match head.length {
                    BodyLength::Fixed(bytes) => Some(bytes),
                    BodyLength::Chunked | BodyLength::UntilClose => None,
                };
                let pool = (send == SendBody::AtOnce).then(|| Arc::clone(&self.pool));
                let answer = Answer { exchange: Some(exchange), pool };
                let body = Body::Stream { stream: Box::pin(answer), length };
                Ok(CallResponse { status, headers, body, stages })
            }
            Verdict::Refused(reason) => {
                drop(drain(&mut exchange).await);
                let (untouched, connection) = exchange.finish();
                if let Some(connection) = connection {
                    self.pool.put(connection);
                }
                match at_hand.map(Body::from).or(untouched) {
                    Some(body) => Err(refused(reason, request, body)),
                    // Only an agent that asks for a body and then refuses comes here.
                    None => Err(Failure::busy().with_detail(reason.to_string()).into()),
                }
            }
            Verdict::Failed => {
                let text = drain(&mut exchange).await.map_err(|error| broken(&error))?;
                self.give_back(exchange, send);
                Err(read_failure(&text).map_err(|error| foreign(&error))?.into())
            }
        }
    }

    /// An idle connection that is still good, or a new one; `None` if the agent cannot be reached.
    async fn connection(&self) -> Option<AgentConnection> {
        while let Some(mut connection) = self.pool.take() {
            if poll_fn(|context| Poll::Ready(connection.is_reusable(context))).await {
                return Some(connection);
            }
        }
        match self.control.connect().await {
            Ok(connection) => Some(connection),
            Err(error) => {
                tracing::info!(agent = self.control.address(), %error, "cannot reach an agent");
                None
            }
        }
    }

    /// Keeps the connection, unless a body was streamed over it: the agent closes it if its function did not read all
    /// of that, which shows too late.
    fn give_back(&self, exchange: AgentExchange, send: SendBody) {
        if send == SendBody::AtOnce
            && let Some(connection) = exchange.finish().1
        {
            self.pool.put(connection);
        }
    }
}

impl CallHop for RemoteHop {
    fn call(&self, request: Box<CallRequest>) -> CallFuture<'_> {
        Box::pin(self.run(request))
    }

    fn define<'a>(&'a self, function: &'a Function) -> DefineFuture<'a> {
        Box::pin(async move {
            let target = format!("{FUNCTIONS_PATH}{}", function.revision);
            let spec = serde_json::to_vec(&function.spec).expect("a spec always serializes");
            let sent = self.control.clone().ask("PUT", &target, spec.into(), DEFINE_TIMEOUT, 1 << 10).await;
            if let Err(error) = sent {
                let (agent, function) = (self.control.address(), function.spec.id);
                tracing::warn!(agent, %function, error = &error as &dyn std::error::Error, "an agent does not take a definition");
            }
        })
    }
}

fn head_limits() -> HeadLimits {
    // A function's own head was bounded by its agent.
    HeadLimits { bytes_max: 2 << 20, fields_max: 128, ..HeadLimits::default() }
}

fn refused(reason: Refusal, mut request: Box<CallRequest>, body: Body) -> CallError {
    request.body = body;
    CallError::Refused { reason, request }
}

async fn drain(exchange: &mut AgentExchange) -> Result<Vec<u8>, ExchangeError> {
    let mut text = Vec::new();
    while let Some(chunk) = poll_fn(|context| exchange.poll_chunk(context)).await {
        let chunk = chunk?;
        if (text.len() + chunk.len()) as u64 > FAILURE_BYTES_MAX {
            break;
        }
        text.extend_from_slice(&chunk);
    }
    Ok(text)
}

/// The failure of a call whose connection broke before its answer. It may have run.
fn broken(error: &ExchangeError) -> Failure {
    match error {
        ExchangeError::RequestBody(WriteError::Body(error)) => Failure::of_body(error),
        ExchangeError::RequestBody(error) => Failure::cancelled().with_detail(error.to_string()),
        error => Failure::node_lost().with_detail(error.to_string()),
    }
}

fn foreign(error: &ProtocolError) -> Failure {
    Failure::new(FailureKind::NodeLost, 502, "the node's answer cannot be read")
        .with_detail(error.to_string())
}

/// An answer's body on its way from an agent. Dropped before its end it closes the connection, which cancels the call.
struct Answer {
    exchange: Option<AgentExchange>,
    /// Where the connection goes if it may be used again.
    pool: Option<Arc<Pool>>,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let Some(exchange) = &mut this.exchange else { return Poll::Ready(None) };
        let chunk = ready!(exchange.poll_chunk(context));
        if !matches!(chunk, Some(Ok(_))) || exchange.is_complete() {
            let exchange = this.exchange.take();
            if let Some(pool) = &this.pool
                && let Some(connection) = exchange.and_then(|exchange| exchange.finish().1)
            {
                pool.put(connection);
            }
        }
        Poll::Ready(chunk.map(|chunk| chunk.map(Frame::data).map_err(BodyError::from)))
    }
}
