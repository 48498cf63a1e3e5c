//! `kiln invoke`: calls a function with what comes on standard input and prints its answer as it comes.

use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::{Bytes, BytesMut};
use clap::Args;
use futures_util::StreamExt as _;
use kiln_shared::queue::KEY_BYTES_MAX;
use reqwest::{Body, Response};
use serde_json::{Map, Value, json};
use tokio::io::AsyncReadExt as _;
use tokio_util::io::ReaderStream;

use crate::client::error_message;
use crate::failure::Failure;
use crate::funcfile::FuncFile;
use crate::session::Session;

/// A body up to this size is sent with its length; a larger one is streamed.
const BUFFERED_BODY_BYTES_MAX: usize = 1024 * 1024;
/// Content type when nothing tells another, as in Fn.
const DEFAULT_CONTENT_TYPE: &str = "text/plain";
const CALL_ID: &str = "fn-call-id";

/// `kiln invoke`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kiln invoke demo hello
  echo Ada | kiln invoke demo hello
  kiln invoke demo resize --content-type image/png < in.png > out.png
  kiln invoke demo report --detach                 do not wait for the answer
  kiln invoke demo report --detach --delay 5m      run it in five minutes
  kiln invoke demo bill --detach --idempotency-key order-7     however often this is said, one call

A detached call is accepted when it is safe in the queue. It runs when there is room, and again if it fails; `kiln queue` shows it.

What comes on standard input is the call's body, unless standard input is a terminal.
The exit code is 0 if the function answered, 1 if the call failed.")]
pub struct InvokeArgs {
    /// Name of the app
    #[arg(required_unless_present = "endpoint")]
    app: Option<String>,
    /// Name of the function
    #[arg(required_unless_present = "endpoint")]
    function: Option<String>,
    /// Call this URL instead of asking the server where the function is
    #[arg(long, value_name = "URL", conflicts_with_all = ["app", "function"])]
    endpoint: Option<String>,
    /// Content type of the body; from func.yaml in this folder, else text/plain
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// Show the call's id before the answer
    #[arg(long)]
    display_call_id: bool,
    /// Do not wait: the call is queued and runs when there is room; its answer is dropped, or goes to a destination
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    queue: QueueOptions,
}

/// How a detached call is queued.
#[derive(Debug, Args)]
struct QueueOptions {
    /// Do not start it before this time has passed, as in 30s, 5m or 2h
    #[arg(long, value_name = "TIME", requires = "detach", value_parser = crate::args::duration)]
    delay: Option<Duration>,
    /// 0, 1 or 2; higher ones go first [default: 0]
    #[arg(long, value_name = "NUMBER", requires = "detach", value_parser = clap::value_parser!(u8).range(0..=2))]
    priority: Option<u8>,
    /// A second call of the function with the same key is not made; its caller gets the first one's id
    #[arg(long, value_name = "KEY", requires = "detach", value_parser = key)]
    idempotency_key: Option<String>,
    /// Give it up if it has not started within this time after its delay
    #[arg(long, value_name = "TIME", requires = "detach", value_parser = crate::args::duration)]
    start_within: Option<Duration>,
}

impl QueueOptions {
    /// The header lines of a detached call.
    fn lines(self) -> Vec<(&'static str, String)> {
        // Whole seconds, not fewer than asked for.
        let seconds =
            |time: Duration| time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0)).to_string();
        let mut lines = vec![("Fn-Invoke-Type", "detached".to_owned())];
        lines.extend(self.delay.map(|delay| ("Kiln-Delay", seconds(delay))));
        lines.extend(self.priority.map(|priority| ("Kiln-Priority", priority.to_string())));
        lines.extend(self.idempotency_key.map(|key| ("Idempotency-Key", key)));
        lines.extend(self.start_within.map(|within| ("Kiln-Start-Within", seconds(within))));
        lines
    }
}

fn key(text: &str) -> Result<String, String> {
    let fits = (1..=KEY_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    if fits { Ok(text.to_owned()) } else { Err(format!("use 1 to {KEY_BYTES_MAX} visible characters")) }
}

/// Calls a function.
pub async fn run(session: &Session, args: InvokeArgs) -> Result<()> {
    let client = session.client()?;
    let (endpoint, name) = match (args.endpoint, args.app, args.function) {
        (None, Some(app), Some(name)) => {
            let function = client.function(&client.app(&app).await?, &name).await?;
            let endpoint = function.invoke_endpoint().map(str::to_owned);
            (endpoint.unwrap_or_else(|| format!("{}/invoke/{}", client.base(), function.id)), Some(name))
        }
        (endpoint, ..) => (endpoint.unwrap_or_default(), None),
    };
    let content_type = args
        .content_type
        .or_else(|| content_type_here(&name?))
        .unwrap_or_else(|| DEFAULT_CONTENT_TYPE.to_owned());
    let body = body_of_stdin().await.context("cannot read standard input")?;
    let lines = if args.detach { args.queue.lines() } else { Vec::new() };
    let response = client.invoke(&endpoint, &content_type, &lines, body).await?;
    if session.output.is_json() {
        print_json(session, response).await
    } else {
        // Of a detached call there is nothing but its id to show.
        print(session, response, args.display_call_id || args.detach).await
    }
}

/// What the function's own func.yaml says, if we are in its folder.
fn content_type_here(name: &str) -> Option<String> {
    let file = FuncFile::load(Path::new(".")).ok()?;
    (file.spec.name.as_deref() == Some(name)).then_some(file.spec.content_type)?
}

async fn body_of_stdin() -> io::Result<Body> {
    if io::stdin().is_terminal() {
        return Ok(Body::from(Bytes::new()));
    }
    let mut stdin = tokio::io::stdin();
    let mut start = BytesMut::with_capacity(64 * 1024);
    while start.len() < BUFFERED_BODY_BYTES_MAX {
        if stdin.read_buf(&mut start).await? == 0 {
            return Ok(Body::from(start.freeze()));
        }
    }
    let rest = ReaderStream::with_capacity(stdin, 64 * 1024);
    Ok(Body::wrap_stream(futures_util::stream::iter([Ok(start.freeze())]).chain(rest)))
}

async fn print(session: &Session, response: Response, with_call_id: bool) -> Result<()> {
    if with_call_id && let Some(call_id) = response.headers().get(CALL_ID) {
        session.output.say(format_args!("Call ID: {}", String::from_utf8_lossy(call_id.as_bytes())))?;
    }
    let status = response.status();
    if status.is_client_error() || status.is_server_error() {
        let body = response.bytes().await.context("cannot read the answer")?;
        return Err(failed(status, &body).into());
    }
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| {
            Failure::new(format!("the answer broke off: {error}"))
                .hint("the function may have failed midway; see `kiln logs APP FUNCTION`")
        })?;
        session.output.raw(&chunk)?;
    }
    Ok(())
}

fn failed(status: reqwest::StatusCode, body: &[u8]) -> Failure {
    let message = error_message(status, body);
    let failure =
        Failure::new(format!("Error invoking function. status: {} message: {message}", status.as_u16()));
    match status.as_u16() {
        _ if message.starts_with("Failed to pull image") => failure
            .hint("push the image, or check its name and the node's login at the registry (`docker login`)"),
        502 | 504 => failure.hint("`kiln logs APP FUNCTION` shows what the function wrote"),
        503 => failure.hint("the server has no room for this call now; try again later"),
        _ => failure,
    }
}

async fn print_json(session: &Session, response: Response) -> Result<()> {
    let status = response.status();
    let mut headers = Map::new();
    for name in response.headers().keys() {
        let values = response.headers().get_all(name).iter();
        let values: Vec<Value> =
            values.map(|value| String::from_utf8_lossy(value.as_bytes()).into()).collect();
        headers.insert(canonical(name.as_str()), values.into());
    }
    let body = response.bytes().await.context("cannot read the answer")?;
    session.output.json(&json!({
        "body": String::from_utf8_lossy(&body),
        "headers": headers,
        "status_code": status.as_u16(),
    }))?;
    if status.is_client_error() || status.is_server_error() {
        return Err(failed(status, &body).into());
    }
    Ok(())
}

/// `fn-call-id` as `Fn-Call-Id`, so that scripts written for Fn find it.
fn canonical(name: &str) -> String {
    let words = name.split('-').map(|word| {
        let mut letters = word.chars();
        letters
            .next()
            .map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + letters.as_str())
    });
    words.collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_names_are_canonical() {
        assert_eq!(canonical("fn-call-id"), "Fn-Call-Id");
        assert_eq!(canonical("etag"), "Etag");
    }
}
