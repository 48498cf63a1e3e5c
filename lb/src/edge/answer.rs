//! What a function's answer gets, or loses, on its way to the client.
//!
//! As Go's `net/http` does it for Fn: an answer that names no type gets one from its first bytes (`spec/api-v2.md`, part
//! 4), and what must not have a body loses it. Such a body is read to its end first, since dropping it would cancel
//! the call. Invariant: an answer that names its type and has a body passes as it is, before its first byte is here.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Method;
use http_body::Frame;
use kiln_shared::body::{Body, BodyError, BodyStream};
use kiln_shared::call::{CallResponse, Failure};
use kiln_shared::http1::HeaderBlock;

use super::sniff;

/// Makes the answer to a call of `method` what the client shall see.
///
/// # Errors
/// The body failed before anything was sent: the failure to answer with instead.
pub(super) async fn complete(method: &Method, response: CallResponse) -> Result<CallResponse, Failure> {
    let CallResponse { status, mut headers, mut body, stages } = response;
    if !has_content(status) {
        drain(body).await?;
        if status == 304 {
            headers = without_type(&headers);
        }
        return Ok(CallResponse { status, headers, body: Body::Empty, stages });
    }
    if is_sniffed(&headers) {
        let first = first_piece(&mut body).await?;
        if first.is_empty() {
            body = Body::Empty;
        } else {
            headers.push_valid(b"Content-Type", sniff::content_type(&first));
            body = with_first(first, body);
        }
    }
    if method == Method::HEAD {
        body = declared(drain(body).await?);
    }
    Ok(CallResponse { status, headers, body, stages })
}

/// False for statuses whose answers end with the head (RFC 9110, 15.3.5, 15.4.5).
pub(super) fn has_content(status: u16) -> bool {
    status != 204 && status != 304
}

/// True if the type is to be told from the body: Go does so unless the answer names a type or a coding.
fn is_sniffed(headers: &HeaderBlock) -> bool {
    headers.get("Content-Type").is_none() && headers.get("Content-Encoding").is_none_or(<[u8]>::is_empty)
}

/// 304 says nothing of a representation that it does not bring (RFC 9110, 15.4.5).
fn without_type(headers: &HeaderBlock) -> HeaderBlock {
    let mut kept = HeaderBlock::with_capacity(headers.as_bytes().len());
    for (name, value) in headers {
        if !name.eq_ignore_ascii_case(b"Content-Type") {
            kept.push_valid(name, value);
        }
    }
    kept
}

/// Takes the first piece off the body; empty if there is none.
async fn first_piece(body: &mut Body) -> Result<Bytes, Failure> {
    match body.next_chunk().await {
        Some(piece) => piece.map_err(|error| broken(&error)),
        None if body.length().is_some_and(|bytes| bytes > 0) => Err(Failure::no_response()),
        None => Ok(Bytes::new()),
    }
}

/// Puts the first piece back.
fn with_first(first: Bytes, rest: Body) -> Body {
    match rest {
        Body::Stream { stream, length } => {
            Body::Stream { stream: Box::pin(Begun { first: Some(first), rest: stream }), length }
        }
        Body::Empty | Body::Full(_) => Body::Full(first),
    }
}

/// Reads the body to its end and gives its length in bytes.
async fn drain(mut body: Body) -> Result<u64, Failure> {
    let declared_bytes = body.length();
    let mut bytes = 0;
    while let Some(piece) = body.next_chunk().await {
        bytes += piece.map_err(|error| broken(&error))?.len() as u64;
    }
    if declared_bytes.is_some_and(|declared_bytes| declared_bytes != bytes) {
        return Err(Failure::no_response());
    }
    Ok(bytes)
}

/// A body that is announced and not sent, for the answer to HEAD (RFC 9110, 9.3.2).
pub(super) fn declared(bytes: u64) -> Body {
    Body::Stream { stream: Box::pin(Body::Empty), length: Some(bytes) }
}

/// What Fn, which has the whole body before it answers, says to a body that broke.
fn broken(error: &BodyError) -> Failure {
    let failure = match error {
        BodyError::DeadlineExceeded => Failure::timed_out(),
        BodyError::TooLarge { .. } => Failure::response_body_too_large(),
        BodyError::Interrupted(_) => Failure::no_response(),
    };
    failure.with_detail(error.to_string())
}

/// A stream whose first piece was looked at.
struct Begun {
    first: Option<Bytes>,
    rest: BodyStream,
}

impl http_body::Body for Begun {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(Ok(Frame::data(first)))),
            None => self.rest.as_mut().poll_frame(context),
        }
    }
}
