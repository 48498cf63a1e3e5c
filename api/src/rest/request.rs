//! What handlers take from a request: its body as JSON, its base URL, its path as text.

use std::error::Error;
use std::sync::Arc;

use axum::body::to_bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::Uri;
use axum::http::header::{CONTENT_LENGTH, HOST};
use axum::http::request::Parts;

use http_body_util::LengthLimitError;
use kiln_shared::model::from_json;
use serde::de::DeserializeOwned;

use super::ApiState;
use super::error::RestError;

/// What the client sent as JSON, at most [`ApiState::body_bytes_max`] bytes of it.
pub(super) struct Given<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Arc<ApiState>> for Given<T> {
    type Rejection = RestError;

    async fn from_request(request: Request, state: &Arc<ApiState>) -> Result<Self, RestError> {
        let bytes_max = state.body_bytes_max;
        let declared =
            request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        if let Some(bytes) = declared.filter(|bytes| *bytes > bytes_max) {
            return Err(RestError::TooLarge { declared: Some(bytes), bytes_max });
        }
        let limit = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        let body = to_bytes(request.into_body(), limit).await.map_err(|error| {
            let too_long = error.source().is_some_and(<dyn Error>::is::<LengthLimitError>);
            if too_long { RestError::TooLarge { declared: None, bytes_max } } else { RestError::Interrupted }
        })?;
        Ok(Self(from_json(&body)?))
    }
}

/// `http(s)://host[:port]` without a slash at its end, where callers reach the balancer.
pub(super) struct BaseUrl(pub(super) String);

impl FromRequestParts<Arc<ApiState>> for BaseUrl {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<ApiState>) -> Result<Self, Self::Rejection> {
        if let Some(url) = &state.public_url {
            return Ok(Self(url.trim_end_matches('/').to_owned()));
        }
        let scheme = parts.uri.scheme_str().unwrap_or("http");
        let host = match parts.uri.authority() {
            Some(authority) => authority.as_str(),
            None => parts.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost"),
        };
        Ok(Self(format!("{scheme}://{host}")))
    }
}

/// The path with its escapes decoded, as Fn shows it in errors.
pub(super) fn decoded_path(uri: &Uri) -> String {
    let mut decoded = Vec::with_capacity(uri.path().len());
    let mut rest = uri.path().as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let escape = (byte == b'%').then(|| after.first_chunk::<2>()).flatten();
        let value = escape.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        decoded.push(value.unwrap_or(byte));
        rest = if value.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
