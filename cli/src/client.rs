//! The client of the HTTP API: one method per request of `docs/api` that the commands make.
//!
//! Owns how errors of the server and of the network are told apart. Never prints; never shows the token.

use std::io;
use std::time::Duration;

use kiln_shared::model::{
    CallWhy, FleetResource, FunctionWhy, NodeResource, QueueResource, QueuedCall, Redriven,
};
use kiln_shared::queue::State;
use reqwest::{Method, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::contexts::Settings;
use crate::resources::{App, Call, Function, Trigger};

/// Items asked for per page; the server's own maximum.
const PER_PAGE_MAX: usize = 100;
/// How long to try to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a management request may take. Calls of functions have no such limit: the server has one per function.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(1);

/// Why a request had no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The API URL is not one.
    #[error("{url:?} is not the URL of an API")]
    Url {
        /// As given.
        url: String,
    },
    /// No connection, or it broke.
    #[error("cannot reach Kiln at {url}: {reason}")]
    Unreachable {
        /// What was asked.
        url: String,
        /// The innermost cause.
        reason: String,
    },
    /// The server answered with an error.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// The server's text, or its reason phrase.
        message: String,
    },
    /// The answer is none of this API.
    #[error("{url} did not answer as a Kiln or Fn server does: {reason}")]
    Malformed {
        /// What was asked.
        url: String,
        /// What was wrong.
        reason: String,
    },
    /// A name that the server does not know.
    #[error("{kind} {name} not found")]
    NameNotFound {
        /// `app`, `function` or `trigger`.
        kind: &'static str,
        /// As given.
        name: String,
        /// A command that shows the names there are.
        list: String,
    },
}

impl ApiError {
    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Url { .. } => {
                Some("give one such as http://localhost:8080 with --api-url or FN_API_URL".into())
            }
            Self::Unreachable { .. } => {
                Some("start it with `kiln start`, or set another with --api-url / FN_API_URL".into())
            }
            Self::Refused { status: StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, .. } => {
                Some("give a token that the server accepts in FN_TOKEN".into())
            }
            Self::Refused { status: StatusCode::GONE, .. } => {
                Some("this server keeps no calls and logs".into())
            }
            Self::Refused { .. } => None,
            Self::Malformed { .. } => {
                Some("check --api-url / FN_API_URL and the context (`kiln inspect context`)".into())
            }
            Self::NameNotFound { list, .. } => Some(format!("`{list}` shows what there is")),
        }
    }

    /// True if a name was looked up and is not there.
    pub fn is_name_not_found(&self) -> bool {
        matches!(self, Self::NameNotFound { .. })
    }
}

/// Speaks with one server.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    /// Without a slash at its end.
    base: String,
    token: Option<String>,
}

/// One page of a list.
#[derive(Debug, Deserialize)]
struct Page<T> {
    #[serde(default)]
    next_cursor: String,
    items: Option<Vec<T>>,
}

#[derive(Debug, Deserialize)]
struct ErrorBody {
    message: String,
}

#[derive(Debug, Deserialize)]
struct VersionBody {
    version: String,
}

#[derive(Debug, Deserialize)]
struct LogBody {
    log: LogText,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum LogText {
    Object { log: String },
    Text(String),
}

/// How much of a list to fetch.
#[derive(Debug, Clone, Default)]
pub struct Range {
    /// At most this many items.
    pub items_max: usize,
    /// Where to go on, as an earlier answer told.
    pub cursor: Option<String>,
}

impl Range {
    /// Everything.
    pub fn all() -> Self {
        Self { items_max: usize::MAX, cursor: None }
    }
}

impl Client {
    /// A client for the server that `settings` name. Connects with the first request.
    pub fn new(settings: &Settings) -> Result<Self, ApiError> {
        let not_a_url = || ApiError::Url { url: settings.api_url.clone() };
        let url = Url::parse(&settings.api_url).map_err(|_| not_a_url())?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(not_a_url());
        }
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION")));
        if is_loopback(&url) {
            // A proxy for the outside world cannot reach this machine's own server.
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|error| unreachable(&settings.api_url, &error))?;
        Ok(Self {
            http,
            base: settings.api_url.trim_end_matches('/').to_owned(),
            token: settings.token.clone(),
        })
    }

    /// The server's address, as configured.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// `GET /version`.
    pub async fn server_version(&self) -> Result<String, ApiError> {
        let body: VersionBody = self.get("/version", &[]).await?;
        Ok(body.version)
    }

    /// The fleet, as the server sees it.
    pub async fn fleet(&self) -> Result<FleetResource, ApiError> {
        self.get("/kiln/v1/fleet", &[]).await
    }

    /// The node of that name with its containers.
    pub async fn node(&self, name: &str) -> Result<NodeResource, ApiError> {
        self.get(&format!("/kiln/v1/nodes/{}", segment(name)), &[]).await
    }

    /// Tells the node of that name to take no more calls.
    pub async fn drain_node(&self, name: &str) -> Result<NodeResource, ApiError> {
        self.send(Method::POST, &format!("/kiln/v1/nodes/{}/drain", segment(name)), &json!({})).await
    }

    /// Tells the node of that name to take calls again.
    pub async fn undrain_node(&self, name: &str) -> Result<NodeResource, ApiError> {
        self.send(Method::POST, &format!("/kiln/v1/nodes/{}/undrain", segment(name)), &json!({})).await
    }

    /// Removes the node of that name from the fleet.
    pub async fn remove_node(&self, name: &str) -> Result<(), ApiError> {
        self.delete(&format!("/kiln/v1/nodes/{}", segment(name))).await
    }

    /// What became of a call.
    pub async fn call_why(&self, call_id: &str) -> Result<CallWhy, ApiError> {
        self.get(&format!("/kiln/v1/calls/{}/why", segment(call_id)), &[]).await
    }

    /// What would become of a call of a function now.
    pub async fn function_why(&self, fn_id: &str) -> Result<FunctionWhy, ApiError> {
        self.get(&format!("/kiln/v1/fns/{}/why", segment(fn_id)), &[]).await
    }

    /// What the queue of detached calls holds.
    pub async fn queue(&self) -> Result<QueueResource, ApiError> {
        self.get("/kiln/v1/queue", &[]).await
    }

    /// Detached calls, of one function or in one state where that is given, in the order in which they were accepted.
    pub async fn queued_calls(
        &self,
        function: Option<&Function>,
        state: Option<State>,
        range: Range,
    ) -> Result<Vec<QueuedCall>, ApiError> {
        let mut query = Vec::new();
        query.extend(function.map(|function| ("function", function.id.as_str())));
        query.extend(state.map(|state| ("state", state.as_str())));
        self.list("/kiln/v1/queue/calls", &query, range).await
    }

    /// One detached call.
    pub async fn queued_call(&self, call_id: &str) -> Result<QueuedCall, ApiError> {
        self.get(&format!("/kiln/v1/queue/calls/{}", segment(call_id)), &[]).await
    }

    /// Takes a detached call that waits out of the queue.
    pub async fn cancel_queued(&self, call_id: &str) -> Result<QueuedCall, ApiError> {
        let path = format!("/kiln/v1/queue/calls/{}", segment(call_id));
        self.exchange(Method::DELETE, &path, &[], None).await
    }

    /// Puts a dead call back in the queue.
    pub async fn redrive_call(&self, call_id: &str) -> Result<Redriven, ApiError> {
        self.send(Method::POST, "/kiln/v1/queue/redrive", &json!({ "call": call_id })).await
    }

    /// Puts a function's dead calls back in the queue, the `max` oldest.
    pub async fn redrive_function(&self, app: &str, function: &str, max: u64) -> Result<Redriven, ApiError> {
        let body = json!({ "app": app, "function": function, "max": max });
        self.send(Method::POST, "/kiln/v1/queue/redrive", &body).await
    }

    /// Has the node of that name start containers of `function` until it has as many.
    pub async fn prewarm(
        &self,
        node: &str,
        function: &Function,
        containers: u32,
    ) -> Result<NodeResource, ApiError> {
        let body = json!({ "fn_id": function.id, "containers": containers });
        self.send(Method::POST, &format!("/kiln/v1/nodes/{}/prewarm", segment(node)), &body).await
    }

    /// Has the node of that name give up its idle containers of `function`.
    pub async fn evict(&self, node: &str, function: &Function) -> Result<NodeResource, ApiError> {
        let body = json!({ "fn_id": function.id });
        self.send(Method::POST, &format!("/kiln/v1/nodes/{}/evict", segment(node)), &body).await
    }

    /// The app of that name.
    pub async fn app(&self, name: &str) -> Result<App, ApiError> {
        let page: Page<App> = self.get("/v2/apps", &[("name", name)]).await?;
        first(page).ok_or_else(|| ApiError::NameNotFound {
            kind: "app",
            name: name.to_owned(),
            list: "kiln list apps".to_owned(),
        })
    }

    /// The function of that name in `app`.
    pub async fn function(&self, app: &App, name: &str) -> Result<Function, ApiError> {
        let page: Page<Function> = self.get("/v2/fns", &[("app_id", &app.id), ("name", name)]).await?;
        first(page).ok_or_else(|| ApiError::NameNotFound {
            kind: "function",
            name: name.to_owned(),
            list: format!("kiln list functions {}", app.name),
        })
    }

    /// The trigger of that name of `function`.
    pub async fn trigger(&self, app: &App, function: &Function, name: &str) -> Result<Trigger, ApiError> {
        let query = [("app_id", app.id.as_str()), ("fn_id", &function.id), ("name", name)];
        let page: Page<Trigger> = self.get("/v2/triggers", &query).await?;
        first(page).ok_or_else(|| ApiError::NameNotFound {
            kind: "trigger",
            name: name.to_owned(),
            list: format!("kiln list triggers {} {}", app.name, function.name),
        })
    }

    /// The apps, by name.
    pub async fn apps(&self, range: Range) -> Result<Vec<App>, ApiError> {
        self.list("/v2/apps", &[], range).await
    }

    /// The functions of an app, by name.
    pub async fn functions(&self, app: &App, range: Range) -> Result<Vec<Function>, ApiError> {
        self.list("/v2/fns", &[("app_id", &app.id)], range).await
    }

    /// The triggers of an app, or of one function of it, by name.
    pub async fn triggers(
        &self,
        app: &App,
        function: Option<&Function>,
        range: Range,
    ) -> Result<Vec<Trigger>, ApiError> {
        let mut query = vec![("app_id", app.id.as_str())];
        query.extend(function.map(|function| ("fn_id", function.id.as_str())));
        self.list("/v2/triggers", &query, range).await
    }

    /// The function with that id.
    pub async fn function_by_id(&self, id: &str) -> Result<Function, ApiError> {
        self.get(&format!("/v2/fns/{id}"), &[]).await
    }

    /// Makes an app.
    pub async fn create_app(&self, app: &App) -> Result<App, ApiError> {
        self.send(Method::POST, "/v2/apps", app).await
    }

    /// Merges `changes` into the app; returns the whole.
    pub async fn update_app(&self, id: &str, changes: &impl Serialize) -> Result<App, ApiError> {
        self.send(Method::PUT, &format!("/v2/apps/{id}"), changes).await
    }

    /// Removes an app; the server removes what is in it.
    pub async fn delete_app(&self, id: &str) -> Result<(), ApiError> {
        self.delete(&format!("/v2/apps/{id}")).await
    }

    /// Makes a function.
    pub async fn create_function(&self, function: &Function) -> Result<Function, ApiError> {
        self.send(Method::POST, "/v2/fns", function).await
    }

    /// Merges `changes` into the function; returns the whole.
    pub async fn update_function(&self, id: &str, changes: &impl Serialize) -> Result<Function, ApiError> {
        self.send(Method::PUT, &format!("/v2/fns/{id}"), changes).await
    }

    /// Removes a function and its triggers.
    pub async fn delete_function(&self, id: &str) -> Result<(), ApiError> {
        self.delete(&format!("/v2/fns/{id}")).await
    }

    /// Makes a trigger.
    pub async fn create_trigger(&self, trigger: &Trigger) -> Result<Trigger, ApiError> {
        self.send(Method::POST, "/v2/triggers", trigger).await
    }

    /// Merges `changes` into the trigger; returns the whole.
    pub async fn update_trigger(&self, id: &str, changes: &impl Serialize) -> Result<Trigger, ApiError> {
        self.send(Method::PUT, &format!("/v2/triggers/{id}"), changes).await
    }

    /// Removes a trigger.
    pub async fn delete_trigger(&self, id: &str) -> Result<(), ApiError> {
        self.delete(&format!("/v2/triggers/{id}")).await
    }

    /// The calls of a function that ended, newest first, between two times in epoch seconds (both exclusive).
    pub async fn calls(
        &self,
        function: &Function,
        from_time: Option<i64>,
        to_time: Option<i64>,
        range: Range,
    ) -> Result<Vec<Call>, ApiError> {
        let from_time = from_time.map(|seconds| seconds.to_string());
        let to_time = to_time.map(|seconds| seconds.to_string());
        let mut query = Vec::new();
        query.extend(from_time.as_deref().map(|seconds| ("from_time", seconds)));
        query.extend(to_time.as_deref().map(|seconds| ("to_time", seconds)));
        self.list(&format!("/v2/fns/{}/calls", function.id), &query, range).await
    }

    /// The record of one call.
    pub async fn call(&self, function: &Function, call_id: &str) -> Result<Call, ApiError> {
        self.get(&format!("/v2/fns/{}/calls/{call_id}", function.id), &[]).await
    }

    /// What the function wrote during a call.
    pub async fn call_log(&self, function: &Function, call_id: &str) -> Result<String, ApiError> {
        let body: LogBody = self.get(&format!("/v2/fns/{}/calls/{call_id}/log", function.id), &[]).await?;
        Ok(match body.log {
            LogText::Object { log } | LogText::Text(log) => log,
        })
    }

    /// Calls a function at `endpoint`, with more header `lines`, and returns the answer as it comes, whatever its status.
    pub async fn invoke(
        &self,
        endpoint: &str,
        content_type: &str,
        lines: &[(&'static str, String)],
        body: reqwest::Body,
    ) -> Result<reqwest::Response, ApiError> {
        let url = Url::parse(endpoint).map_err(|_| ApiError::Url { url: endpoint.to_owned() })?;
        let mut request =
            self.authorized(self.http.post(url)).header(reqwest::header::CONTENT_TYPE, content_type);
        for (name, value) in lines {
            request = request.header(*name, value);
        }
        request.body(body).send().await.map_err(|error| unreachable(endpoint, &error))
    }

    async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
        range: Range,
    ) -> Result<Vec<T>, ApiError> {
        let mut items = Vec::new();
        let mut cursor = range.cursor;
        loop {
            let missing = range.items_max.saturating_sub(items.len());
            if missing == 0 {
                return Ok(items);
            }
            let per_page = missing.min(PER_PAGE_MAX).to_string();
            let mut query = query.to_vec();
            query.push(("per_page", &per_page));
            query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
            let page: Page<T> = self.get(path, &query).await?;
            items.extend(page.items.unwrap_or_default().into_iter().take(missing));
            // A server that repeats its cursor would keep us here for ever.
            if page.next_cursor.is_empty() || cursor.as_ref() == Some(&page.next_cursor) {
                return Ok(items);
            }
            cursor = Some(page.next_cursor);
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> Result<T, ApiError> {
        self.exchange(Method::GET, path, query, None).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        let body = serde_json::to_value(body)
            .map_err(|error| ApiError::Malformed { url: path.to_owned(), reason: error.to_string() })?;
        self.exchange(method, path, &[], Some(body)).await
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<Value>,
    ) -> Result<T, ApiError> {
        let (url, answer) = self.request(method, path, query, body).await?;
        serde_json::from_slice(&answer)
            .map_err(|error| ApiError::Malformed { url, reason: error.to_string() })
    }

    async fn delete(&self, path: &str) -> Result<(), ApiError> {
        self.request(Method::DELETE, path, &[], None).await.map(drop)
    }

    /// Sends a management request; returns its URL and the body of a successful answer.
    async fn request(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<Value>,
    ) -> Result<(String, Vec<u8>), ApiError> {
        let text = format!("{}{path}", self.base);
        let mut url = Url::parse(&text).map_err(|_| ApiError::Url { url: text })?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self
            .authorized(self.http.request(method, url.clone()))
            .timeout(REQUEST_TIMEOUT)
            .header(reqwest::header::ACCEPT, "application/json");
        if let Some(body) = &body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|error| unreachable(&self.base, &error))?;
        let status = response.status();
        let answer = response.bytes().await.map_err(|error| unreachable(&self.base, &error))?;
        if !status.is_success() {
            return Err(ApiError::Refused { status, message: error_message(status, &answer) });
        }
        Ok((url.into(), answer.into()))
    }

    fn authorized(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }
}

/// The text of an error answer: the API's `message`, else the status in words.
pub fn error_message(status: StatusCode, body: &[u8]) -> String {
    // Fn writes two objects in a row for some errors: the first counts.
    let mut bodies = serde_json::Deserializer::from_slice(body).into_iter::<ErrorBody>();
    match bodies.next() {
        Some(Ok(body)) => body.message,
        _ => format!("the server answered {status}"),
    }
}

/// A change of one config value; an empty one deletes the name.
pub fn config_change(name: &str, value: &str) -> Value {
    json!({ "config": { name: value } })
}

fn first<T>(page: Page<T>) -> Option<T> {
    page.items.unwrap_or_default().into_iter().next()
}

/// A name as one segment of a path.
fn segment(name: &str) -> String {
    let mut url = Url::parse("http://host").expect("is a URL");
    url.path_segments_mut().expect("can have segments").push(name);
    url.path().trim_start_matches('/').to_owned()
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn unreachable(url: &str, error: &reqwest::Error) -> ApiError {
    let mut innermost: &dyn std::error::Error = error;
    let mut io_error = None;
    while let Some(source) = innermost.source() {
        innermost = source;
        io_error = innermost.downcast_ref::<io::Error>().map(io::Error::kind).or(io_error);
    }
    let reason = match io_error {
        Some(io::ErrorKind::ConnectionRefused) => "connection refused".to_owned(),
        _ if error.is_timeout() => "no answer in time".to_owned(),
        _ => innermost.to_string(),
    };
    ApiError::Unreachable { url: url.to_owned(), reason }
}
