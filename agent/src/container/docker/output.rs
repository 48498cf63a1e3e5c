//! What a container writes: the engine's attach stream into a bounded channel, and its standard input.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use bollard::container::LogOutput;
use bollard::errors::Error;
use futures_util::{Stream, StreamExt};
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;

use crate::container::{Output, OutputSource};

/// Pieces that wait for a reader; the engine sends at most 32 KiB in one.
pub(super) const PIECES_MAX: usize = 4;

/// How much of a start's output is kept, in bytes.
const TAIL_BYTES_MAX: usize = 4096;

type LogStream = Pin<Box<dyn Stream<Item = Result<LogOutput, Error>> + Send>>;

/// What to do with output that nobody wants any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unread {
    /// Close the stream; the engine then throws it away.
    Close,
    /// Read on and throw away: the stream carries the input as well.
    Discard,
}

/// Passes `stream` on until it ends, or until nobody listens any more.
pub(super) async fn pump(mut stream: LogStream, sender: mpsc::Sender<Output>, unread: Unread) {
    while let Some(Ok(piece)) = stream.next().await {
        let output = match piece {
            LogOutput::StdErr { message } => Output { source: OutputSource::Stderr, bytes: message },
            LogOutput::StdOut { message } | LogOutput::Console { message } => {
                Output { source: OutputSource::Stdout, bytes: message }
            }
            LogOutput::StdIn { .. } => continue,
        };
        if sender.send(output).await.is_err() {
            if unread == Unread::Close {
                return;
            }
            break;
        }
    }
    while let Some(Ok(_)) = stream.next().await {}
}

/// The end of what a container wrote while it started. Reading it keeps a talkative container going; nobody
/// else listens yet (`spec/container-contract.md`, A6).
#[derive(Debug, Default)]
pub(super) struct StartOutput {
    tail: VecDeque<u8>,
}

impl StartOutput {
    /// Takes up the next piece; pending for ever after the last.
    pub(super) async fn read(&mut self, output: &mut mpsc::Receiver<Output>) {
        match output.recv().await {
            Some(piece) => self.push(&piece.bytes),
            None => std::future::pending().await,
        }
    }

    /// What was kept: the last 4 KiB.
    pub(super) fn text(&mut self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.tail.make_contiguous())
    }

    /// Takes up `bytes`.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(TAIL_BYTES_MAX)..];
        let surplus = (self.tail.len() + bytes.len()).saturating_sub(TAIL_BYTES_MAX);
        self.tail.drain(..surplus);
        self.tail.extend(bytes);
    }
}

/// The input of a container. Shutting it down gives the process an end of file.
pub(super) struct Input {
    // Never locked: the mutex only makes a `Send` writer `Sync`.
    writer: Mutex<Pin<Box<dyn AsyncWrite + Send>>>,
}

impl Input {
    pub(super) fn new(writer: Pin<Box<dyn AsyncWrite + Send>>) -> Self {
        Self { writer: Mutex::new(writer) }
    }

    fn writer(&mut self) -> Pin<&mut (dyn AsyncWrite + Send)> {
        self.writer.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut()
    }
}

impl AsyncWrite for Input {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.writer().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer().poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_a_starts_output_is_kept() {
        let mut output = StartOutput::default();
        output.push(b"begin ");
        output.push(&[b'x'; TAIL_BYTES_MAX - 4]);
        output.push(b"end");
        assert_eq!(output.text().len(), TAIL_BYTES_MAX);
        assert!(output.text().starts_with(" xxx") && output.text().ends_with("xend"));
        output.push(&[b'y'; 2 * TAIL_BYTES_MAX]);
        assert!(output.text().bytes().all(|byte| byte == b'y'));
    }
}
