//! HTTP/2 without TLS (prior knowledge), by hyper.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kiln_shared::body::{Body, BodyError};
use kiln_shared::http1::HeaderBlock;
use kiln_shared::http1::head::{BodyLength, HeadError, HeadLimits, RequestHead, is_hop_by_hop, is_host};
use kiln_shared::http1::server::{Request, Response, Service};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::Edge;
use super::answer::has_content;

/// Most streams that one client may have open.
const STREAMS_MAX: u32 = 256;

/// Serves the rest of a connection whose first bytes were read already.
pub(super) async fn serve(edge: Arc<Edge>, stream: TcpStream, read: BytesMut, stop: CancellationToken) {
    let headers_bytes_max = u32::try_from(edge.config.connection.head.bytes_max).unwrap_or(u32::MAX);
    let io = TokioIo::new(Rewound { read, stream });
    let service = hyper::service::service_fn(move |request| {
        let edge = Arc::clone(&edge);
        async move { Ok::<_, Infallible>(answer(&edge, request).await) }
    });
    let mut connection = std::pin::pin!(
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(headers_bytes_max)
            .keep_alive_interval(std::time::Duration::from_secs(30))
            .serve_connection(io, service)
    );
    // Both arms are polled again after a cancelled wait; the connection lives on.
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP/2 connection ended badly");
    }
}

async fn answer(edge: &Edge, request: http::Request<Incoming>) -> http::Response<Body> {
    let (parts, incoming) = request.into_parts();
    let mut headers = HeaderBlock::new();
    let mut host = parts.uri.authority().map(ToString::to_string).unwrap_or_default();
    for (name, value) in &parts.headers {
        if name == http::header::HOST {
            if host.is_empty() {
                host = value.to_str().unwrap_or_default().to_owned();
            }
        } else if name != http::header::CONTENT_LENGTH
            && name != http::header::EXPECT
            && !is_hop_by_hop(name.as_str().as_bytes(), value.as_bytes())
        {
            headers.push_title_case(name.as_str().as_bytes(), value.as_bytes());
        }
    }
    let length = http_body::Body::size_hint(&incoming).exact();
    let body = if length == Some(0) {
        Body::Empty
    } else {
        let stream = incoming.map_err(|error| BodyError::Interrupted(io::Error::other(error)));
        Body::Stream { stream: Box::pin(stream), length }
    };
    let is_head = parts.method == Method::HEAD;
    let target = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
    let head = RequestHead {
        method: parts.method,
        target,
        host,
        http11: true,
        headers,
        length: length.map_or(BodyLength::Chunked, BodyLength::Fixed),
        keep_alive: true,
        expects_continue: false,
    };
    let answered = match check(&head, &edge.config.connection.head) {
        Ok(()) => edge.handle(Request { head, body }).await,
        Err(error) => edge.refuse(error.into()),
    };
    let Response { status, headers, mut body } = answered;
    let mut response = http::Response::builder().status(status);
    for (name, value) in &headers {
        response = response.header(name, value);
    }
    if is_head && has_content(status) {
        // hyper writes what it is given, to HEAD too.
        if let Some(bytes) = body.length() {
            response = response.header(http::header::CONTENT_LENGTH, bytes);
        }
        body = Body::Empty;
    }
    response.body(body).unwrap_or_else(|_| {
        let mut broken = http::Response::new(Body::Empty);
        *broken.status_mut() = http::StatusCode::BAD_GATEWAY;
        broken
    })
}

/// Refuses what the edge would refuse over HTTP/1.1 and hyper lets pass.
fn check(head: &RequestHead, limits: &HeadLimits) -> Result<(), HeadError> {
    if head.host.is_empty() {
        return Err(HeadError::Malformed("no Host header"));
    }
    if !is_host(&head.host) {
        return Err(HeadError::Malformed("bad Host header"));
    }
    if head.target.len() > limits.target_bytes_max {
        return Err(HeadError::TargetTooLong);
    }
    // An agent would not read it: it allows little more.
    if head.headers.iter().count() > limits.fields_max {
        return Err(HeadError::TooLarge);
    }
    Ok(())
}

/// A stream that gives back first what was read from it before.
struct Rewound {
    read: BytesMut,
    stream: TcpStream,
}

impl AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let taken = self.read.len().min(buffer.remaining());
        buffer.put_slice(&self.read[..taken]);
        self.read.advance(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
