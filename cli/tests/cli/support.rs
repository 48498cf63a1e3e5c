//! A home of its own for each test, and a server that answers from a script and remembers what it was asked.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use assert_cmd::Command;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;

/// Variables that would change what kiln does.
const VARIABLES: [&str; 12] = [
    "FN_API_URL",
    "FN_REGISTRY",
    "FN_CONTEXT",
    "FN_TOKEN",
    "FN_DB_URL",
    "FN_PORT",
    "KILN_BUILD",
    "KILN_CA_DIR",
    "KILN_DATA_DIR",
    "KILN_DETACHED",
    "KILN_ENV_FILE_READ",
    "RUSTFLAGS",
];

/// An empty home directory and kiln in it.
pub(crate) struct Home {
    folder: TempDir,
    api_url: Option<String>,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), api_url: None }
    }

    /// As [`Home::new`], for commands that speak with `api`.
    pub(crate) fn with_api(api: &Api) -> Self {
        Self { api_url: Some(api.url()), ..Self::new() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path().join(path)).unwrap()
    }

    /// `kiln` with a command line; words are split at spaces.
    pub(crate) fn kiln(&self, line: &str) -> Command {
        Command::from_std(self.process(line))
    }

    /// As [`Home::kiln`], to be started and left running.
    pub(crate) fn process(&self, line: &str) -> std::process::Command {
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin!("kiln"));
        // The tool chain stays where it is although HOME moves.
        let real_home = std::env::var("HOME").unwrap();
        for (variable, folder) in [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")] {
            if std::env::var_os(variable).is_none() {
                command.env(variable, Path::new(&real_home).join(folder));
            }
        }
        for variable in VARIABLES {
            command.env_remove(variable);
        }
        command.env("HOME", self.path()).current_dir(self.path());
        if let Some(url) = &self.api_url {
            command.env("FN_API_URL", url);
        }
        command.args(line.split_whitespace());
        command
    }

    /// Runs kiln, which must succeed; returns its standard output.
    pub(crate) fn ok(&self, line: &str) -> String {
        let output = self.kiln(line).output().unwrap();
        assert!(output.status.success(), "kiln {line}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs kiln, which must succeed, in JSON mode.
    pub(crate) fn json(&self, line: &str) -> Value {
        let stdout = self.ok(&format!("{line} --output json"));
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("kiln {line}: {error}: {stdout}"))
    }

    /// Runs kiln, which must end with `code`; returns its standard error.
    pub(crate) fn fails(&self, code: i32, line: &str) -> String {
        let output = self.kiln(line).output().unwrap();
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "kiln {line}: {stderr}");
        stderr
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A request as the server saw it.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// `METHOD /path?query`
    pub(crate) line: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Asked {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
}

struct Answer {
    line: String,
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

#[derive(Default)]
struct Script {
    answers: Vec<Answer>,
    asked: Vec<Asked>,
}

/// A server that answers from a script.
pub(crate) struct Api {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
    _stop: oneshot::Sender<()>,
}

impl Api {
    pub(crate) fn start() -> Self {
        let script = Arc::new(Mutex::new(Script::default()));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().fallback(answer).with_state(Arc::clone(&script));
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let server = axum::serve(listener, app).with_graceful_shutdown(async {
                    stopped.await.ok();
                });
                server.await.unwrap();
            });
        });
        Self { address, script, _stop: stop }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Answers `line` (`METHOD /path?query`) with JSON from now on.
    #[expect(clippy::needless_pass_by_value, reason = "callers write json!(...)")]
    pub(crate) fn on(&self, line: &str, status: u16, body: Value) -> &Self {
        self.on_raw(line, status, &[("content-type", "application/json")], body.to_string().into_bytes())
    }

    pub(crate) fn on_raw(
        &self,
        line: &str,
        status: u16,
        headers: &[(&'static str, &str)],
        body: Vec<u8>,
    ) -> &Self {
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let mut script = self.script.lock().unwrap();
        script.answers.retain(|answer| answer.line != line);
        script.answers.push(Answer { line: line.to_owned(), status, headers, body });
        self
    }

    /// A server with the app `demo` (id A1), its function `hello` (F1) and its trigger `greet` (T1).
    pub(crate) fn with_demo() -> Self {
        let api = Self::start();
        let (app, function, trigger) = (demo_app(), demo_function(&api.url()), demo_trigger(&api.url()));
        api.on("GET /v2/apps?name=demo", 200, json!({ "items": [app] }));
        api.on("GET /v2/apps?name=nope", 200, json!({ "items": [] }));
        api.on("GET /v2/fns?app_id=A1&name=hello", 200, json!({ "items": [function] }));
        api.on("GET /v2/fns?app_id=A1&name=nope", 200, json!({ "items": [] }));
        api.on("GET /v2/triggers?app_id=A1&fn_id=F1&name=greet", 200, json!({ "items": [trigger] }));
        api
    }

    /// All requests so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.script.lock().unwrap().asked.clone()
    }

    pub(crate) fn asked_lines(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.line).collect()
    }

    pub(crate) fn last(&self) -> Asked {
        self.asked().pop().expect("nothing was asked")
    }
}

pub(crate) fn demo_app() -> Value {
    json!({ "id": "A1", "name": "demo", "config": { "A": "1" }, "created_at": "2026-01-31T09:00:00.000Z" })
}

pub(crate) fn demo_function(base: &str) -> Value {
    json!({
        "id": "F1", "name": "hello", "app_id": "A1", "image": "hello:0.0.1", "memory": 128, "config": { "G": "Hi" },
        "annotations": { "fnproject.io/fn/invokeEndpoint": format!("{base}/invoke/F1"), "team": "blue" },
    })
}

pub(crate) fn demo_trigger(base: &str) -> Value {
    json!({
        "id": "T1", "name": "greet", "app_id": "A1", "fn_id": "F1", "type": "http", "source": "/greet",
        "annotations": { "fnproject.io/trigger/httpEndpoint": format!("{base}/t/demo/greet") },
    })
}

async fn answer(State(script): State<Arc<Mutex<Script>>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap().to_vec();
    let line = format!("{} {}", head.method, head.uri);
    let mut script = script.lock().unwrap();
    script.asked.push(Asked { line: line.clone(), headers: head.headers, body });
    let Some(answer) = script.answers.iter().find(|answer| answer.line == line) else {
        let body = json!({ "message": format!("Path not found: {line}") }).to_string();
        return Response::builder().status(StatusCode::NOT_FOUND).body(Body::from(body)).unwrap();
    };
    let mut response = Response::builder().status(answer.status);
    for (name, value) in &answer.headers {
        response = response.header(*name, value);
    }
    response.body(Body::from(answer.body.clone())).unwrap()
}
