//! `/v2/fns/{fn_id}/calls` and the calls' logs, as the API had them in mid-2018 (`spec/api-v2.md`, part 8). One call is
//! shown from the moment in which it was accepted, if it is in the queue; the list has those that ended.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use kiln_shared::model::{ApiError, Call};
use kiln_shared::queue::{MessageView, QueueError};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::ApiState;
use super::error::{ErrorBody, RestError};
use super::params::{Params, cursor};
use super::reply::{Json, List, TEXT};
use crate::StoreError;
use crate::store::CallsPage;

pub(super) fn routes() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(read)).routes(routes!(read_log))
}

/// A call's log.
#[derive(Debug, Serialize, ToSchema)]
struct LogAnswer {
    message: &'static str,
    log: Log,
}

#[derive(Debug, Serialize, ToSchema)]
struct Log {
    call_id: String,
    log: String,
}

/// A page of a function's calls that ended, newest first.
#[utoipa::path(get, path = "/v2/fns/{fn_id}/calls", tag = "calls", params(("fn_id" = String, Path), ("from_time" = Option<i64>, Query, description = "Only calls made after this second since 1970"), ("to_time" = Option<i64>, Query, description = "Only calls made before this second since 1970"), ("cursor" = Option<String>, Query), ("per_page" = Option<u32>, Query)), responses((status = 200, body = List<Call>), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn list(
    State(state): State<Arc<ApiState>>,
    Path(fn_id): Path<String>,
    params: Params,
) -> Result<Json<List<Call>>, RestError> {
    let page = CallsPage {
        before: params.cursor()?,
        from: epoch(params.get("from_time"), ApiError::FromTimeInvalid)?,
        to: epoch(params.get("to_time"), ApiError::ToTimeInvalid)?,
        items_max: params.items_max(),
    };
    let calls = state.catalog.store().calls(&fn_id, &page).await?;
    let shown = calls.into_iter().map(Call::from).collect();
    Ok(Json(List::new(shown, page.items_max, |call: &Call| cursor(call.id.as_str()))))
}

fn epoch(text: Option<&str>, refusal: ApiError) -> Result<Option<Timestamp>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    let time = text.parse().ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    time.map(Some).ok_or(refusal)
}

/// Reads a call that ended, or a detached one that was accepted.
#[utoipa::path(get, path = "/v2/fns/{fn_id}/calls/{call_id}", tag = "calls", params(("fn_id" = String, Path), ("call_id" = String, Path)), responses((status = 200, body = Call), (status = 404, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn read(
    State(state): State<Arc<ApiState>>,
    Path((fn_id, call_id)): Path<(String, String)>,
) -> Result<Json<Call>, RestError> {
    let record = match state.catalog.store().call(&fn_id, &call_id).await {
        Ok(record) => Some(record),
        Err(StoreError::Refused(ApiError::CallNotFound)) => None,
        Err(error) => return Err(error.into()),
    };
    match (queued(&state, &fn_id, &call_id).await, record) {
        (Ok(Some(message)), record) => Ok(Json(Call::of_message(&message, record))),
        // What ended is told though the queue is away.
        (Ok(None) | Err(_), Some(record)) => Ok(Json(record.into())),
        (Ok(None), None) => Err(ApiError::CallNotFound.into()),
        (Err(error), None) => Err(RestError::Queue(error)),
    }
}

/// The call as the queue has it, if it does.
async fn queued(state: &ApiState, fn_id: &str, call_id: &str) -> Result<Option<MessageView>, QueueError> {
    let (Some(queue), Ok(id)) = (&state.queue, call_id.parse()) else { return Ok(None) };
    let message = queue.inspect(id).await?;
    Ok(message.filter(|message| message.function_id.as_str() == fn_id))
}

/// Reads a call's log, as JSON or, where only `text/plain` is accepted, as it is.
#[utoipa::path(get, path = "/v2/fns/{fn_id}/calls/{call_id}/log", tag = "calls", params(("fn_id" = String, Path), ("call_id" = String, Path)), responses((status = 200, content((LogAnswer = "application/json"), (String = "text/plain"))), (status = 404, body = ErrorBody), (status = 406, body = ErrorBody)))]
async fn read_log(
    State(state): State<Arc<ApiState>>,
    Path((fn_id, call_id)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, RestError> {
    let form = LogForm::accepted(&headers).ok_or(ApiError::NotAcceptable)?;
    let log = state.catalog.store().log(&fn_id, &call_id).await?;
    Ok(match form {
        LogForm::Text => ([(CONTENT_TYPE, TEXT)], log).into_response(),
        LogForm::Json => {
            Json(LogAnswer { message: "Successfully loaded log", log: Log { call_id, log } }).into_response()
        }
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LogForm {
    Json,
    Text,
}

impl LogForm {
    /// The form that the client accepts; JSON wins over text, as in Fn.
    fn accepted(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let ranges: Vec<&str> = values
            .flat_map(|value| value.split(','))
            .map(|range| range.split(';').next().unwrap_or_default().trim())
            .filter(|range| !range.is_empty())
            .collect();
        let accepts = |range: &str| ranges.iter().any(|given| given.eq_ignore_ascii_case(range));
        if ranges.is_empty() || accepts("application/json") || accepts("*/*") {
            Some(Self::Json)
        } else if accepts("text/plain") {
            Some(Self::Text)
        } else {
            None
        }
    }
}
