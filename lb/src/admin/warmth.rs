//! What a node has warm, at an operator's wish: containers before the first call, and none that are not needed.

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use kiln_shared::ids::{FunctionId, NodeId};
use kiln_shared::link::message::Command;
use kiln_shared::model::NodeResource;
use serde::Deserialize;

use super::{Admin, Refusal};
use crate::nodes::TellError;

/// Most containers that can be asked for at once. How many come is the node's to say.
const CONTAINERS_MAX: u32 = 1000;

/// The paths.
pub(super) fn routes() -> Router<Admin> {
    Router::new()
        .route("/kiln/v1/nodes/{node}/prewarm", post(prewarm))
        .route("/kiln/v1/nodes/{node}/evict", post(evict))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Prewarm {
    fn_id: String,
    /// Containers that there should be, idle or busy.
    containers: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Evict {
    fn_id: String,
}

/// A body in JSON, or why it is none.
pub(super) type Body<T> = Result<Json<T>, JsonRejection>;

/// The body.
///
/// # Errors
/// 400 with the reason.
pub(super) fn read<T>(body: Body<T>) -> Result<T, Refusal> {
    body.map(|Json(body)| body).map_err(|error| Refusal(StatusCode::BAD_REQUEST, error.body_text()))
}

fn function(text: &str) -> Result<FunctionId, Refusal> {
    text.parse().map_err(|_| Refusal(StatusCode::NOT_FOUND, "Function not found".to_owned()))
}

/// Containers of the function as it is deployed now, as far as the node has room that nobody uses.
async fn prewarm(
    State(admin): State<Admin>,
    Path(node): Path<String>,
    body: Body<Prewarm>,
) -> Result<Json<NodeResource>, Refusal> {
    let Prewarm { fn_id, containers } = read(body)?;
    if !(1..=CONTAINERS_MAX).contains(&containers) {
        let text = format!("containers must be 1 to {CONTAINERS_MAX}, not {containers}");
        return Err(Refusal(StatusCode::BAD_REQUEST, text));
    }
    let mut routes = admin.routes.clone();
    let found = routes.routes().function(&function(&fn_id)?).cloned();
    let found = found.map_err(|error| Refusal(StatusCode::NOT_FOUND, error.to_string()))?;
    let spec = Box::new(found.spec.clone());
    admin.tell(node, Command::Prewarm { spec, revision: found.revision, containers }).await
}

/// Idle containers of the function go, those of earlier revisions too. One that was deleted still has an id.
async fn evict(
    State(admin): State<Admin>,
    Path(node): Path<String>,
    body: Body<Evict>,
) -> Result<Json<NodeResource>, Refusal> {
    let function = function(&read(body)?.fn_id)?;
    let id = NodeId::new(node.clone());
    let look = admin.look().await?;
    let detail = look.details.iter().find(|detail| detail.id == id);
    let detail = detail.ok_or_else(|| TellError::Unknown(id.clone()))?;
    for of in detail.functions.iter().filter(|of| of.function == function) {
        admin.nodes.tell(&id, Command::Evict { function, revision: of.revision }).await?;
    }
    admin.node(node).await.map(Json)
}
