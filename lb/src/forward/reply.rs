//! An agent's answer as it comes, whichever connection carries it.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Frame;
use kiln_shared::body::{Body, BodyError};
use kiln_shared::http1::client::{Exchange, ExchangeError};
use kiln_shared::mux;

use super::control::{AgentReader, AgentWriter};
use super::pool::Pool;

/// Longest text of a failure or refusal in bytes.
const TEXT_BYTES_MAX: u64 = 64 << 10;

/// A call whose answer has begun. Dropped before its end it cancels the call.
pub(super) enum Reply {
    /// On a connection of its own.
    Pooled {
        /// The call.
        exchange: Exchange<AgentReader, AgentWriter>,
        /// Where the connection goes if it may be used again.
        pool: Option<Arc<Pool>>,
    },
    /// Beside others.
    Multiplexed(mux::Exchange),
}

impl Reply {
    pub(super) fn poll_chunk(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, ExchangeError>>> {
        match self {
            Self::Pooled { exchange, .. } => exchange.poll_chunk(context),
            Self::Multiplexed(exchange) => exchange.poll_chunk(context),
        }
    }

    /// The whole body, if it has come with the head.
    pub(super) fn take_arrived_body(&mut self) -> Option<Bytes> {
        match self {
            Self::Pooled { exchange, .. } => exchange.take_arrived_body(),
            Self::Multiplexed(exchange) => exchange.take_arrived_body(),
        }
    }

    fn is_complete(&self) -> bool {
        match self {
            Self::Pooled { exchange, .. } => exchange.is_complete(),
            Self::Multiplexed(exchange) => exchange.is_complete(),
        }
    }

    /// Reads the rest of a short text.
    pub(super) async fn text(&mut self) -> Result<Vec<u8>, ExchangeError> {
        let mut text = Vec::new();
        while let Some(chunk) = poll_fn(|context| self.poll_chunk(context)).await {
            let chunk = chunk?;
            if (text.len() + chunk.len()) as u64 > TEXT_BYTES_MAX {
                break;
            }
            text.extend_from_slice(&chunk);
        }
        Ok(text)
    }

    /// Gives the connection back, if it had one to itself that may be used again. Returns the request's body, if
    /// nothing of it was taken.
    pub(super) fn release(self) -> Option<Body> {
        match self {
            Self::Pooled { exchange, pool } => {
                let (untouched, connection) = exchange.finish();
                if let (Some(pool), Some(connection)) = (pool, connection) {
                    pool.put(connection);
                }
                untouched
            }
            Self::Multiplexed(_) => None,
        }
    }
}

/// An answer's body on its way from an agent.
pub(super) struct AnswerBody(Option<Reply>);

impl AnswerBody {
    pub(super) fn new(reply: Reply) -> Self {
        Self(Some(reply))
    }
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let Some(reply) = &mut this.0 else { return Poll::Ready(None) };
        let chunk = ready!(reply.poll_chunk(context));
        if !matches!(chunk, Some(Ok(_))) || reply.is_complete() {
            drop(this.0.take().and_then(Reply::release));
        }
        Poll::Ready(chunk.map(|chunk| chunk.map(Frame::data).map_err(BodyError::from)))
    }
}
