//! `/kiln/v1/queue`: detached calls as operators see them, cancel them and put dead ones back.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use jiff::Timestamp;
use kiln_shared::function::Function;
use kiln_shared::ids::{CallId, FunctionId};
use kiln_shared::model::{QueueFunction, QueueResource, QueuedCall, Redriven};
use kiln_shared::queue::{BATCH_MAX, Cancelled, List, MessageView, PAGE_MAX, Queue, QueueError, Redrive};
use serde::{Deserialize, Serialize};

use super::Refusal;
use super::warmth::{Body, read};
use crate::detached::is_delivery;
use crate::route::RouteReader;

/// Calls on a page of which the size was not given.
const PAGE_USUAL: usize = 100;
/// What stands for the function of messages that balancers POST themselves.
const DELIVERIES_NAME: &str = "(destinations that are URLs)";

/// What the paths work on.
#[derive(Debug, Clone)]
pub(super) struct QueueAdmin {
    /// The queue.
    pub(super) queue: Arc<dyn Queue>,
    /// For the names of functions.
    pub(super) routes: RouteReader,
}

/// The paths.
pub(super) fn router(admin: QueueAdmin) -> Router {
    Router::new()
        .route("/kiln/v1/queue", get(status))
        .route("/kiln/v1/queue/calls", get(list))
        .route("/kiln/v1/queue/calls/{call}", get(inspect).delete(cancel))
        .route("/kiln/v1/queue/redrive", post(redrive))
        .with_state(admin)
}

/// A page of calls.
#[derive(Debug, Serialize)]
struct CallsPage {
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
    items: Vec<QueuedCall>,
}

#[derive(Debug, Deserialize)]
struct Asked {
    function: Option<String>,
    state: Option<String>,
    cursor: Option<String>,
    per_page: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RedriveBody {
    call: Option<String>,
    app: Option<String>,
    function: Option<String>,
    max: Option<u64>,
}

impl From<QueueError> for Refusal {
    fn from(error: QueueError) -> Self {
        let status = match error {
            QueueError::Unavailable(_) | QueueError::Full { .. } => StatusCode::SERVICE_UNAVAILABLE,
            QueueError::Invalid(_) | QueueError::TooLarge { .. } => StatusCode::BAD_REQUEST,
            QueueError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error.to_string())
    }
}

fn bad(text: impl Into<String>) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, text.into())
}

fn unknown_call(call: &str) -> Refusal {
    Refusal(StatusCode::NOT_FOUND, format!("call {call} is not in the queue"))
}

impl QueueAdmin {
    fn name(&self, id: FunctionId) -> Option<String> {
        if is_delivery(id) {
            return Some(DELIVERIES_NAME.to_owned());
        }
        let mut routes = self.routes.clone();
        let spec = &routes.routes().function(&id).ok()?.spec;
        Some(format!("{}/{}", spec.app_name, spec.name))
    }

    fn named(&self, message: MessageView) -> QueuedCall {
        QueuedCall { function: self.name(message.function_id), message }
    }

    /// The function of these names. O(functions).
    fn function(&self, app: &str, name: &str) -> Result<FunctionId, Refusal> {
        let is_named =
            |function: &&Arc<Function>| function.spec.app_name == app && function.spec.name == name;
        let mut routes = self.routes.clone();
        let found = routes.routes().functions().find(is_named).map(|function| function.spec.id);
        found.ok_or_else(|| Refusal(StatusCode::NOT_FOUND, format!("function {app}/{name} not found")))
    }

    async fn inspect(&self, call: &str) -> Result<QueuedCall, Refusal> {
        let id: CallId = call.parse().map_err(|_| unknown_call(call))?;
        let message = self.queue.inspect(id).await?.ok_or_else(|| unknown_call(call))?;
        Ok(self.named(message))
    }
}

async fn status(State(admin): State<QueueAdmin>) -> Result<Json<QueueResource>, Refusal> {
    let depths = admin.queue.depth().await?;
    let now = Timestamp::now();
    let functions =
        depths.iter().map(|depth| QueueFunction::of(depth, admin.name(depth.function_id), now)).collect();
    Ok(Json(QueueResource::of(functions)))
}

async fn list(
    State(admin): State<QueueAdmin>,
    Query(asked): Query<Asked>,
) -> Result<Json<CallsPage>, Refusal> {
    let function_id = match asked.function.as_deref().map(|text| (text, text.split_once('/'))) {
        None => None,
        Some((_, Some((app, name)))) => Some(admin.function(app, name)?),
        Some((text, None)) => Some(text.parse().map_err(|_| bad("function must be an id or APP/FUNCTION"))?),
    };
    let state = asked.state.map(|text| text.parse().map_err(|error| bad(format!("state {error}"))));
    let messages_max = match asked.per_page {
        None => PAGE_USUAL,
        Some(text) => match text.parse() {
            Ok(size @ 1..=PAGE_MAX) => size,
            _ => return Err(bad(format!("per_page must be 1 to {PAGE_MAX}"))),
        },
    };
    let list = List { function_id, state: state.transpose()?, after: asked.cursor, messages_max };
    let page = admin.queue.list(list).await.map_err(|error| match error {
        QueueError::Invalid(text) => bad(format!("cursor: {text}")),
        error => error.into(),
    })?;
    let items = page.messages.into_iter().map(|message| admin.named(message)).collect();
    Ok(Json(CallsPage { next_cursor: page.next, items }))
}

async fn inspect(
    State(admin): State<QueueAdmin>,
    Path(call): Path<String>,
) -> Result<Json<QueuedCall>, Refusal> {
    admin.inspect(&call).await.map(Json)
}

async fn cancel(
    State(admin): State<QueueAdmin>,
    Path(call): Path<String>,
) -> Result<Json<QueuedCall>, Refusal> {
    let id = call.parse().map_err(|_| unknown_call(&call))?;
    match admin.queue.cancel(id).await? {
        Cancelled::Cancelled => admin.inspect(&call).await.map(Json),
        Cancelled::Running => Err(Refusal(
            StatusCode::CONFLICT,
            format!("call {call} runs; only one that waits can be cancelled"),
        )),
        Cancelled::Ended => Err(Refusal(StatusCode::CONFLICT, format!("call {call} has ended"))),
        Cancelled::Unknown => Err(unknown_call(&call)),
    }
}

async fn redrive(
    State(admin): State<QueueAdmin>,
    body: Body<RedriveBody>,
) -> Result<Json<Redriven>, Refusal> {
    let which = match read(body)? {
        RedriveBody { call: Some(call), app: None, function: None, max: None } => {
            return redrive_one(&admin, &call).await;
        }
        RedriveBody { call: None, app: Some(app), function: Some(function), max } => {
            let messages_max = match max.map(usize::try_from) {
                None => BATCH_MAX,
                Some(Ok(max @ 1..=BATCH_MAX)) => max,
                Some(_) => return Err(bad(format!("max must be 1 to {BATCH_MAX}"))),
            };
            Redrive::Function { function_id: admin.function(&app, &function)?, messages_max }
        }
        _ => return Err(bad("give call, or app and function; at most max (1000) are put back at once")),
    };
    Ok(Json(Redriven { redriven: admin.queue.redrive(which).await? }))
}

async fn redrive_one(admin: &QueueAdmin, call: &str) -> Result<Json<Redriven>, Refusal> {
    let id = call.parse().map_err(|_| unknown_call(call))?;
    let redriven = admin.queue.redrive(Redrive::Message(id)).await?;
    if redriven > 0 {
        return Ok(Json(Redriven { redriven }));
    }
    let state = admin.inspect(call).await?.message.state.as_str();
    Err(Refusal(StatusCode::CONFLICT, format!("call {call} is {state}; only dead ones are put back")))
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use kiln_shared::ids::AppId;
    use kiln_shared::queue::{NewMessage, Outcome, Reserve, Retry, Settlement};
    use serde_json::{Value, json};
    use std::time::Duration;
    use tempfile::TempDir;
    use tower::ServiceExt;

    use super::*;
    use crate::detached::testing::{demo, queue_in};

    struct World {
        queue: Arc<dyn Queue>,
        router: Router,
        function: FunctionId,
        _folder: TempDir,
    }

    impl World {
        async fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let queue = queue_in(&folder).await;
            let (table, function) = demo(&json!({}));
            let admin = QueueAdmin { queue: Arc::clone(&queue), routes: table.reader() };
            Self { queue, router: router(admin), function, _folder: folder }
        }

        async fn put(&self, delay_secs: u64) -> CallId {
            let message = NewMessage {
                delay: Duration::from_secs(delay_secs),
                ..NewMessage::new(CallId::generate(), self.function, AppId::generate(), "x")
            };
            self.queue.enqueue(vec![message]).await.expect("stored")[0].id()
        }

        /// A worker takes what is due and fails it for good.
        async fn kill_one(&self) {
            let reserve = Reserve::new("w", 1, Duration::from_secs(30));
            let receipt = self.queue.reserve(reserve).await.expect("asked")[0].receipt;
            let outcome = Outcome::Failed { error: "broken".to_owned(), retry: Retry::Never };
            self.queue.settle(vec![Settlement { receipt, outcome }]).await.expect("settled");
        }

        async fn ask(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
            let request = Request::builder().method(method).uri(format!("/kiln/v1/queue{path}"));
            let request = request.header("content-type", "application/json");
            let request = request.body(Body::from(body.to_string())).expect("a request");
            let answer = self.router.clone().oneshot(request).await.expect("routers do not fail");
            let status = answer.status().as_u16();
            let body = to_bytes(answer.into_body(), usize::MAX).await.expect("whole");
            (status, serde_json::from_slice(&body).expect("JSON"))
        }

        async fn refusal(&self, method: &str, path: &str, body: Value) -> (u16, String) {
            let (status, answer) = self.ask(method, path, body).await;
            (status, answer["message"].as_str().unwrap_or_default().to_owned())
        }
    }

    #[tokio::test]
    async fn depths_and_calls_are_shown_with_names() {
        let world = World::new().await;
        assert_eq!(
            world.ask("GET", "", json!({})).await,
            (200, json!({ "queued": 0, "delayed": 0, "running": 0, "dead": 0, "functions": [] }))
        );
        world.put(0).await;
        world.kill_one().await;
        let (due, late) = (world.put(0).await, world.put(3600).await);
        let (status, shown) = world.ask("GET", "", json!({})).await;
        assert_eq!(
            (status, &shown["queued"], &shown["delayed"], &shown["dead"]),
            (200, &json!(1), &json!(1), &json!(1))
        );
        assert_eq!(shown["functions"][0]["name"], json!("demo/hello"));
        let (_, call) = world.ask("GET", &format!("/calls/{late}"), json!({})).await;
        assert_eq!((&call["function"], &call["state"]), (&json!("demo/hello"), &json!("delayed")));
        let (_, page) = world.ask("GET", "/calls?per_page=2", json!({})).await;
        assert_eq!(page["items"].as_array().map(Vec::len), Some(2));
        let next = format!("/calls?cursor={}", page["next_cursor"].as_str().expect("another page"));
        let (_, page) = world.ask("GET", &next, json!({})).await;
        assert_eq!(page["items"][0]["id"], json!(late));
        for path in [
            "/calls?state=queued&function=demo/hello".to_owned(),
            format!("/calls?state=queued&function={}", world.function),
        ] {
            let (_, page) = world.ask("GET", &path, json!({})).await;
            assert_eq!(
                (page["items"].as_array().map(Vec::len), &page["items"][0]["id"]),
                (Some(1), &json!(due))
            );
        }
    }

    #[tokio::test]
    async fn what_waits_is_cancelled_and_nothing_else() {
        let world = World::new().await;
        let late = world.put(3600).await;
        let path = format!("/calls/{late}");
        let (status, call) = world.ask("DELETE", &path, json!({})).await;
        assert_eq!((status, &call["state"]), (200, &json!("cancelled")));
        assert_eq!(world.refusal("DELETE", &path, json!({})).await, (409, format!("call {late} has ended")));
        let runs = world.put(0).await;
        world.queue.reserve(Reserve::new("w", 1, Duration::from_secs(30))).await.expect("asked");
        let refusal = world.refusal("DELETE", &format!("/calls/{runs}"), json!({})).await;
        assert_eq!(refusal, (409, format!("call {runs} runs; only one that waits can be cancelled")));
        let unknown = CallId::generate();
        for path in [format!("/calls/{unknown}"), "/calls/x".to_owned()] {
            assert_eq!(world.ask("DELETE", &path, json!({})).await.0, 404);
            assert_eq!(world.ask("GET", &path, json!({})).await.0, 404);
        }
    }

    #[tokio::test]
    async fn dead_calls_are_put_back_one_by_one_or_by_function() {
        let world = World::new().await;
        let first = world.put(0).await;
        world.kill_one().await;
        for _ in 0..2 {
            world.put(0).await;
            world.kill_one().await;
        }
        let one = json!({ "call": first });
        assert_eq!(world.ask("POST", "/redrive", one.clone()).await, (200, json!({ "redriven": 1 })));
        let refusal = world.refusal("POST", "/redrive", one).await;
        assert_eq!(refusal, (409, format!("call {first} is queued; only dead ones are put back")));
        let function = |max: u64| json!({ "app": "demo", "function": "hello", "max": max });
        assert_eq!(world.ask("POST", "/redrive", function(1)).await, (200, json!({ "redriven": 1 })));
        assert_eq!(world.ask("POST", "/redrive", function(9)).await, (200, json!({ "redriven": 1 })));
        assert_eq!(world.ask("POST", "/redrive", json!({ "call": CallId::generate() })).await.0, 404);
    }

    #[tokio::test]
    async fn a_bad_request_is_told_which_field_is_wrong() {
        let world = World::new().await;
        for (path, field) in [
            ("/calls?state=asleep", "state"),
            ("/calls?per_page=0", "per_page"),
            ("/calls?per_page=501", "per_page"),
            ("/calls?per_page=x", "per_page"),
            ("/calls?cursor=x", "cursor"),
            ("/calls?function=hello", "function"),
        ] {
            let (status, text) = world.refusal("GET", path, json!({})).await;
            assert!(status == 400 && text.starts_with(field), "{path}: {status} {text}");
        }
        for (body, field) in [
            (json!({ "app": "demo", "function": "hello", "max": 0 }), "max"),
            (json!({ "app": "demo", "function": "hello", "max": 1001 }), "max"),
            (json!({ "app": "demo" }), "function"),
            (json!({}), "call"),
            (json!({ "cal": "x" }), "cal"),
        ] {
            let (status, text) = world.refusal("POST", "/redrive", body.clone()).await;
            assert!((status == 400 || status == 422) && text.contains(field), "{body}: {status} {text}");
        }
        let refusal = world.refusal("GET", "/calls?function=demo/nope", json!({})).await;
        assert_eq!(refusal, (404, "function demo/nope not found".to_owned()));
    }

    #[tokio::test]
    async fn without_its_queue_it_says_so() {
        let world = World::new().await;
        world.queue.close().await;
        for path in ["", "/calls", "/calls/01M857XH5W1VF3216WYJPN885B"] {
            let (status, text) = world.refusal("GET", path, json!({})).await;
            assert!(status == 503 && text.starts_with("the queue cannot be reached: "), "{status} {text}");
        }
    }
}
