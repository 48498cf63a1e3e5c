//! The API in this process: requests in, whole answers out.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, Request};
use kiln_api::{ApiState, Catalog, router};
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt;

use crate::databases;

/// Type of JSON answers.
pub(crate) const JSON: &str = "application/json; charset=utf-8";
/// Type of answers to bad JSON, and of plain text.
pub(crate) const TEXT: &str = "text/plain; charset=utf-8";

/// What is answered while the database is away.
pub(crate) const DATABASE_AWAY: &str =
    "the catalog's database cannot be reached; calls of known functions go on";

/// An empty database that can be opened more than once: a file, or one on the given server.
pub(crate) struct Shared {
    pub(crate) url: String,
    _home: TempDir,
}

impl Shared {
    pub(crate) async fn new() -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let url = match databases::given() {
            Some(server) => server.database().await,
            None => format!("sqlite://{}", home.path().join("new/directory/kiln.db").display()),
        };
        Self { url, _home: home }
    }
}

/// An API on a catalog of its own, or the one given.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) catalog: Catalog,
    router: Router,
}

/// A whole answer.
#[derive(Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_type: String,
    pub(crate) body: String,
}

impl Answer {
    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// A text at `pointer`.
    pub(crate) fn text(&self, pointer: &str) -> String {
        let json = self.json();
        let found = json.pointer(pointer).and_then(Value::as_str);
        found.unwrap_or_else(|| panic!("no text at {pointer}: {self:?}")).to_owned()
    }

    /// The names of a list's items.
    pub(crate) fn names(&self) -> Vec<String> {
        let json = self.json();
        let items = json["items"].as_array().unwrap_or_else(|| panic!("no items: {self:?}"));
        items.iter().map(|item| item["name"].as_str().expect("items have names").to_owned()).collect()
    }

    /// Asserts success; the answer.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!((self.status, self.content_type.as_str()), (200, JSON), "{self:?}");
        assert!(!self.body.ends_with('\n'), "{self:?}");
        self
    }

    /// Asserts a refusal with these words, to the byte.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, message: &str) {
        let content_type = if message == "Invalid JSON" { TEXT } else { JSON };
        let body = serde_json::json!({ "message": message }).to_string() + "\n";
        let expected = Answer { status, content_type: content_type.to_owned(), body };
        assert_eq!(*self, expected);
    }
}

impl Api {
    /// An API on an empty database of its own.
    pub(crate) async fn new() -> Self {
        let url = match databases::given() {
            Some(server) => server.database().await,
            None => "sqlite://:memory:".to_owned(),
        };
        Self::on(Catalog::open(&url).await.expect("an empty database opens"))
    }

    /// An API on the database at `url`.
    pub(crate) async fn open(url: &str) -> Self {
        Self::on(Catalog::open(url).await.expect("the database opens"))
    }

    pub(crate) fn on(catalog: Catalog) -> Self {
        Self::with(ApiState::new(catalog))
    }

    pub(crate) fn with(state: ApiState) -> Self {
        Self { catalog: state.catalog.clone(), router: router(state) }
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.expect("routers do not fail");
        let status = response.status().as_u16();
        let content_type =
            response.headers().get(CONTENT_TYPE).map_or("", |value| value.to_str().expect("ASCII"));
        let content_type = content_type.to_owned();
        let body = to_bytes(response.into_body(), usize::MAX).await.expect("bodies here are whole");
        Answer { status, content_type, body: String::from_utf8(body.to_vec()).expect("bodies here are text") }
    }

    pub(crate) async fn request(&self, method: &str, path: &str, body: impl Into<String>) -> Answer {
        let method: Method = method.parse().expect("a method");
        let request = Request::builder().method(method).uri(path).header("host", "kiln.test:8080");
        self.send(request.body(Body::from(body.into())).expect("a request")).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.request("GET", path, "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, body.to_string()).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Answer {
        self.request("PUT", path, body.to_string()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.request("DELETE", path, "").await
    }
}

impl Api {
    /// Creates an app; its id.
    pub(crate) async fn app(&self, name: &str) -> String {
        self.post("/v2/apps", &json!({ "name": name })).await.ok().text("/id")
    }

    /// Creates a function; its id.
    pub(crate) async fn function(&self, app_id: &str, name: &str) -> String {
        let body = json!({ "app_id": app_id, "name": name, "image": "me/image:1" });
        self.post("/v2/fns", &body).await.ok().text("/id")
    }

    /// Creates an HTTP trigger; its id.
    pub(crate) async fn trigger(&self, app_id: &str, fn_id: &str, name: &str, source: &str) -> String {
        let body =
            json!({ "app_id": app_id, "fn_id": fn_id, "name": name, "type": "http", "source": source });
        self.post("/v2/triggers", &body).await.ok().text("/id")
    }
}

/// `base` with the fields of `change` over it; `null` removes a field.
pub(crate) fn with(base: &Value, change: &Value) -> Value {
    let mut merged = base.as_object().expect("an object").clone();
    for (key, value) in change.as_object().expect("an object") {
        if value.is_null() {
            merged.remove(key);
        } else {
            merged.insert(key.clone(), value.clone());
        }
    }
    Value::Object(merged)
}
