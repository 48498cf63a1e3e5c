//! Calls to an agent elsewhere: small ones side by side on a few connections, others on one of their own each.
//!
//! Invariant: a call is given back for another try only if no byte of it can have reached a function: no connection
//! could be made, it broke before the call was written, or the agent said so.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use kiln_shared::body::Body;
use kiln_shared::call::{
    CallError, CallFuture, CallHop, CallRequest, CallResponse, DefineFuture, Failure, Refusal,
};
use kiln_shared::function::Function;
use kiln_shared::http1::buffer::{WriteError, WriteFraming};
use kiln_shared::http1::client::{Exchange, ExchangeError, SendBody};
use kiln_shared::http1::head::{BodyLength, HeadLimits, ResponseHead};
use kiln_shared::link::FUNCTIONS_PATH;
use kiln_shared::link::call::{ProtocolError, Verdict, read_answer, read_failure, request_head};
use kiln_shared::mux::{Closed, StartError};

use super::control::{AgentConnection, Control};
use super::multiplexed::Multiplexed;
use super::pool::{Pool, PoolConfig};
use super::reply::{AnswerBody, Reply};

/// A declared body up to this size is read whole before the call is sent: it can be sent again if a node refuses, and
/// a slow client holds no slot. Calls with such bodies travel side by side.
const WHOLE_BODY_BYTES_MAX: u64 = 64 << 10;
/// Longest time for an agent to take a definition.
const DEFINE_TIMEOUT: Duration = Duration::from_secs(5);

/// The way to one agent from one worker.
#[derive(Debug)]
pub(super) struct RemoteHop {
    control: Control,
    pool: Arc<Pool>,
    multiplexed: Multiplexed,
    answer_wait_max: Duration,
}

/// Why an answer did not begin.
enum NotBegun {
    /// The call was not taken; here is its body.
    Refused(Refusal, Body),
    /// It ended, or may have run.
    Failed(Failure),
}

impl From<ExchangeError> for NotBegun {
    fn from(error: ExchangeError) -> Self {
        Self::Failed(broken(&error))
    }
}

impl RemoteHop {
    pub(super) fn new(control: Control, config: PoolConfig) -> Self {
        let multiplexed = Multiplexed::new(config.mux_connections_max, config.idle_timeout);
        Self {
            control,
            pool: Arc::new(Pool::new(config)),
            multiplexed,
            answer_wait_max: config.answer_wait_max,
        }
    }

    async fn run(&self, mut request: Box<CallRequest>) -> Result<CallResponse, CallError> {
        let mut body = std::mem::take(&mut request.body);
        if matches!(body, Body::Stream { length: Some(length), .. } if length <= WHOLE_BODY_BYTES_MAX) {
            let whole = body.collect(WHOLE_BODY_BYTES_MAX).await;
            body = Body::from(whole.map_err(|error| Failure::of_body(&error))?);
        }
        // What is at hand costs nothing to keep for another try.
        let at_hand = match &body {
            Body::Empty => Some(Bytes::new()),
            Body::Full(bytes) => Some(bytes.clone()),
            Body::Stream { .. } => None,
        };
        let send = if at_hand.is_some() { SendBody::AtOnce } else { SendBody::WhenAsked };
        let framing = WriteFraming::of(&body);
        let head = request_head(&request, self.control.address(), framing, send)
            .map_err(|error| Failure::internal(error.to_string()))?;
        let limit = request.function.spec.timeout + self.answer_wait_max;
        let answered = async {
            let begun = match self.begin(head, body, framing, send).await {
                Ok(begun) => begun,
                Err(NotBegun::Refused(reason, body)) => return Err(refused(reason, request, body)),
                Err(NotBegun::Failed(failure)) => return Err(failure.into()),
            };
            self.conclude(begun, request, at_hand).await
        };
        tokio::time::timeout(limit, answered).await.unwrap_or_else(|_elapsed| {
            Err(Failure::node_lost().with_detail(format!("no answer within {limit:?}")).into())
        })
    }

    /// Sends a call whose body is small and at hand beside others, if there is room, and any other on a connection of its
    /// own.
    async fn begin(
        &self,
        head: Vec<u8>,
        body: Body,
        framing: WriteFraming,
        send: SendBody,
    ) -> Result<(ResponseHead, Reply), NotBegun> {
        let small = match &body {
            Body::Empty => Some(Bytes::new()),
            Body::Full(bytes) if bytes.len() as u64 <= WHOLE_BODY_BYTES_MAX => Some(bytes.clone()),
            Body::Full(_) | Body::Stream { .. } => None,
        };
        let started = match small {
            Some(bytes) => self.multiplexed.start(head, Body::from(bytes), &self.control),
            None => Err(head),
        };
        match started {
            Ok(mut exchange) => match exchange.answer(&head_limits()).await {
                Ok(head) => Ok((head, Reply::Multiplexed(exchange))),
                Err(StartError::NotTaken(Closed::Draining)) => {
                    Err(NotBegun::Refused(Refusal::Draining, body))
                }
                Err(StartError::NotTaken(_)) => Err(NotBegun::Refused(Refusal::Unreachable, body)),
                Err(StartError::Failed(error)) => Err(error.into()),
            },
            Err(head) => self.begin_pooled(head, body, framing, send).await,
        }
    }

    async fn begin_pooled(
        &self,
        head: Vec<u8>,
        body: Body,
        framing: WriteFraming,
        send: SendBody,
    ) -> Result<(ResponseHead, Reply), NotBegun> {
        let Some(connection) = self.connection().await else {
            return Err(NotBegun::Refused(Refusal::Unreachable, body));
        };
        let (head, exchange) = Exchange::start(connection, head, body, framing, send, &head_limits()).await?;
        // Not one over which a body was streamed: the agent closes it if its function did not read all of that, which
        // shows too late.
        let pool = (send == SendBody::AtOnce).then(|| Arc::clone(&self.pool));
        Ok((head, Reply::Pooled { exchange, pool }))
    }

    /// What an answer's head says.
    async fn conclude(
        &self,
        (mut head, mut reply): (ResponseHead, Reply),
        request: Box<CallRequest>,
        at_hand: Option<Bytes>,
    ) -> Result<CallResponse, CallError> {
        let verdict = match read_answer(&mut head) {
            Ok(verdict) => verdict,
            Err(error) => return Err(foreign(&error).into()),
        };
        match verdict {
            Verdict::Answer(headers, stages) => {
                let status = head.status;
                if let Some(body) = reply.take_arrived_body() {
                    drop(reply.release());
                    return Ok(CallResponse { status, headers, body: Body::from(body), stages });
                }
                let length = match head.length {
                    BodyLength::Fixed(bytes) => Some(bytes),
                    BodyLength::Chunked | BodyLength::UntilClose => None,
                };
                let body = Body::Stream { stream: Box::pin(AnswerBody::new(reply)), length };
                Ok(CallResponse { status, headers, body, stages })
            }
            Verdict::Refused(reason) => {
                drop(reply.text().await);
                let untouched = reply.release();
                match at_hand.map(Body::from).or(untouched) {
                    Some(body) => Err(refused(reason, request, body)),
                    // Only an agent that asks for a body and then refuses comes here.
                    None => Err(Failure::busy().with_detail(reason.to_string()).into()),
                }
            }
            Verdict::Failed => {
                let text = reply.text().await.map_err(|error| broken(&error))?;
                drop(reply.release());
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

/// The failure of a call whose connection broke before its answer, or brought another one. It may have run.
fn broken(error: &ExchangeError) -> Failure {
    match error {
        ExchangeError::RequestBody(WriteError::Body(error)) => Failure::of_body(error),
        ExchangeError::RequestBody(error) => Failure::cancelled().with_detail(error.to_string()),
        ExchangeError::Head(error) => Failure::unreadable().with_detail(error.to_string()),
        error => Failure::node_lost().with_detail(error.to_string()),
    }
}

fn foreign(error: &ProtocolError) -> Failure {
    Failure::unreadable().with_detail(error.to_string())
}
