//! Bounds of one request's body and of all calls in flight.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use kiln_shared::call::{Failure, FailureKind};

/// A request body is larger than allowed (413).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooLarge {
    /// The head says so. Fn's words.
    #[error("Content-Length too large for this server, {declared_bytes} > max {bytes_max}")]
    Declared {
        /// What `Content-Length` says.
        declared_bytes: u64,
        /// What is allowed.
        bytes_max: u64,
    },
    /// It turned out so.
    #[error("Request content too large")]
    Received,
}

impl From<TooLarge> for Failure {
    fn from(error: TooLarge) -> Self {
        match error {
            TooLarge::Declared { .. } => Self::new(FailureKind::RequestTooLarge, 413, error.to_string()),
            TooLarge::Received => Self::request_too_large(),
        }
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

    /// Checks a body's length before it comes; `None` for a chunked one, which its [`BodyMeter`] stops.
    ///
    /// # Errors
    /// [`TooLarge::Declared`].
    pub fn check(&self, declared_bytes: Option<u64>) -> Result<BodyMeter, TooLarge> {
        match declared_bytes {
            Some(declared_bytes) if declared_bytes > self.bytes_max => {
                Err(TooLarge::Declared { declared_bytes, bytes_max: self.bytes_max })
            }
            _ => Ok(BodyMeter { left_bytes: self.bytes_max }),
        }
    }
}

/// Counts a body as it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyMeter {
    left_bytes: u64,
}

impl BodyMeter {
    /// Counts the next `bytes`.
    ///
    /// # Errors
    /// [`TooLarge::Received`]: the body is over the limit with these.
    pub fn count(&mut self, bytes: usize) -> Result<(), TooLarge> {
        self.left_bytes = self.left_bytes.checked_sub(bytes as u64).ok_or(TooLarge::Received)?;
        Ok(())
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

    #[test]
    fn a_declared_length_over_the_limit_is_refused_in_fns_words() {
        let error = BodyLimit::new(10).check(Some(11)).unwrap_err();
        let failure = Failure::from(error);
        assert_eq!(failure.status, 413);
        assert_eq!(failure.message, "Content-Length too large for this server, 11 > max 10");
        assert!(BodyLimit::new(10).check(Some(10)).is_ok());
    }

    #[test]
    fn a_chunked_body_is_stopped_at_the_limit() {
        let mut meter = BodyLimit::new(10).check(None).unwrap();
        assert_eq!(meter.count(6), Ok(()));
        assert_eq!(meter.count(4), Ok(()));
        assert_eq!(meter.count(1), Err(TooLarge::Received));
    }

    #[test]
    fn zero_is_no_limit() {
        assert!(BodyLimit::new(0).check(Some(u64::MAX)).is_ok());
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
