//! `/v2/triggers`, and the look-up of a trigger by its source.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use kiln_shared::ids::AppId;
use kiln_shared::model::{ApiError, HTTP_ENDPOINT, Trigger, TriggerInput, TriggerType};

use super::ApiState;
use super::error::RestError;
use super::params::{Params, cursor_with_id};
use super::reply::{Json, List, deleted};
use super::request::{BaseUrl, WholeBody};

pub(super) fn routes() -> Router<Arc<ApiState>> {
    Router::new()
        .route("/v2/triggers", get(list).post(create))
        .route("/v2/triggers/{trigger_id}", get(read).put(update).delete(delete))
        .route("/v2/runner/apps/{app_id}/triggerBySource/{type}/", get(root_by_source))
        .route("/v2/runner/apps/{app_id}/triggerBySource/{type}/{*source}", get(by_source))
}

/// Shows where the trigger is called.
async fn annotated(state: &ApiState, mut trigger: Trigger, base: &BaseUrl) -> Result<Trigger, RestError> {
    let app = state.catalog.app(trigger.app_id.as_str()).await?;
    trigger.annotations.insert(HTTP_ENDPOINT, endpoint(base, &app.name, &trigger.source));
    Ok(trigger)
}

fn endpoint(base: &BaseUrl, app_name: &str, source: &str) -> String {
    format!("{}/t/{app_name}{source}", base.0)
}

async fn list(
    State(state): State<Arc<ApiState>>,
    base: BaseUrl,
    params: Params,
) -> Result<Json<List<Trigger>>, RestError> {
    let app_id = params.get("app_id").ok_or(ApiError::TriggerAppIdMissing)?;
    let page = params.page()?;
    let mut triggers = state.catalog.triggers(app_id, params.get("fn_id"), &page).await?;
    let mut names: HashMap<AppId, String> = HashMap::new();
    for trigger in &mut triggers {
        if !names.contains_key(&trigger.app_id) {
            names.insert(trigger.app_id, state.catalog.app(trigger.app_id.as_str()).await?.name);
        }
        let value = endpoint(&base, &names[&trigger.app_id], &trigger.source);
        trigger.annotations.insert(HTTP_ENDPOINT, value);
    }
    let next = |trigger: &Trigger| cursor_with_id(&trigger.name, trigger.id.as_str());
    Ok(Json(List::new(triggers, page.items_max, next)))
}

async fn create(
    State(state): State<Arc<ApiState>>,
    base: BaseUrl,
    WholeBody(body): WholeBody,
) -> Result<Json<Trigger>, RestError> {
    let input = TriggerInput::from_json(&body)?;
    let trigger = state.catalog.create_trigger(&input).await?;
    Ok(Json(annotated(&state, trigger, &base).await?))
}

async fn read(
    State(state): State<Arc<ApiState>>,
    base: BaseUrl,
    Path(id): Path<String>,
) -> Result<Json<Trigger>, RestError> {
    let trigger = state.catalog.trigger(&id).await?;
    Ok(Json(annotated(&state, trigger, &base).await?))
}

async fn update(
    State(state): State<Arc<ApiState>>,
    base: BaseUrl,
    Path(id): Path<String>,
    WholeBody(body): WholeBody,
) -> Result<Json<Trigger>, RestError> {
    let input = TriggerInput::from_json(&body)?;
    if !input.id.is_empty() && input.id != id {
        return Err(ApiError::TriggerIdMismatch.into());
    }
    let trigger = state.catalog.update_trigger(&id, &input).await?;
    Ok(Json(annotated(&state, trigger, &base).await?))
}

async fn delete(State(state): State<Arc<ApiState>>, Path(id): Path<String>) -> Result<Response, RestError> {
    state.catalog.delete_trigger(&id).await?;
    Ok(deleted())
}

async fn root_by_source(
    state: State<Arc<ApiState>>,
    base: BaseUrl,
    Path((app_id, kind)): Path<(String, String)>,
) -> Result<Json<Trigger>, RestError> {
    by_source(state, base, Path((app_id, kind, String::new()))).await
}

async fn by_source(
    State(state): State<Arc<ApiState>>,
    base: BaseUrl,
    Path((app_id, kind, source)): Path<(String, String, String)>,
) -> Result<Json<Trigger>, RestError> {
    let kind = TriggerType::parse(&kind).ok_or(ApiError::TriggerNotFound)?;
    // One slash belongs to the path, so that both `/http/hello` and `/http//hello` mean `/hello`.
    let source = format!("/{}", source.strip_prefix('/').unwrap_or(&source));
    let trigger = state.catalog.trigger_by_source(&app_id, kind, &source).await?;
    Ok(Json(annotated(&state, trigger, &base).await?))
}
