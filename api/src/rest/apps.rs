//! `/v2/apps`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use kiln_shared::model::{ApiError, App, AppInput};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::ApiState;
use super::error::{ErrorBody, RestError};
use super::params::{PageParams, Params, cursor};
use super::reply::{Json, List, deleted};
use super::request::Given;

pub(super) fn routes() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(read, update, delete))
}

/// A page of apps, sorted by name.
#[utoipa::path(get, path = "/v2/apps", tag = "apps", params(PageParams), responses((status = 200, body = List<App>), (status = 400, body = ErrorBody)))]
async fn list(State(state): State<Arc<ApiState>>, params: Params) -> Result<Json<List<App>>, RestError> {
    let page = params.page()?;
    let apps = state.catalog.apps(&page).await?;
    Ok(Json(List::new(apps, page.items_max, |app| cursor(&app.name))))
}

/// Creates an app.
#[utoipa::path(post, path = "/v2/apps", tag = "apps", request_body = AppInput, responses((status = 200, body = App), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 413, body = ErrorBody)))]
async fn create(
    State(state): State<Arc<ApiState>>,
    Given(input): Given<AppInput>,
) -> Result<Json<App>, RestError> {
    Ok(Json(state.catalog.create_app(&input).await?))
}

/// Reads an app.
#[utoipa::path(get, path = "/v2/apps/{app_id}", tag = "apps", params(("app_id" = String, Path)), responses((status = 200, body = App), (status = 404, body = ErrorBody)))]
async fn read(State(state): State<Arc<ApiState>>, Path(id): Path<String>) -> Result<Json<App>, RestError> {
    Ok(Json(state.catalog.app(&id).await?))
}

/// Merges a change into an app; fields that are not given stay.
#[utoipa::path(put, path = "/v2/apps/{app_id}", tag = "apps", params(("app_id" = String, Path)), request_body = AppInput, responses((status = 200, body = App), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 413, body = ErrorBody)))]
async fn update(
    State(state): State<Arc<ApiState>>,
    Path(id): Path<String>,
    Given(input): Given<AppInput>,
) -> Result<Json<App>, RestError> {
    if !input.id.is_empty() && input.id != id {
        return Err(ApiError::AppIdMismatch.into());
    }
    Ok(Json(state.catalog.update_app(&id, &input).await?))
}

/// Deletes an app and all that belongs to it.
#[utoipa::path(delete, path = "/v2/apps/{app_id}", tag = "apps", params(("app_id" = String, Path)), responses((status = 204), (status = 404, body = ErrorBody)))]
async fn delete(State(state): State<Arc<ApiState>>, Path(id): Path<String>) -> Result<Response, RestError> {
    state.catalog.delete_app(&id).await?;
    Ok(deleted())
}
