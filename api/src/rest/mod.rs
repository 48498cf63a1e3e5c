//! The `/v2` HTTP API over the catalog, call records and logs (`spec/api-v2.md`, parts 1 to 3 and 8), and Kiln's own path
//! to what became of a call.
//!
//! Owns paths, statuses, bodies and paging; what is valid belongs to [`kiln_shared::model`]. Bodies, their
//! content types and the line feed after errors are those of Fn's server (`spec/observed-fn.txt`).

mod apps;
mod calls;
mod error;
mod fns;
mod params;
mod redirect;
mod reply;
mod request;
mod root;
mod triggers;
mod why;

use std::future::ready;
use std::sync::Arc;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::Response;
use axum::{Extension, Router};
use kiln_shared::queue::Queue;
use utoipa_axum::router::OpenApiRouter;

use crate::Catalog;
use error::error_body;
use redirect::Paths;
use root::DocumentJson;

/// The version of Fn's API that Kiln answers as. Clients compare it with their own; Kiln's own version is in
/// the header `Kiln-Version`.
pub const FN_API_VERSION: &str = "0.3.753";

/// Largest body of a request, in bytes, unless configured.
const BODY_BYTES_MAX: u64 = 1 << 20;

/// What the API works on.
#[derive(Debug, Clone)]
pub struct ApiState {
    /// The catalog.
    pub catalog: Catalog,
    /// Where callers reach the balancer, `http(s)://host[:port]`, for the endpoints that resources show.
    /// `None` takes the host that the request names.
    pub public_url: Option<String>,
    /// Larger bodies get 413.
    pub body_bytes_max: u64,
    /// Where detached calls are on their way.
    pub queue: Option<Arc<dyn Queue>>,
}

impl ApiState {
    /// An API on `catalog` with everything else as is usual, and without a queue.
    pub fn new(catalog: Catalog) -> Self {
        Self { catalog, public_url: None, body_bytes_max: BODY_BYTES_MAX, queue: None }
    }
}

/// All paths of the API. Everything else gets 404 here, so merge the balancer's own paths before.
pub fn router(state: ApiState) -> Router {
    let (routes, document) = OpenApiRouter::with_openapi(root::head())
        .merge(root::routes())
        .merge(apps::routes())
        .merge(fns::routes())
        .merge(calls::routes())
        .merge(triggers::routes())
        .split_for_parts();
    let paths = Arc::new(Paths::of(&document));
    routes
        .merge(why::routes())
        .layer(Extension(Arc::new(DocumentJson::new(document))))
        .fallback(move |request: Request| ready(unknown_path(&paths, &request)))
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(Arc::new(state))
}

fn unknown_path(paths: &Paths, request: &Request) -> Response {
    let (method, uri) = (request.method(), request.uri());
    paths.redirect(method, uri).unwrap_or_else(|| {
        let message = format!("Path not found: {method} {}", request::decoded_path(uri));
        error_body(StatusCode::NOT_FOUND, &message)
    })
}

async fn method_not_allowed(request: Request) -> Response {
    let message =
        format!("Method not allowed: {} {}", request.method(), request::decoded_path(request.uri()));
    error_body(StatusCode::METHOD_NOT_ALLOWED, &message)
}
