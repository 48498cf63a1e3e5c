//! `/v2/triggers`, and the look-up of a trigger by its source.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use jiff::Timestamp;
use kiln_shared::model::{ApiError, HTTP_ENDPOINT, NEXT_TICK, Trigger, TriggerInput, TriggerType};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::ApiState;
use super::error::{ErrorBody, RestError};
use super::params::{PageParams, Params, cursor_with_id};
use super::reply::{Json, List, deleted};
use super::request::{BaseUrl, Given};

pub(super) fn routes() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(read, update, delete))
        .routes(routes!(root_by_source))
        .routes(routes!(by_source))
}

/// Shows where or when the trigger is called.
async fn annotated(state: &ApiState, mut trigger: Trigger, base: &BaseUrl) -> Result<Trigger, RestError> {
    let app = state.catalog.app(trigger.app_id.as_str()).await?;
    annotate(&mut trigger, base, &app.name);
    Ok(trigger)
}

fn annotate(trigger: &mut Trigger, base: &BaseUrl, app_name: &str) {
    match trigger.kind {
        TriggerType::Http => {
            trigger.annotations.insert(HTTP_ENDPOINT, endpoint(base, app_name, &trigger.source));
        }
        TriggerType::Schedule => {
            let scheduled = trigger.scheduled().ok().flatten();
            if let Some(tick) = scheduled.and_then(|call| call.schedule.next_after(Timestamp::now())) {
                trigger.annotations.insert(NEXT_TICK, tick.to_string());
            }
        }
    }
}

fn endpoint(base: &BaseUrl, app_name: &str, source: &str) -> String {
    format!("{}/t/{app_name}{source}", base.0)
}

/// A page of triggers, sorted by name.
#[utoipa::path(get, path = "/v2/triggers", tag = "triggers", params(("app_id" = String, Query), ("fn_id" = Option<String>, Query), PageParams), responses((status = 200, body = List<Trigger>), (status = 400, body = ErrorBody)))]
async fn list(
    State(state): State<Arc<ApiState>>,
    base: BaseUrl,
    params: Params,
) -> Result<Json<List<Trigger>>, RestError> {
    let app_id = params.get("app_id").ok_or(ApiError::TriggerAppIdMissing)?;
    let page = params.page()?;
    let mut triggers = state.catalog.triggers(app_id, params.get("fn_id"), &page).await?;
    if !triggers.is_empty() {
        let app = state.catalog.app(app_id).await?;
        for trigger in &mut triggers {
            annotate(trigger, &base, &app.name);
        }
    }
    let next = |trigger: &Trigger| cursor_with_id(&trigger.name, trigger.id.as_str());
    Ok(Json(List::new(triggers, page.items_max, next)))
}

/// Creates a trigger.
#[utoipa::path(post, path = "/v2/triggers", tag = "triggers", request_body = TriggerInput, responses((status = 200, body = Trigger), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 413, body = ErrorBody)))]
async fn create(
    State(state): State<Arc<ApiState>>,
    base: BaseUrl,
    Given(input): Given<TriggerInput>,
) -> Result<Json<Trigger>, RestError> {
    let trigger = state.catalog.create_trigger(&input).await?;
    Ok(Json(annotated(&state, trigger, &base).await?))
}

/// Reads a trigger.
#[utoipa::path(get, path = "/v2/triggers/{trigger_id}", tag = "triggers", params(("trigger_id" = String, Path)), responses((status = 200, body = Trigger), (status = 404, body = ErrorBody)))]
async fn read(
    State(state): State<Arc<ApiState>>,
    base: BaseUrl,
    Path(id): Path<String>,
) -> Result<Json<Trigger>, RestError> {
    let trigger = state.catalog.trigger(&id).await?;
    Ok(Json(annotated(&state, trigger, &base).await?))
}

/// Merges a change into a trigger; fields that are not given stay.
#[utoipa::path(put, path = "/v2/triggers/{trigger_id}", tag = "triggers", params(("trigger_id" = String, Path)), request_body = TriggerInput, responses((status = 200, body = Trigger), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 413, body = ErrorBody)))]
async fn update(
    State(state): State<Arc<ApiState>>,
    base: BaseUrl,
    Path(id): Path<String>,
    Given(input): Given<TriggerInput>,
) -> Result<Json<Trigger>, RestError> {
    if !input.id.is_empty() && input.id != id {
        return Err(ApiError::TriggerIdMismatch.into());
    }
    let trigger = state.catalog.update_trigger(&id, &input).await?;
    Ok(Json(annotated(&state, trigger, &base).await?))
}

/// Deletes a trigger and all that belongs to it.
#[utoipa::path(delete, path = "/v2/triggers/{trigger_id}", tag = "triggers", params(("trigger_id" = String, Path)), responses((status = 204), (status = 404, body = ErrorBody)))]
async fn delete(State(state): State<Arc<ApiState>>, Path(id): Path<String>) -> Result<Response, RestError> {
    state.catalog.delete_trigger(&id).await?;
    Ok(deleted())
}

/// The trigger of an app with the source `/`.
#[utoipa::path(get, path = "/v2/runner/apps/{app_id}/triggerBySource/{type}/", tag = "triggers", params(("app_id" = String, Path), ("type" = String, Path)), responses((status = 200, body = Trigger), (status = 404, body = ErrorBody)))]
async fn root_by_source(
    state: State<Arc<ApiState>>,
    base: BaseUrl,
    Path((app_id, kind)): Path<(String, String)>,
) -> Result<Json<Trigger>, RestError> {
    by_source(state, base, Path((app_id, kind, String::new()))).await
}

/// The trigger of an app with exactly this source.
#[utoipa::path(get, path = "/v2/runner/apps/{app_id}/triggerBySource/{type}/{*source}", tag = "triggers", params(("app_id" = String, Path), ("type" = String, Path), ("source" = String, Path)), responses((status = 200, body = Trigger), (status = 404, body = ErrorBody)))]
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
