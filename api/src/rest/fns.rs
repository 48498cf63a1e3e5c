//! `/v2/fns`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use kiln_shared::model::{ApiError, FunctionInput, FunctionResource, INVOKE_ENDPOINT};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::ApiState;
use super::error::{ErrorBody, RestError};
use super::params::{PageParams, Params, cursor};
use super::reply::{Json, List, deleted};
use super::request::{BaseUrl, Given};

pub(super) fn routes() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(read, update, delete))
}

/// Shows where the function is called.
fn annotated(mut function: FunctionResource, base: &BaseUrl) -> FunctionResource {
    function.annotations.insert(INVOKE_ENDPOINT, format!("{}/invoke/{}", base.0, function.id));
    function
}

/// A page of fns, sorted by name.
#[utoipa::path(get, path = "/v2/fns", tag = "fns", params(("app_id" = String, Query), PageParams), responses((status = 200, body = List<FunctionResource>), (status = 400, body = ErrorBody)))]
async fn list(
    State(state): State<Arc<ApiState>>,
    base: BaseUrl,
    params: Params,
) -> Result<Json<List<FunctionResource>>, RestError> {
    let app_id = params.get("app_id").ok_or(ApiError::FnAppIdMissing)?;
    let page = params.page()?;
    let functions = state.catalog.functions(app_id, &page).await?;
    let shown = functions.into_iter().map(|function| annotated(function, &base)).collect();
    Ok(Json(List::new(shown, page.items_max, |function: &FunctionResource| cursor(&function.name))))
}

/// Creates a function.
#[utoipa::path(post, path = "/v2/fns", tag = "fns", request_body = FunctionInput, responses((status = 200, body = FunctionResource), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 413, body = ErrorBody)))]
async fn create(
    State(state): State<Arc<ApiState>>,
    base: BaseUrl,
    Given(input): Given<FunctionInput>,
) -> Result<Json<FunctionResource>, RestError> {
    Ok(Json(annotated(state.catalog.create_function(&input).await?, &base)))
}

/// Reads a function.
#[utoipa::path(get, path = "/v2/fns/{fn_id}", tag = "fns", params(("fn_id" = String, Path)), responses((status = 200, body = FunctionResource), (status = 404, body = ErrorBody)))]
async fn read(
    State(state): State<Arc<ApiState>>,
    base: BaseUrl,
    Path(id): Path<String>,
) -> Result<Json<FunctionResource>, RestError> {
    Ok(Json(annotated(state.catalog.function(&id).await?, &base)))
}

/// Merges a change into a function; fields that are not given stay.
#[utoipa::path(put, path = "/v2/fns/{fn_id}", tag = "fns", params(("fn_id" = String, Path)), request_body = FunctionInput, responses((status = 200, body = FunctionResource), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 413, body = ErrorBody)))]
async fn update(
    State(state): State<Arc<ApiState>>,
    base: BaseUrl,
    Path(id): Path<String>,
    Given(input): Given<FunctionInput>,
) -> Result<Json<FunctionResource>, RestError> {
    if !input.id.is_empty() && input.id != id {
        return Err(ApiError::FnIdMismatch.into());
    }
    Ok(Json(annotated(state.catalog.update_function(&id, &input).await?, &base)))
}

/// Deletes a function and all that belongs to it.
#[utoipa::path(delete, path = "/v2/fns/{fn_id}", tag = "fns", params(("fn_id" = String, Path)), responses((status = 204), (status = 404, body = ErrorBody)))]
async fn delete(State(state): State<Arc<ApiState>>, Path(id): Path<String>) -> Result<Response, RestError> {
    state.catalog.delete_function(&id).await?;
    Ok(deleted())
}
