//! The bridge to the HTTP API: management requests are few, so they go through the ordinary types.

use axum::Router;
use http::Method;
use http_body_util::BodyExt;
use kiln_shared::body::Body;
use kiln_shared::http1::HeaderBlock;
use kiln_shared::http1::head::RequestHead;
use kiln_shared::http1::server::Response;
use tower::ServiceExt;

use super::answer::declared;
use super::error_response;
use crate::route::Followed;

/// Lets the API answer. The answer to a change waits until calls see the change.
pub(super) async fn answer(api: Router, catalog: &Followed, head: RequestHead, body: Body) -> Response {
    let changes = !head.method.is_safe();
    let is_head = head.method == Method::HEAD;
    let mut builder =
        http::Request::builder().method(head.method).uri(&head.target).header(http::header::HOST, &head.host);
    if let Some(length) = body.length().filter(|&length| length > 0) {
        builder = builder.header(http::header::CONTENT_LENGTH, length);
    }
    for (name, value) in &head.headers {
        builder = builder.header(name, value);
    }
    let Ok(request) = builder.body(axum::body::Body::new(body)) else {
        return error_response(400, "malformed request");
    };
    let Ok(response) = api.oneshot(request).await;
    let (parts, body) = response.into_parts();
    if changes && parts.status.is_success() {
        catalog.caught_up().await;
    }
    let Ok(body) = body.collect().await else {
        return error_response(500, "internal server error");
    };
    let mut headers = HeaderBlock::new();
    for (name, value) in &parts.headers {
        if name != http::header::CONTENT_LENGTH && name != http::header::TRANSFER_ENCODING {
            headers.push_title_case(name.as_str().as_bytes(), value.as_bytes());
        }
    }
    let body = if is_head { unsent(&parts.headers) } else { Body::from(body.to_bytes()) };
    Response { status: parts.status.as_u16(), headers, body }
}

/// What the answer to HEAD announces; the API has left the body out already.
fn unsent(headers: &http::HeaderMap) -> Body {
    let length =
        headers.get(http::header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    length.map_or(Body::Empty, declared)
}
