//! An answer on its way out: its head, and how long the client is in the way.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;

use super::super::buffer::{MessageWriter, WriteFraming};
use super::super::date;
use super::super::headers::HeaderBlock;
use super::super::push_decimal;
use super::Response;
use crate::body::Body;

/// What the answer's head depends on beside the answer.
#[derive(Clone, Copy)]
pub(super) struct Form {
    pub(super) version: http::Version,
    pub(super) close: bool,
    pub(super) is_head: bool,
    pub(super) date: bool,
}

/// Builds the head of an answer. Returns the writer and whether the body ends with the connection.
pub(super) fn response_writer(response: Response, form: Form) -> (MessageWriter, bool) {
    let Form { version, close, is_head, date } = form;
    let http11 = version == http::Version::HTTP_11;
    let Response { status, headers, mut body } = response;
    let bodyless = status == 204 || status == 304;
    if bodyless {
        body = Body::Empty;
    }
    let framing = match WriteFraming::of(&body) {
        WriteFraming::Chunked if !http11 => WriteFraming::UntilClose,
        framing => framing,
    };
    let mut head = begin_head(if http11 { b"HTTP/1.1 " } else { b"HTTP/1.0 " }, status, &headers);
    if date {
        date::push_date(&mut head);
    }
    let mut until_close = false;
    match framing {
        WriteFraming::Fixed(_) if bodyless => {}
        WriteFraming::Fixed(length) => push_length(length, &mut head),
        WriteFraming::Chunked => head.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        WriteFraming::UntilClose => until_close = true,
    }
    if close || until_close {
        head.extend_from_slice(b"Connection: close\r\n");
    } else if !http11 {
        head.extend_from_slice(b"Connection: keep-alive\r\n");
    }
    head.extend_from_slice(b"\r\n");
    let writer = if is_head {
        MessageWriter::new(head, Body::Empty, WriteFraming::Fixed(0))
    } else {
        MessageWriter::new(head, body, framing)
    };
    (writer, until_close)
}

/// The status line and the answer's own header lines.
fn begin_head(version: &[u8], status: u16, headers: &HeaderBlock) -> Vec<u8> {
    let mut head = Vec::with_capacity(headers.as_bytes().len() + 192);
    head.extend_from_slice(version);
    push_decimal(u64::from(status), &mut head);
    head.push(b' ');
    let reason = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    head.extend_from_slice(reason.unwrap_or("").as_bytes());
    head.extend_from_slice(b"\r\n");
    head.extend_from_slice(headers.as_bytes());
    head
}

fn push_length(length: u64, head: &mut Vec<u8>) {
    head.extend_from_slice(b"Content-Length: ");
    push_decimal(length, head);
    head.extend_from_slice(b"\r\n");
}

/// The head and body of an answer for a carrier that shows by itself where the body ends.
pub(crate) fn self_framed(response: Response) -> (Vec<u8>, Body) {
    let Response { status, headers, mut body } = response;
    let mut head = begin_head(b"HTTP/1.1 ", status, &headers);
    if status == 204 || status == 304 {
        body = Body::Empty;
    } else if let Some(length) = body.length() {
        push_length(length, &mut head);
    }
    head.extend_from_slice(b"\r\n");
    (head, body)
}

/// Notes whether a write had to wait for the client.
pub(super) struct Watched<'a, W> {
    pub(super) writer: &'a mut W,
    pub(super) blocked: bool,
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Watched<'_, W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut *self.writer).poll_write(context, bytes);
        self.blocked = polled.is_pending();
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut *self.writer).poll_write_vectored(context, slices);
        self.blocked = polled.is_pending();
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.writer).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.writer).poll_shutdown(context)
    }
}
