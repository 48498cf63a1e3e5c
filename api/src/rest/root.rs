//! What the API says about itself: `/`, `/version` and its OpenAPI document.

use std::sync::Arc;

use axum::Extension;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use kiln_shared::model::go_json;
use serde::Serialize;
use utoipa::openapi::OpenApi as Document;
use utoipa::{OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::reply::{JSON, Json};
use super::{ApiState, FN_API_VERSION};

/// The head of the OpenAPI document; paths and schemas come from the routes.
#[derive(OpenApi)]
#[openapi(info(
    title = "Kiln",
    description = "Apps, functions, triggers, calls and logs, compatible with version 2 of the Fn Project's API."
))]
struct Head;

/// An empty document.
pub(super) fn head() -> Document {
    Head::openapi()
}

pub(super) fn routes() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::new().routes(routes!(hello)).routes(routes!(version)).routes(routes!(openapi))
}

/// The document as it is served.
#[derive(Debug)]
pub(super) struct DocumentJson(String);

impl DocumentJson {
    /// Takes the paths of all routes in the form of OpenAPI, which knows no wildcards.
    pub(super) fn new(mut document: Document) -> Self {
        let paths = std::mem::take(&mut document.paths.paths);
        document.paths.paths =
            paths.into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
        Self(go_json(&document))
    }
}

#[derive(Debug, Serialize, ToSchema)]
struct Hello {
    goto: &'static str,
    hello: &'static str,
}

/// Fn's greeting, by which clients know that an API is there.
#[utoipa::path(get, path = "/", tag = "server", responses((status = 200, body = Hello)))]
async fn hello() -> Json<Hello> {
    Json(Hello { goto: "https://github.com/fnproject/fn", hello: "world!" })
}

#[derive(Debug, Serialize, ToSchema)]
struct Version {
    version: &'static str,
}

/// The version of Fn's API that is spoken here. Kiln's own version is in the header `Kiln-Version`.
#[utoipa::path(get, path = "/version", tag = "server", responses((status = 200, body = Version)))]
async fn version() -> Response {
    let kiln = [("kiln-version", env!("CARGO_PKG_VERSION"))];
    (kiln, Json(Version { version: FN_API_VERSION })).into_response()
}

/// This document.
#[utoipa::path(get, path = "/v2/openapi.json", tag = "server", responses((status = 200, body = Object)))]
async fn openapi(Extension(document): Extension<Arc<DocumentJson>>) -> Response {
    ([(CONTENT_TYPE, JSON)], document.0.clone()).into_response()
}
