//! Message bodies as they flow through Kiln: nothing, bytes at hand, or a stream.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The peer that sends the body went away or broke the framing.
    #[error("the body's sender broke off")]
    Interrupted(#[source] io::Error),
    /// The body is longer than allowed.
    #[error("the body is larger than {bytes_max} bytes")]
    TooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// The call's deadline passed while the body flowed.
    #[error("the call's deadline passed while the body was under way")]
    DeadlineExceeded,
}

/// A body that arrives in pieces.
pub type BodyStream = Pin<Box<dyn HttpBody<Data = Bytes, Error = BodyError> + Send>>;

/// A request's or answer's body.
#[derive(Default)]
pub enum Body {
    /// No body.
    #[default]
    Empty,
    /// The whole body.
    Full(Bytes),
    /// Pieces, with the exact length in bytes where it is known.
    Stream {
        /// The pieces.
        stream: BodyStream,
        /// Total length in bytes, where the sender declared it.
        length: Option<u64>,
    },
}

impl Body {
    /// The exact length in bytes, where it is known.
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Full(bytes) => Some(bytes.len() as u64),
            Self::Stream { length, .. } => *length,
        }
    }

    /// Wraps a stream of unknown length.
    pub fn stream(stream: impl HttpBody<Data = Bytes, Error = BodyError> + Send + 'static) -> Self {
        Self::Stream { stream: Box::pin(stream), length: None }
    }

    /// The next piece, or `None` at the end.
    ///
    /// # Errors
    /// What broke the stream.
    pub async fn next_chunk(&mut self) -> Option<Result<Bytes, BodyError>> {
        std::future::poll_fn(|context| self.poll_chunk(context)).await
    }

    /// Polls for the next piece; trailers are passed over.
    pub fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready(if bytes.is_empty() { None } else { Some(Ok(bytes)) })
            }
            Self::Stream { stream, .. } => loop {
                match std::task::ready!(stream.as_mut().poll_frame(context)) {
                    None => return Poll::Ready(None),
                    Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                    Some(Ok(frame)) => {
                        if let Ok(data) = frame.into_data()
                            && !data.is_empty()
                        {
                            return Poll::Ready(Some(Ok(data)));
                        }
                    }
                }
            },
        }
    }

    /// Reads the whole body.
    ///
    /// # Errors
    /// [`BodyError::TooLarge`] beyond `bytes_max`, or what broke the stream.
    pub async fn collect(mut self, bytes_max: u64) -> Result<Bytes, BodyError> {
        if self.length().is_some_and(|length| length > bytes_max) {
            return Err(BodyError::TooLarge { bytes_max });
        }
        if let Self::Full(bytes) = self {
            return Ok(bytes);
        }
        let mut whole = Vec::new();
        while let Some(chunk) = self.next_chunk().await {
            let chunk = chunk?;
            if (whole.len() + chunk.len()) as u64 > bytes_max {
                return Err(BodyError::TooLarge { bytes_max });
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.into())
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => formatter.write_str("Empty"),
            Self::Full(bytes) => write!(formatter, "Full({} bytes)", bytes.len()),
            Self::Stream { length, .. } => write!(formatter, "Stream({length:?})"),
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::Empty } else { Self::Full(bytes) }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.poll_chunk(context).map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Stream { stream, .. } => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.length().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn collecting_stops_at_the_limit() {
        let body = Body::from(Bytes::from_static(b"twelve bytes"));
        assert_eq!(body.collect(12).await.expect("fits"), "twelve bytes");
        let body = Body::from(Bytes::from_static(b"twelve bytes"));
        assert!(matches!(body.collect(11).await, Err(BodyError::TooLarge { bytes_max: 11 })));
    }

    #[tokio::test]
    async fn a_full_body_yields_one_chunk_then_ends() {
        let mut body = Body::from(Bytes::from_static(b"x"));
        assert_eq!(body.next_chunk().await.expect("a chunk").expect("no error"), "x");
        assert!(body.next_chunk().await.is_none());
    }
}
