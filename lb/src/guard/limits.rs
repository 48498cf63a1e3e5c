//! Bounds of one request's body and of all calls in flight.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Frame;
use kiln_shared::body::{Body, BodyError, BodyStream};
use kiln_shared::call::{Failure, FailureKind};

/// The head of a request declares a body that is larger than allowed (413). Fn's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Content-Length too large for this server, {declared_bytes} > max {bytes_max}")]
pub struct TooLarge {
    /// What `Content-Length` says.
    pub declared_bytes: u64,
    /// What is allowed.
    pub bytes_max: u64,
}

impl From<TooLarge> for Failure {
    fn from(error: TooLarge) -> Self {
        Self::new(FailureKind::RequestTooLarge, 413, error.to_string())
    }
}

/// How large a request body may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyLimit {
    bytes_max: u64,
}

impl BodyLimit {
    /// Bodies of at most `bytes_max` bytes; 0 is no limit, as with Fn's `FN_MAX_REQUEST_SIZE`.
    pub fn new(bytes_max: u64) -> Self {
        Self { bytes_max: if bytes_max == 0 { u64::MAX } else { bytes_max } }
    }

    /// Checks the length that a body declares, and bounds one that declares none: reading it beyond the limit fails
    /// with [`BodyError::TooLarge`].
    ///
    /// # Errors
    /// [`TooLarge`].
    pub fn admit(&self, body: Body) -> Result<Body, TooLarge> {
        match body {
            Body::Stream { stream, length: None } if self.bytes_max != u64::MAX => {
                Ok(Body::stream(Bounded { stream, left_bytes: self.bytes_max, bytes_max: self.bytes_max }))
            }
            body => match body.length() {
                Some(declared_bytes) if declared_bytes > self.bytes_max => {
                    Err(TooLarge { declared_bytes, bytes_max: self.bytes_max })
                }
                _ => Ok(body),
            },
        }
    }
}

/// A body of unknown length that ends in an error where it becomes too long.
struct Bounded {
    stream: BodyStream,
    left_bytes: u64,
    bytes_max: u64,
}

impl http_body::Body for Bounded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(self.stream.as_mut().poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let Some(left_bytes) = self.left_bytes.checked_sub(data.len() as u64) else {
                return Poll::Ready(Some(Err(BodyError::TooLarge { bytes_max: self.bytes_max })));
            };
            self.left_bytes = left_bytes;
        }
        Poll::Ready(frame)
    }
}

/// There are as many calls as there may be (503, `Retry-After`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{calls_max} calls are in flight already")]
pub struct TooManyCalls {
    /// What is allowed.
    pub calls_max: usize,
}

impl From<TooManyCalls> for Failure {
    fn from(error: TooManyCalls) -> Self {
        Self::busy().with_detail(error.to_string())
    }
}

/// Bounds the calls in flight over all workers. Clones share the count.
#[derive(Debug, Clone)]
pub struct InFlightLimit {
    calls: Arc<AtomicUsize>,
    calls_max: usize,
}

/// One call's place under the limit; dropping it gives the place back.
#[derive(Debug)]
#[must_use = "dropping it gives the place back"]
pub struct Admitted {
    /// `None` if nothing is counted.
    calls: Option<Arc<AtomicUsize>>,
}

impl InFlightLimit {
    /// At most `calls_max` calls at once; 0 is no limit, and nothing is counted.
    pub fn new(calls_max: usize) -> Self {
        Self { calls: Arc::default(), calls_max }
    }

    /// Takes a place.
    ///
    /// # Errors
    /// There is none.
    pub fn admit(&self) -> Result<Admitted, TooManyCalls> {
        if self.calls_max == 0 {
            return Ok(Admitted { calls: None });
        }
        let calls_max = self.calls_max;
        if self.calls.fetch_add(1, Relaxed) >= calls_max {
            self.calls.fetch_sub(1, Relaxed);
            return Err(TooManyCalls { calls_max });
        }
        Ok(Admitted { calls: Some(Arc::clone(&self.calls)) })
    }

    /// Places that are taken.
    pub fn in_flight(&self) -> usize {
        self.calls.load(Relaxed)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(calls) = &self.calls {
            calls.fetch_sub(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(bytes: usize) -> Body {
        Body::from(Bytes::from(vec![b'x'; bytes]))
    }

    #[test]
    fn a_declared_length_over_the_limit_is_refused_in_fns_words() {
        let failure = Failure::from(BodyLimit::new(10).admit(full(11)).unwrap_err());
        assert_eq!(failure.status, 413);
        assert_eq!(failure.message, "Content-Length too large for this server, 11 > max 10");
        let declared = Body::Stream { stream: Box::pin(full(0)), length: Some(11) };
        assert!(BodyLimit::new(10).admit(declared).is_err());
        assert!(BodyLimit::new(10).admit(full(10)).is_ok());
    }

    #[tokio::test]
    async fn a_chunked_body_is_stopped_at_the_limit() {
        let limit = BodyLimit::new(10);
        let mut body = limit.admit(Body::stream(full(10))).unwrap();
        assert_eq!(body.next_chunk().await.unwrap().unwrap().len(), 10);
        assert!(body.next_chunk().await.is_none());
        let mut body = limit.admit(Body::stream(full(11))).unwrap();
        assert!(matches!(body.next_chunk().await, Some(Err(BodyError::TooLarge { bytes_max: 10 }))));
    }

    #[test]
    fn zero_is_no_limit() {
        assert!(BodyLimit::new(0).admit(full(100)).is_ok());
        let limit = InFlightLimit::new(0);
        let _calls: Vec<_> = (0..100).map(|_| limit.admit().unwrap()).collect();
    }

    #[test]
    fn a_place_comes_back_when_its_call_ends() {
        let limit = InFlightLimit::new(2);
        let first = limit.admit().unwrap();
        let _second = limit.clone().admit().unwrap();
        assert_eq!(limit.admit().unwrap_err(), TooManyCalls { calls_max: 2 });
        assert_eq!(limit.in_flight(), 2);
        drop(first);
        assert!(limit.admit().is_ok());
        assert_eq!(Failure::from(TooManyCalls { calls_max: 2 }).status, 503);
    }

    #[test]
    fn threads_never_exceed_the_limit_together() {
        let limit = InFlightLimit::new(3);
        let highest = AtomicUsize::new(0);
        let inside = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        if let Ok(_admitted) = limit.admit() {
                            highest.fetch_max(inside.fetch_add(1, Relaxed) + 1, Relaxed);
                            inside.fetch_sub(1, Relaxed);
                        }
                    }
                });
            }
        });
        assert!((1..=3).contains(&highest.load(Relaxed)));
        assert_eq!(limit.in_flight(), 0);
    }
}
