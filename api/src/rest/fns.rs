//! `/v2/fns`.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use kiln_shared::model::{ApiError, FunctionInput, FunctionResource, INVOKE_ENDPOINT};

use super::ApiState;
use super::error::RestError;
use super::params::{Params, cursor};
use super::reply::{Json, List, deleted};
use super::request::{BaseUrl, WholeBody};

pub(super) fn routes() -> Router<Arc<ApiState>> {
    Router::new()
        .route("/v2/fns", get(list).post(create))
        .route("/v2/fns/{fn_id}", get(read).put(update).delete(delete))
}

/// Shows where the function is called.
fn annotated(mut function: FunctionResource, base: &BaseUrl) -> FunctionResource {
    function.annotations.insert(INVOKE_ENDPOINT, format!("{}/invoke/{}", base.0, function.id));
    function
}

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

async fn create(
    State(state): State<Arc<ApiState>>,
    base: BaseUrl,
    WholeBody(body): WholeBody,
) -> Result<Json<FunctionResource>, RestError> {
    let input = FunctionInput::from_json(&body)?;
    Ok(Json(annotated(state.catalog.create_function(&input).await?, &base)))
}

async fn read(
    State(state): State<Arc<ApiState>>,
    base: BaseUrl,
    Path(id): Path<String>,
) -> Result<Json<FunctionResource>, RestError> {
    Ok(Json(annotated(state.catalog.function(&id).await?, &base)))
}

async fn update(
    State(state): State<Arc<ApiState>>,
    base: BaseUrl,
    Path(id): Path<String>,
    WholeBody(body): WholeBody,
) -> Result<Json<FunctionResource>, RestError> {
    let input = FunctionInput::from_json(&body)?;
    if !input.id.is_empty() && input.id != id {
        return Err(ApiError::FnIdMismatch.into());
    }
    Ok(Json(annotated(state.catalog.update_function(&id, &input).await?, &base)))
}

async fn delete(State(state): State<Arc<ApiState>>, Path(id): Path<String>) -> Result<Response, RestError> {
    state.catalog.delete_function(&id).await?;
    Ok(deleted())
}
