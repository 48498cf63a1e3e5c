//! Refusals and failures as answers.

use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use kiln_shared::model::{ApiError, go_json};
use kiln_shared::queue::QueueError;
use serde::Serialize;
use utoipa::ToSchema;

use super::reply::{JSON, TEXT};
use crate::StoreError;

/// When a client should try again whose request found no database or no queue, in seconds.
const RETRY_AFTER_SECONDS: &str = "1";

/// Why a request did not get what it asked for.
#[derive(Debug)]
pub(super) enum RestError {
    /// The request is at fault.
    Refused(ApiError),
    /// The body is longer than allowed; its length where it was declared.
    TooLarge { declared: Option<u64>, bytes_max: u64 },
    /// The body broke off.
    Interrupted,
    /// The store failed.
    Store(StoreError),
    /// The queue of detached calls failed.
    Queue(QueueError),
}

impl From<ApiError> for RestError {
    fn from(error: ApiError) -> Self {
        Self::Refused(error)
    }
}

impl From<StoreError> for RestError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Refused(error) => Self::Refused(error),
            other => Self::Store(other),
        }
    }
}

impl IntoResponse for RestError {
    fn into_response(self) -> Response {
        match self {
            Self::Refused(error) => {
                let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::BAD_REQUEST);
                // Fn answers JSON that it cannot read with this type.
                let content_type = if error == ApiError::InvalidJson { TEXT } else { JSON };
                error_body_as(status, &error.to_string(), content_type)
            }
            Self::TooLarge { declared: Some(bytes), bytes_max } => error_body(
                StatusCode::PAYLOAD_TOO_LARGE,
                &format!("Content-Length too large for this server, {bytes} > max {bytes_max}"),
            ),
            Self::TooLarge { declared: None, .. } => {
                error_body(StatusCode::PAYLOAD_TOO_LARGE, "Request content too large")
            }
            Self::Interrupted => RestError::Refused(ApiError::InvalidJson).into_response(),
            Self::Store(error @ StoreError::Unreachable(_)) => {
                // Whoever lost sight of the database has logged it.
                tracing::debug!(error = &error as &dyn std::error::Error, "request to the catalog failed");
                let answer = error_body(StatusCode::SERVICE_UNAVAILABLE, &error.to_string());
                ([(RETRY_AFTER, RETRY_AFTER_SECONDS)], answer).into_response()
            }
            Self::Store(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "request to the catalog failed");
                error_body(StatusCode::INTERNAL_SERVER_ERROR, "internal server error")
            }
            Self::Queue(error) => {
                let answer = error_body(StatusCode::SERVICE_UNAVAILABLE, &error.to_string());
                ([(RETRY_AFTER, RETRY_AFTER_SECONDS)], answer).into_response()
            }
        }
    }
}

/// What every refusal says.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ErrorBody {
    /// Why, for people.
    message: String,
}

/// `{"message":"..."}` and a line feed.
pub(super) fn error_body(status: StatusCode, message: &str) -> Response {
    error_body_as(status, message, JSON)
}

fn error_body_as(status: StatusCode, message: &str, content_type: &'static str) -> Response {
    let body = go_json(&ErrorBody { message: message.to_owned() }) + "\n";
    (status, [(CONTENT_TYPE, content_type)], body).into_response()
}
