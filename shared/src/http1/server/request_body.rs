//! A request body that is read off the connection as it is wanted.
//!
//! Owns who has the connection's reader while a call runs: the body, until it has ended or is dropped, then the
//! connection again.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use tokio::io::{AsyncRead, AsyncWrite};

use super::super::buffer::{BODY_READ_BYTES, BodyDecoder, ReadBuffer};
use super::super::chunked::Decoded;
use super::super::head::RequestHead;
use super::timer::Timer;
use super::{ConnectionLimits, RequestError};
use crate::body::BodyError;

/// What a connection shares with the body that borrowed its reader.
pub(super) struct Lent<R> {
    returned: Mutex<Option<ReadBuffer<R>>>,
    finished: AtomicBool,
    fault: OnceLock<RequestError>,
    continue_state: Mutex<Continue>,
}

impl<R> fmt::Debug for Lent<R> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Lent").field("finished", &self.finished).finish_non_exhaustive()
    }
}

/// Where the wait for `100 Continue` stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Continue {
    /// The client waits, nobody wants the body yet.
    Held,
    /// Somebody wants it; so many bytes of the interim answer are written.
    Wanted(usize),
    /// There is nothing to say.
    Settled,
}

impl<R> Lent<R> {
    /// The reader, if the body has given it back.
    pub(super) fn take_back(&self) -> Option<ReadBuffer<R>> {
        self.returned.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What is wrong with the body, as far as it was read.
    pub(super) fn fault(&self) -> Option<RequestError> {
        self.fault.get().copied()
    }

    /// True once the body was read to its end.
    pub(super) fn is_finished(&self) -> bool {
        self.finished.load(Ordering::Acquire)
    }

    pub(super) fn poll_continue<W: AsyncWrite + Unpin>(
        &self,
        context: &mut Context<'_>,
        writer: &mut W,
    ) -> Poll<io::Result<()>> {
        const INTERIM: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
        let mut state = self.continue_state.lock().unwrap_or_else(PoisonError::into_inner);
        while let Continue::Wanted(written) = *state {
            let more = ready!(Pin::new(&mut *writer).poll_write(context, &INTERIM[written..]))?;
            let written = written + more;
            *state = if written == INTERIM.len() { Continue::Settled } else { Continue::Wanted(written) };
        }
        Poll::Ready(Ok(()))
    }
}

/// A request body that is read off the connection as it is wanted.
pub(super) struct RequestBody<R> {
    reader: Option<ReadBuffer<R>>,
    decoder: BodyDecoder,
    left_bytes: u64,
    bytes_max: u64,
    timeout: Duration,
    timer: Timer,
    /// The timer runs for the piece that is asked for.
    waiting: bool,
    lent: Arc<Lent<R>>,
}

impl<R> RequestBody<R> {
    /// Lends the reader to the body that follows `head`.
    pub(super) fn lend(
        reader: ReadBuffer<R>,
        head: &RequestHead,
        limits: &ConnectionLimits,
    ) -> (Self, Arc<Lent<R>>) {
        let lent = Arc::new(Lent {
            returned: Mutex::new(None),
            finished: AtomicBool::new(false),
            fault: OnceLock::new(),
            continue_state: Mutex::new(if head.expects_continue {
                Continue::Held
            } else {
                Continue::Settled
            }),
        });
        let body = Self {
            reader: Some(reader),
            decoder: BodyDecoder::new(head.length),
            left_bytes: limits.body_bytes_max,
            bytes_max: limits.body_bytes_max,
            timeout: limits.body_timeout,
            timer: Timer::new(),
            waiting: false,
            lent: Arc::clone(&lent),
        };
        (body, lent)
    }

    fn give_back(&mut self) {
        *self.lent.returned.lock().unwrap_or_else(PoisonError::into_inner) = self.reader.take();
    }
}

impl<R> Drop for RequestBody<R> {
    fn drop(&mut self) {
        if self.reader.is_some() {
            self.give_back();
        }
    }
}

impl<R: AsyncRead + Unpin + Send> http_body::Body for RequestBody<R> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let Some(reader) = this.reader.as_mut() else { return Poll::Ready(None) };
        {
            let mut state = this.lent.continue_state.lock().unwrap_or_else(PoisonError::into_inner);
            if *state == Continue::Held {
                *state = Continue::Wanted(0);
            }
        }
        // Set once per wait: a timer that its own wake-up moves would never end.
        if !this.waiting {
            this.waiting = true;
            this.timer.set(this.timeout);
        }
        loop {
            match this.decoder.decode(&mut reader.bytes) {
                Ok(Decoded::Data(data)) => {
                    this.waiting = false;
                    let Some(left_bytes) = this.left_bytes.checked_sub(data.len() as u64) else {
                        return Poll::Ready(Some(Err(BodyError::TooLarge { bytes_max: this.bytes_max })));
                    };
                    this.left_bytes = left_bytes;
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Ok(Decoded::End) => {
                    this.lent.finished.store(true, Ordering::Release);
                    this.give_back();
                    return Poll::Ready(None);
                }
                Ok(Decoded::NeedMore) => {}
                Err(error) => {
                    this.lent.fault.get_or_init(|| RequestError::Body(error));
                    return broken_off(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            }
            match reader.poll_fill(context, BODY_READ_BYTES) {
                Poll::Ready(Ok(0)) => return broken_off(io::ErrorKind::UnexpectedEof.into()),
                Poll::Ready(Ok(_)) => this.timer.set(this.timeout),
                Poll::Ready(Err(error)) => return broken_off(error),
                Poll::Pending => {
                    ready!(this.timer.poll(context));
                    this.lent.fault.get_or_init(|| RequestError::BodyTimeout);
                    return broken_off(io::ErrorKind::TimedOut.into());
                }
            }
        }
    }
}

fn broken_off(error: io::Error) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
    Poll::Ready(Some(Err(BodyError::Interrupted(error))))
}
