//! `/v2/apps`.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use kiln_shared::model::{ApiError, App, AppInput};

use super::ApiState;
use super::error::RestError;
use super::params::{Params, cursor};
use super::reply::{Json, List, deleted};
use super::request::WholeBody;

pub(super) fn routes() -> Router<Arc<ApiState>> {
    Router::new()
        .route("/v2/apps", get(list).post(create))
        .route("/v2/apps/{app_id}", get(read).put(update).delete(delete))
}

async fn list(State(state): State<Arc<ApiState>>, params: Params) -> Result<Json<List<App>>, RestError> {
    let page = params.page()?;
    let apps = state.catalog.apps(&page).await?;
    Ok(Json(List::new(apps, page.items_max, |app| cursor(&app.name))))
}

async fn create(
    State(state): State<Arc<ApiState>>,
    WholeBody(body): WholeBody,
) -> Result<Json<App>, RestError> {
    let input = AppInput::from_json(&body)?;
    Ok(Json(state.catalog.create_app(&input).await?))
}

async fn read(State(state): State<Arc<ApiState>>, Path(id): Path<String>) -> Result<Json<App>, RestError> {
    Ok(Json(state.catalog.app(&id).await?))
}

async fn update(
    State(state): State<Arc<ApiState>>,
    Path(id): Path<String>,
    WholeBody(body): WholeBody,
) -> Result<Json<App>, RestError> {
    let input = AppInput::from_json(&body)?;
    if !input.id.is_empty() && input.id != id {
        return Err(ApiError::AppIdMismatch.into());
    }
    Ok(Json(state.catalog.update_app(&id, &input).await?))
}

async fn delete(State(state): State<Arc<ApiState>>, Path(id): Path<String>) -> Result<Response, RestError> {
    state.catalog.delete_app(&id).await?;
    Ok(deleted())
}
