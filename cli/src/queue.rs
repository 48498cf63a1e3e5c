//! The queue of detached calls: what waits, runs and failed for good; cancel one, put dead ones back.

use std::borrow::Cow;

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use kiln_shared::model::{QueueFunction, QueuedCall};
use kiln_shared::queue::{BATCH_MAX, State};
use reqwest::StatusCode;

use crate::args::PageArgs;
use crate::calls::find_function;
use crate::client::ApiError;
use crate::failure::Failure;
use crate::nodes::age;
use crate::session::Session;
use crate::why::app_and_function;

const STATES: &str = "\
A detached call (`kiln invoke --detach`) is

  queued     waiting for room on a node         done       over: the function answered
  delayed    waiting for its time, before its   dead       failed as often as it may, or not started by its
             first attempt or the next one                 deadline; kept, with its last error
  running    on a node                          cancelled  taken out before it ran";

/// `kiln queue status`
#[derive(Debug, Args)]
#[command(after_help = STATES)]
pub struct StatusArgs {}

/// `kiln queue list`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kiln queue list --state dead
  kiln queue list --function demo/report -n 10
  kiln queue list --state delayed --output json | jq -r '.[].id'")]
pub struct ListArgs {
    /// Only calls of this function, APP/FUNCTION
    #[arg(long, value_name = "APP/FUNCTION", value_parser = app_and_function)]
    function: Option<(String, String)>,
    /// Only calls in this state: queued, delayed, running, done, dead or cancelled
    #[arg(long, value_name = "STATE")]
    state: Option<State>,
    #[command(flatten)]
    page: PageArgs,
}

/// `kiln queue inspect`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln queue inspect 01M857XH5W1VF3216WYJPN885B")]
pub struct InspectArgs {
    /// The call's id, as `kiln invoke --detach` shows it
    call_id: String,
}

/// `kiln queue cancel`
#[derive(Debug, Args)]
#[command(after_help = "\
Only a call that waits can be cancelled; one that runs ends as it does.

Example:
  kiln queue cancel 01M857XH5W1VF3216WYJPN885B")]
pub struct CancelArgs {
    /// The call's id
    call_id: String,
}

/// `kiln queue redrive`
#[derive(Debug, Args)]
#[command(after_help = "\
Dead calls are queued again, with all their attempts and without a deadline. Mend what they failed of first: `kiln queue list --state
dead` shows it.

Examples:
  kiln queue redrive 01M857XH5W1VF3216WYJPN885B
  kiln queue redrive --function demo/report            all of the function, up to 1000
  kiln queue redrive --function demo/report --max 1    the oldest one, to try")]
pub struct RedriveArgs {
    /// The call's id
    #[arg(required_unless_present = "function", conflicts_with = "function")]
    call_id: Option<String>,
    /// Dead calls of this function, the oldest first
    #[arg(long, value_name = "APP/FUNCTION", value_parser = app_and_function)]
    function: Option<(String, String)>,
    /// At most this many, up to 1000
    #[arg(long, value_name = "COUNT", requires = "function", default_value_t = BATCH_MAX as u64,
        value_parser = clap::value_parser!(u64).range(1..=BATCH_MAX as u64))]
    max: u64,
}

/// Shows what is in the queue, by function.
pub async fn status(session: &Session, _args: StatusArgs) -> Result<()> {
    let queue = session.client()?.queue().await?;
    if queue.functions.is_empty() {
        session.note("the queue is empty")?;
    }
    session.output.table(
        ["FUNCTION", "QUEUED", "DELAYED", "RUNNING", "DEAD", "OLDEST"],
        queue.functions.iter().map(row),
        &queue,
    )
}

fn row(function: &QueueFunction) -> [Cow<'static, str>; 6] {
    [
        function.name.clone().unwrap_or_else(|| format!("{} (gone)", function.fn_id)).into(),
        function.queued.to_string().into(),
        function.delayed.to_string().into(),
        function.running.to_string().into(),
        function.dead.to_string().into(),
        function.oldest_seconds.map_or_else(String::new, age).into(),
    ]
}

/// Lists calls in the order in which they were accepted.
pub async fn list(session: &Session, args: ListArgs) -> Result<()> {
    let client = session.client()?;
    let function = match &args.function {
        None => None,
        Some((app, name)) => Some(find_function(session, app, name).await?),
    };
    let calls = client.queued_calls(function.as_ref(), args.state, args.page.into()).await?;
    if calls.is_empty() {
        session.note("no such calls are in the queue")?;
    }
    let now = Timestamp::now();
    let rows = calls.iter().map(|QueuedCall { function, message }| {
        [
            message.id.to_string().into(),
            function.clone().unwrap_or_else(|| format!("{} (gone)", message.function_id)).into(),
            message.state.as_str().into(),
            message.priority.get().to_string().into(),
            format!("{} of {}", message.attempts, message.attempts_max).into(),
            age(now.duration_since(message.created_at).as_secs_f64().max(0.0)).into(),
            message.last_error.as_deref().map(first_line).unwrap_or_default().into(),
        ]
    });
    session.output.table(
        ["CALL", "FUNCTION", "STATE", "PRIORITY", "ATTEMPTS", "AGE", "LAST ERROR"],
        rows,
        &calls,
    )
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// Shows a call.
pub async fn inspect(session: &Session, args: InspectArgs) -> Result<()> {
    let call = session.client()?.queued_call(&args.call_id).await.map_err(unknown)?;
    if session.output.is_json() {
        return session.output.json(&call);
    }
    let QueuedCall { function, message } = &call;
    let time = |time: Option<Timestamp>| time.map(|time| format!("{time:.3}")).unwrap_or_default();
    let lines = [
        ("Call", message.id.to_string()),
        ("Function", function.clone().unwrap_or_else(|| format!("{} (gone)", message.function_id))),
        ("State", message.state.as_str().to_owned()),
        ("Priority", message.priority.get().to_string()),
        ("Attempts", format!("{} of {}", message.attempts, message.attempts_max)),
        ("Accepted", time(Some(message.created_at))),
        ("Due", time(Some(message.due_at))),
        ("Deadline", time(message.deadline_at)),
        ("Started", time(message.started_at)),
        ("Ended", time(message.ended_at)),
        ("Node", message.worker.clone().unwrap_or_default()),
        ("Body", format!("{} bytes", message.payload_bytes)),
        ("Last error", message.last_error.clone().unwrap_or_default()),
    ];
    for (name, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        session.output.say(format_args!("{name:<12}{value}"))?;
    }
    Ok(())
}

/// Takes a call that waits out of the queue.
pub async fn cancel(session: &Session, args: CancelArgs) -> Result<()> {
    let call = session.client()?.cancel_queued(&args.call_id).await.map_err(unknown)?;
    session.output.result(format!("{} is cancelled.", call.message.id), &call)
}

/// Puts dead calls back.
pub async fn redrive(session: &Session, args: RedriveArgs) -> Result<()> {
    let client = session.client()?;
    let redriven = match (&args.call_id, &args.function) {
        (Some(call_id), _) => client.redrive_call(call_id).await.map_err(unknown)?,
        (None, Some((app, function))) => client.redrive_function(app, function, args.max).await?,
        (None, None) => return Err(Failure::misuse("name a call, or a function with --function").into()),
    };
    let text = match redriven.redriven {
        0 => "There are no dead calls.".to_owned(),
        1 => "1 call is queued again.".to_owned(),
        count if count == args.max => format!("{count} calls are queued again; there may be more."),
        count => format!("{count} calls are queued again."),
    };
    session.output.result(text, &redriven)
}

fn unknown(error: ApiError) -> anyhow::Error {
    match error {
        ApiError::Refused { status: StatusCode::NOT_FOUND, message } => Failure::new(message)
            .hint("`kiln queue list` shows what is there; of a call that ended long ago `kiln get call` may know")
            .into(),
        ApiError::Refused { status: StatusCode::CONFLICT, message } => {
            Failure::new(message).hint("`kiln queue inspect` shows where it is").into()
        }
        error => error.into(),
    }
}
