//! Moves the bytes of a connection: one task reads and writes for all its streams.
//!
//! Reads as much as there is, wakes whose bytes came, and goes to the end of the runtime's queue: what those then have to
//! say is written together. Over a stream of any kind: TCP, TLS, memory.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_util::io::poll_read_buf;

use super::Closed;
use super::connection::Connection;
use super::stream::Shared;
use crate::http1::server::timer::Timer;

/// Bytes asked for at once.
const READ_BYTES: usize = 64 << 10;
/// Most reads before others get their turn.
const READS_MAX: usize = 8;
/// Longest time in which the peer takes no byte.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time for telling the peer which rule it broke.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// What the driver keeps between turns.
pub(super) struct Driver<'a, I> {
    shared: &'a Shared,
    io: I,
    input: BytesMut,
    /// Something was written since the last flush.
    unflushed: bool,
    /// Since when the peer has taken nothing though something waits.
    blocked: Option<Instant>,
    /// Longest time without a stream.
    idle_timeout: Duration,
    idle: Option<Instant>,
    timer: Timer,
}

impl<'a, I: AsyncRead + AsyncWrite + Unpin> Driver<'a, I> {
    pub(super) fn new(shared: &'a Shared, io: I, idle_timeout: Duration) -> Self {
        Self {
            shared,
            io,
            input: BytesMut::new(),
            unflushed: false,
            blocked: None,
            idle_timeout,
            idle: None,
            timer: Timer::new(),
        }
    }

    /// One turn. Ready when the connection has ended, and how.
    pub(super) fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<Closed> {
        match self.turn(context) {
            Ok(()) => Poll::Pending,
            Err(how) => {
                self.shared.lock().close(how.clone());
                Poll::Ready(how)
            }
        }
    }

    fn turn(&mut self, context: &mut Context<'_>) -> Result<(), Closed> {
        let mut connection = self.shared.lock();
        connection.set_driver(context);
        let mut reads = 0;
        loop {
            Self::write(&mut self.io, &mut connection, &mut self.unflushed, &mut self.blocked, context)?;
            if connection.is_done() && !self.unflushed {
                return Err(Closed::Unused);
            }
            if !connection.may_read() {
                break;
            }
            if self.input.capacity() - self.input.len() < READ_BYTES / 2 {
                self.input.reserve(READ_BYTES);
            }
            match poll_read_buf(Pin::new(&mut self.io), context, &mut self.input) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => return Err(Closed::ByPeer),
                Poll::Ready(Ok(_)) => connection.receive(&mut self.input)?,
                Poll::Ready(Err(error)) => return Err(failed(&error)),
            }
            reads += 1;
            if reads == READS_MAX {
                context.waker().wake_by_ref();
                break;
            }
        }
        if reads > 0 && !connection.out.is_empty() && self.blocked.is_none() {
            context.waker().wake_by_ref();
        }
        let quiet = connection.is_quiet();
        drop(connection);
        self.keep_time(quiet, context)
    }

    fn write(
        io: &mut I,
        connection: &mut Connection,
        unflushed: &mut bool,
        blocked: &mut Option<Instant>,
        context: &mut Context<'_>,
    ) -> Result<(), Closed> {
        let before = connection.out.written_bytes();
        let mut polled = Poll::Ready(Ok(()));
        if !connection.out.is_empty() {
            *unflushed = true;
            polled = connection.out.poll_write(context, io);
        }
        if *unflushed && matches!(polled, Poll::Ready(Ok(()))) {
            polled = Pin::new(io).poll_flush(context);
            *unflushed = polled.is_pending();
        }
        match polled {
            Poll::Ready(Ok(())) => *blocked = None,
            Poll::Ready(Err(error)) => return Err(failed(&error)),
            Poll::Pending if blocked.is_none() || connection.out.written_bytes() > before => {
                *blocked = Some(Instant::now());
            }
            Poll::Pending => {}
        }
        connection.wake_crowded();
        Ok(())
    }

    /// Ends a connection whose peer takes nothing, and one that nobody needs.
    fn keep_time(&mut self, quiet: bool, context: &mut Context<'_>) -> Result<(), Closed> {
        if !quiet {
            self.idle = None;
        } else if self.idle.is_none() {
            self.idle = Some(Instant::now());
        }
        let deadline = match (self.blocked, self.idle) {
            (Some(since), _) => since + WRITE_TIMEOUT,
            (None, Some(since)) => since + self.idle_timeout,
            (None, None) => return Ok(()),
        };
        self.timer.set_at(deadline);
        match self.timer.poll(context) {
            Poll::Pending => Ok(()),
            Poll::Ready(()) if self.blocked.is_some() => Err(Closed::Stalled),
            Poll::Ready(()) => {
                // In order, so that no stream is lost that the peer opens just now.
                self.shared.lock().leave();
                Ok(())
            }
        }
    }

    /// Says why, if the peer is at fault, and closes.
    pub(super) async fn farewell(mut self) {
        let said = poll_fn(|context| {
            let mut connection = self.shared.lock();
            if connection.out.poll_write(context, &mut self.io).is_pending() {
                return Poll::Pending;
            }
            Pin::new(&mut self.io).poll_shutdown(context)
        });
        // A peer that is gone or does not listen has had its chance.
        drop(tokio::time::timeout(FAREWELL_TIMEOUT, said).await);
    }
}

/// Ends the streams of a connection whose task ends, however it does.
pub(super) struct CloseOnDrop<'a>(pub(super) &'a Shared);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.lock().close(Closed::Unused);
    }
}

fn failed(error: &io::Error) -> Closed {
    Closed::Failed(error.to_string())
}
