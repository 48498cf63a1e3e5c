//! `/kiln/v1/calls/{call_id}/why`: what became of a call. Kiln's own, so not part of the document of Fn's API.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use kiln_shared::model::CallWhy;

use super::ApiState;
use super::error::RestError;
use super::reply::Json;
use crate::store::ToldCall;

pub(super) fn routes() -> Router<Arc<ApiState>> {
    Router::new().route("/kiln/v1/calls/{call_id}/why", get(why))
}

async fn why(
    State(state): State<Arc<ApiState>>,
    Path(call_id): Path<String>,
) -> Result<Json<CallWhy>, RestError> {
    let ToldCall { mut record, app_name, function_name } = state.catalog.store().told(&call_id).await?;
    let story = std::mem::take(&mut record.story);
    Ok(Json(CallWhy { call: record.into(), function: format!("{app_name}/{function_name}"), story }))
}
