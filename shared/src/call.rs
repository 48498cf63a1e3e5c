//! One call as it crosses Kiln, and the seam between the balancer and whatever runs it.
//!
//! The balancer makes a [`CallRequest`]; a [`CallHop`] (an agent in this process, or a connection to one)
//! turns it into a [`CallResponse`] or says why not. A [refusal](CallError::Refused) gives the request
//! back untouched, which is what allows another node to be tried.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::body::{Body, BodyError};
use crate::function::Function;
use crate::http1::HeaderBlock;
use crate::ids::{CallId, TriggerId};
use crate::story::Placement;

/// How the call came in, which decides how headers and status are mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CallKind {
    /// `POST /invoke/{fn_id}`.
    Invoke,
    /// Any method on `/t/{app}/{source}`.
    Trigger(TriggerId),
}

/// A call on its way to a function.
#[derive(Debug)]
pub struct CallRequest {
    /// Names this call everywhere.
    pub id: CallId,
    /// What to run.
    pub function: Arc<Function>,
    /// How it came in.
    pub kind: CallKind,
    /// The client's method.
    pub method: http::Method,
    /// The client's whole URL, `scheme://host/path?query`.
    pub url: String,
    /// For `FN_PATH`: the trigger's source, or `/invoke`.
    pub path: Cow<'static, str>,
    /// The client's header lines without hop-by-hop ones and without `Content-Length` and `Host`.
    pub headers: HeaderBlock,
    /// The client's body.
    pub body: Body,
    /// When the edge had read the call's head. Local to this process.
    pub received: Instant,
    /// How the balancer came to give it to this node; `None` if it does not tell.
    pub placement: Option<Placement>,
}

/// A function's answer as the client shall see it: gateway headers are mapped, hop-by-hop ones are gone, and
/// framing headers are left to the one who writes it. A body that ends in an error must not end cleanly.
#[derive(Debug)]
pub struct CallResponse {
    /// HTTP status.
    pub status: u16,
    /// Header lines without framing, `Date` and `Fn-Call-Id`.
    pub headers: HeaderBlock,
    /// The answer's body.
    pub body: Body,
    /// How the call was run.
    pub stages: Stages,
}

/// Where a call's time went before its answer began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stages {
    /// A container was started for this call.
    pub cold: bool,
    /// From arrival at the agent to having a slot.
    pub wait: Duration,
    /// The part of that in which a container was started for this call.
    pub start: Duration,
    /// From the moment the container was given the call to the head of its answer.
    pub run: Duration,
}

/// Why a node did not take a call. No byte reached a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// All slots are busy, no room is left and the queue is full, or the wait took too long.
    #[error("no free slot")]
    Busy,
    /// The node is shutting down or being emptied.
    #[error("draining")]
    Draining,
    /// The node does not have this function's definition yet; send it and try again.
    #[error("unknown function")]
    UnknownFunction,
    /// No connection could be made.
    #[error("unreachable")]
    Unreachable,
}

impl Refusal {
    /// Every refusal, in the order in which they are declared.
    pub const ALL: [Self; 4] = [Self::Busy, Self::Draining, Self::UnknownFunction, Self::Unreachable];

    /// The word for it between balancer and agent.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Draining => "draining",
            Self::UnknownFunction => "unknown-function",
            Self::Unreachable => "unreachable",
        }
    }

    /// The refusal of that word.
    pub fn read(word: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| refusal.as_str().as_bytes() == word)
    }
}

/// What went wrong with a call that a node took, or that no node can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The function's time ran out.
    TimedOut,
    /// The function said that it failed.
    FunctionFailed,
    /// The function broke the contract.
    InvalidResponse,
    /// The function broke off.
    NoResponse,
    /// The function's head or body was larger than allowed.
    ResponseTooLarge,
    /// The container was killed for its memory.
    OutOfMemory,
    /// The container did not become ready.
    InitFailed,
    /// The container did not become ready in time.
    InitTimedOut,
    /// The image could not be had or used.
    Image,
    /// The function asks for more than a node has.
    CannotFit,
    /// No node had room in time.
    Busy,
    /// The request is at fault.
    BadRequest,
    /// The request body is larger than allowed.
    RequestTooLarge,
    /// The caller went away.
    Cancelled,
    /// The node was lost with the call.
    NodeLost,
    /// The node answered, and not as agents do.
    Unreadable,
    /// Kiln is at fault.
    Internal,
}

/// A failed call: what the client gets and what the call record says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What went wrong.
    pub kind: FailureKind,
    /// HTTP status for the client.
    pub status: u16,
    /// Sentence for the client; Fn's words where Fn has some.
    pub message: Cow<'static, str>,
    /// More for the record and the operator, never for the client.
    pub detail: Option<String>,
}

impl Failure {
    /// A failure with the given words.
    pub fn new(kind: FailureKind, status: u16, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, status, message: message.into(), detail: None }
    }

    /// Adds what only the record and the operator shall see.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// The function's time ran out (504).
    pub fn timed_out() -> Self {
        Self::new(FailureKind::TimedOut, 504, "Timed out")
    }

    /// The function answered 502: its code failed (502).
    pub fn function_failed() -> Self {
        Self::new(FailureKind::FunctionFailed, 502, "function failed")
    }

    /// The function's answer has a status outside the contract (502).
    pub fn invalid_response() -> Self {
        Self::new(FailureKind::InvalidResponse, 502, "invalid function response")
    }

    /// The function's answer broke off or was not HTTP (502).
    pub fn no_response() -> Self {
        Self::new(FailureKind::NoResponse, 502, "error receiving function response")
    }

    /// The answer's head is too large (502).
    pub fn response_head_too_large() -> Self {
        Self::new(FailureKind::ResponseTooLarge, 502, "function response header too large")
    }

    /// The answer's body is too large (502).
    pub fn response_body_too_large() -> Self {
        Self::new(FailureKind::ResponseTooLarge, 502, "function response body too large")
    }

    /// The container was killed for its memory (502).
    pub fn out_of_memory() -> Self {
        Self::new(
            FailureKind::OutOfMemory,
            502,
            "container out of memory, you may want to raise fn.memory for this function (default: 128MB)",
        )
    }

    /// The container ended before it was ready (502).
    pub fn init_failed() -> Self {
        Self::new(
            FailureKind::InitFailed,
            502,
            "Container failed to initialize, please ensure you are using the latest fdk and check the logs",
        )
    }

    /// The container was not ready in time (504).
    pub fn init_timed_out() -> Self {
        Self::new(
            FailureKind::InitTimedOut,
            504,
            "Container initialization timed out, please ensure you are using the latest fdk and check the logs",
        )
    }

    /// The image could not be pulled; `status` is the registry's 4xx or 502.
    pub fn image_pull(image: &str, status: u16, message: &str) -> Self {
        Self::new(FailureKind::Image, status, format!("Failed to pull image '{image}': {message}"))
    }

    /// The pull took too long (504).
    pub fn image_pull_timed_out() -> Self {
        Self::new(FailureKind::Image, 504, "Image pull timed out")
    }

    /// The image declares a volume (400).
    pub fn image_has_volume() -> Self {
        Self::new(FailureKind::Image, 400, "image has Volume definition")
    }

    /// The function asks for more than any node has (400).
    pub fn cannot_fit() -> Self {
        Self::new(FailureKind::CannotFit, 400, "Requested CPU/Memory cannot be allocated")
    }

    /// No node had room in time (503, `Retry-After`).
    pub fn busy() -> Self {
        Self::new(FailureKind::Busy, 503, "Timed out - server too busy")
    }

    /// The request body is larger than allowed (413).
    pub fn request_too_large() -> Self {
        Self::new(FailureKind::RequestTooLarge, 413, "Request content too large")
    }

    /// The caller went away; nobody reads the answer (444, as Fn logs it).
    pub fn cancelled() -> Self {
        Self::new(FailureKind::Cancelled, 444, "client closed the connection")
    }

    /// The node's connection broke while it had the call, which may have run (502).
    pub fn node_lost() -> Self {
        Self::new(FailureKind::NodeLost, 502, "the node that ran the call was lost; it may have run")
    }

    /// The node's answer is not Kiln's (502). That it answered at all says that it is not lost.
    pub fn unreadable() -> Self {
        Self::new(FailureKind::Unreadable, 502, "the node's answer cannot be read")
    }

    /// A request body that could not be read to its end.
    pub fn of_body(error: &BodyError) -> Self {
        match error {
            BodyError::TooLarge { .. } => Self::request_too_large(),
            other => Self::cancelled().with_detail(other.to_string()),
        }
    }

    /// Kiln is at fault (500); the cause stays in the record and the log.
    pub fn internal(detail: impl Into<String>) -> Self {
        Self::new(FailureKind::Internal, 500, "internal server error").with_detail(detail)
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The node said no before the function saw a byte; the request may go to another node.
    #[error("refused: {reason}")]
    Refused {
        /// Why.
        reason: Refusal,
        /// The request, untouched.
        request: Box<CallRequest>,
    },
    /// The call ended, or may have run; nobody may try it again.
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// A call under way.
pub type CallFuture<'a> = Pin<Box<dyn Future<Output = Result<CallResponse, CallError>> + Send + 'a>>;

/// A definition under way.
pub type DefineFuture<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// A way to a node: the agent in this process, or a connection to one elsewhere.
pub trait CallHop: Send + Sync {
    /// Runs the call. Dropping the future, or the answer's body before its end, cancels the call.
    fn call(&self, request: Box<CallRequest>) -> CallFuture<'_>;

    /// Tells the node what a function is, after it refused a call for not knowing it. Whether that went well shows in
    /// the next try. An agent in this process gets the function with each call and never asks.
    fn define<'a>(&'a self, _function: &'a Function) -> DefineFuture<'a> {
        Box::pin(std::future::ready(()))
    }
}
