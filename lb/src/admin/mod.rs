//! What operators ask of a balancer and tell its nodes: `/kiln/v1`.
//!
//! Owns the paths and the shapes ([`kiln_shared::model::NodeResource`]); what is shown and done belongs to [`Nodes`] and
//! [`crate::fleet`]. What became of a call that ended is the API's (`/kiln/v1/calls/{call_id}/why`).

mod queue;
mod resource;
mod warmth;
mod why;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use kiln_api::Catalog;
use kiln_shared::identity::{Peer, Role};
use kiln_shared::ids::{FunctionId, NodeId};
use kiln_shared::link::message::Command;
use kiln_shared::model::{FleetResource, FunctionWhy, NodeResource};
use kiln_shared::queue::Queue;
use serde_json::json;
use std::sync::Arc;

use self::queue::QueueAdmin;
use crate::fleet::Address;
use crate::fleet::FleetReader;
use crate::link::RemovedNodes;
use crate::nodes::{Look, Nodes, TellError};
use crate::route::RouteReader;

/// What the paths work on.
#[derive(Debug, Clone)]
pub struct Admin {
    /// The balancer's name.
    pub balancer: String,
    /// The nodes.
    pub nodes: Nodes,
    /// For the names of functions.
    pub routes: RouteReader,
    /// For what placement would do.
    pub fleet: FleetReader,
    /// Where removed nodes are remembered.
    pub catalog: Catalog,
    /// The removed nodes.
    pub removed: RemovedNodes,
    /// Where detached calls are on their way.
    pub queue: Arc<dyn Queue>,
}

/// The paths. A node that is not of this process can be drained and taken back, and told what to have warm; its answer
/// shows the node as it was when it was told.
pub fn router(admin: Admin) -> Router {
    let queue = QueueAdmin { queue: Arc::clone(&admin.queue), routes: admin.routes.clone() };
    Router::new()
        .route("/kiln/v1/fleet", get(fleet))
        .route("/kiln/v1/nodes", get(nodes))
        .route("/kiln/v1/nodes/{node}", get(node).delete(remove))
        .route("/kiln/v1/nodes/{node}/drain", post(drain))
        .route("/kiln/v1/nodes/{node}/undrain", post(undrain))
        .route("/kiln/v1/fns/{fn_id}/why", get(why))
        .merge(warmth::routes())
        .with_state(admin)
        .merge(queue::router(queue))
}

/// An answer that is an error.
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "message": self.1 }))).into_response()
    }
}

impl From<TellError> for Refusal {
    fn from(error: TellError) -> Self {
        let status = match error {
            TellError::Unknown(_) => StatusCode::NOT_FOUND,
            TellError::Away(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self(status, error.to_string())
    }
}

impl Admin {
    async fn look(&self) -> Result<Look, Refusal> {
        let stopping = || Refusal(StatusCode::SERVICE_UNAVAILABLE, "this balancer stops".to_owned());
        self.nodes.look().await.ok_or_else(stopping)
    }

    async fn node(&self, name: String) -> Result<NodeResource, Refusal> {
        let look = self.look().await?;
        let detail = look.details.iter().find(|detail| detail.id.as_str() == name);
        let detail = detail.ok_or_else(|| TellError::Unknown(NodeId::new(name)))?;
        let mut routes = self.routes.clone();
        let named = |id: &FunctionId| {
            let spec = &routes.routes().function(id).ok()?.spec;
            Some(format!("{}/{}", spec.app_name, spec.name))
        };
        Ok(resource::with_functions(detail, named))
    }

    async fn tell(&self, name: String, command: Command) -> Result<Json<NodeResource>, Refusal> {
        let id = NodeId::new(name.clone());
        self.nodes.tell(&id, command).await?;
        self.node(name).await.map(Json)
    }
}

async fn fleet(State(admin): State<Admin>) -> Result<Json<FleetResource>, Refusal> {
    let look = admin.look().await?;
    Ok(Json(FleetResource {
        balancer: admin.balancer.clone(),
        nodes: look.details.iter().map(resource::node).collect(),
        waiting_calls: look.waiting_calls,
        scale: look.scale.as_ref().map(resource::scale),
    }))
}

async fn nodes(State(admin): State<Admin>) -> Result<Response, Refusal> {
    let look = admin.look().await?;
    let items: Vec<NodeResource> = look.details.iter().map(resource::node).collect();
    Ok(Json(json!({ "items": items })).into_response())
}

async fn node(State(admin): State<Admin>, Path(name): Path<String>) -> Result<Json<NodeResource>, Refusal> {
    admin.node(name).await.map(Json)
}

async fn why(State(admin): State<Admin>, Path(fn_id): Path<String>) -> Result<Json<FunctionWhy>, Refusal> {
    let unknown = || Refusal(StatusCode::NOT_FOUND, "Fn not found".to_owned());
    why::of_function(&admin, &fn_id).map(Json).ok_or_else(unknown)
}

async fn drain(State(admin): State<Admin>, Path(name): Path<String>) -> Result<Json<NodeResource>, Refusal> {
    admin.tell(name, Command::Drain).await
}

async fn undrain(
    State(admin): State<Admin>,
    Path(name): Path<String>,
) -> Result<Json<NodeResource>, Refusal> {
    admin.tell(name, Command::Undrain).await
}

async fn remove(State(admin): State<Admin>, Path(name): Path<String>) -> Result<StatusCode, Refusal> {
    Peer::new(Role::Agent, name.as_str())
        .map_err(|error| Refusal(StatusCode::BAD_REQUEST, error.to_string()))?;
    let look = admin.look().await?;
    let detail = look.details.iter().find(|detail| detail.id.as_str() == name);
    if detail.is_some_and(|detail| detail.address == Address::Local) {
        let message = format!("{name} is in this balancer's own process and cannot be removed");
        return Err(Refusal(StatusCode::CONFLICT, message));
    }
    let removed = admin.removed.remove(&name, &admin.catalog).await;
    removed.map_err(|error| Refusal(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))?;
    tracing::warn!(node = name, "a node is removed from the fleet");
    Ok(StatusCode::NO_CONTENT)
}
