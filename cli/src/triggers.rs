//! Triggers: create, list, inspect, update, delete.

use std::collections::HashMap;

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use crate::apps::show;
use crate::args::{PageArgs, annotation};
use crate::functions::no_endpoint;
use crate::output::Output;
use crate::resources::{Trigger, without_computed};
use crate::session::Session;

/// The type of triggers that call by the clock.
const SCHEDULE: &str = "schedule";

/// Which trigger.
#[derive(Debug, Args)]
pub struct TriggerName {
    /// Name of the app
    app: String,
    /// Name of the function
    function: String,
    /// Name of the trigger
    name: String,
}

/// `kiln create trigger`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln create trigger demo hello hello --type http --source /hello\n  \
                        curl http://localhost:8080/t/demo/hello\n  \
                        kiln create trigger demo hello nightly --type schedule --source \"0 4 * * *\" \
                        --time-zone Europe/Vienna")]
pub struct CreateArgs {
    #[command(flatten)]
    trigger: TriggerName,
    /// Kind of trigger: http or schedule
    #[arg(long = "type", short, default_value = "http")]
    kind: String,
    /// Path below /t/APP that calls the function; or when a schedule calls it, as a cron line
    #[arg(long, short, value_name = "PATH|CRON")]
    source: String,
    #[command(flatten)]
    schedule: ScheduleArgs,
    /// Annotation; may be given several times
    #[arg(long, value_name = "NAME=JSON", value_parser = annotation)]
    annotation: Vec<(String, Value)>,
}

/// `kiln list triggers`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Name of the app
    app: String,
    /// Only triggers of this function
    function: Option<String>,
    #[command(flatten)]
    page: PageArgs,
}

/// `kiln inspect trigger`
#[derive(Debug, Args)]
pub struct InspectArgs {
    #[command(flatten)]
    trigger: TriggerName,
    /// Show only this property, such as source
    property: Option<String>,
    /// Show only its URL
    #[arg(long, conflicts_with = "property")]
    endpoint: bool,
}

/// `kiln update trigger`
#[derive(Debug, Args)]
pub struct UpdateArgs {
    #[command(flatten)]
    trigger: TriggerName,
    /// New path below /t/APP, or cron line
    #[arg(long, short, value_name = "PATH|CRON")]
    source: Option<String>,
    #[command(flatten)]
    schedule: ScheduleArgs,
    /// Annotation; may be given several times, the value "" removes it
    #[arg(long, value_name = "NAME=JSON", value_parser = annotation)]
    annotation: Vec<(String, Value)>,
}

/// `kiln delete trigger`
#[derive(Debug, Args)]
pub struct DeleteArgs {
    #[command(flatten)]
    trigger: TriggerName,
}

/// How a trigger of the type `schedule` calls; kept as annotations, which the server checks.
#[derive(Debug, Args)]
#[command(next_help_heading = "Schedules")]
struct ScheduleArgs {
    /// IANA time zone of the cron line [default: UTC]
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
    /// Most seconds by which a call is late at random, up to 3600 [default: 0]
    #[arg(long, value_name = "SECONDS")]
    jitter_seconds: Option<u32>,
    /// What becomes of ticks that were missed: skip, once or all [default: once]
    #[arg(long, value_name = "POLICY")]
    misfire: Option<String>,
    /// Text that is sent as the call's body, up to 500 bytes
    #[arg(long, value_name = "TEXT")]
    payload: Option<String>,
    /// The body's Content-Type
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
}

impl ScheduleArgs {
    fn annotations(self) -> impl Iterator<Item = (String, Value)> {
        let annotations = [
            ("kiln.dev/time-zone", self.time_zone.map(Value::from)),
            ("kiln.dev/jitter-seconds", self.jitter_seconds.map(Value::from)),
            ("kiln.dev/misfire", self.misfire.map(Value::from)),
            ("kiln.dev/payload", self.payload.map(Value::from)),
            ("kiln.dev/content-type", self.content_type.map(Value::from)),
        ];
        annotations.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)))
    }
}

/// A cron line stays as it is; a path starts with a slash.
fn source_of(kind: &str, source: &str) -> String {
    if kind == SCHEDULE { source.to_owned() } else { with_slash(source) }
}

/// A source starts with a slash; one is put before it if it was left out.
pub fn with_slash(source: &str) -> String {
    if source.starts_with('/') { source.to_owned() } else { format!("/{source}") }
}

/// Makes a trigger.
pub async fn create(session: &Session, args: CreateArgs) -> Result<()> {
    let client = session.client()?;
    let app = client.app(&args.trigger.app).await?;
    let function = client.function(&app, &args.trigger.function).await?;
    let trigger = Trigger {
        name: args.trigger.name,
        app_id: app.id,
        fn_id: function.id,
        source: source_of(&args.kind, &args.source),
        kind: args.kind,
        annotations: args.annotation.into_iter().chain(args.schedule.annotations()).collect(),
        ..Trigger::default()
    };
    let trigger = client.create_trigger(&trigger).await?;
    say_created(session.output, &trigger)?;
    if session.output.is_json() { session.output.json(&trigger) } else { Ok(()) }
}

/// Says that a trigger was made and where it is, or when it calls next.
pub fn say_created(output: Output, trigger: &Trigger) -> Result<()> {
    output.say(format_args!("Successfully created trigger: {}", trigger.name))?;
    if trigger.kind == SCHEDULE {
        return output
            .say(format_args!("Next Tick: {}", trigger.next_tick().unwrap_or("(the server told none)")));
    }
    output.say(format_args!("Trigger Endpoint: {}", trigger.endpoint().unwrap_or("(the server told none)")))
}

/// Lists the triggers of an app or function.
pub async fn list(session: &Session, args: ListArgs) -> Result<()> {
    let client = session.client()?;
    let app = client.app(&args.app).await?;
    let function = match &args.function {
        Some(name) => Some(client.function(&app, name).await?),
        None => None,
    };
    let triggers = client.triggers(&app, function.as_ref(), args.page.into()).await?;
    if triggers.is_empty() {
        let of = args.function.map_or(format!("app: {}", args.app), |name| format!("function: {name}"));
        session.note(&format!("no triggers found for {of}"))?;
    }
    let cells = |trigger: &Trigger| {
        let endpoint = trigger.endpoint().unwrap_or_default().to_owned();
        let next = trigger.next_tick().unwrap_or_default().to_owned();
        [
            trigger.name.clone(),
            trigger.id.clone(),
            trigger.kind.clone(),
            trigger.source.clone(),
            endpoint,
            next,
        ]
    };
    if function.is_some() || session.output.is_json() {
        let rows = triggers.iter().map(|trigger| cells(trigger).map(Into::into));
        return session.output.table(
            ["NAME", "ID", "TYPE", "SOURCE", "ENDPOINT", "NEXT TICK"],
            rows,
            &triggers,
        );
    }
    let mut names = HashMap::new();
    for trigger in &triggers {
        if !names.contains_key(&trigger.fn_id) {
            names.insert(trigger.fn_id.clone(), client.function_by_id(&trigger.fn_id).await?.name);
        }
    }
    let rows = triggers.iter().map(|trigger| {
        let [name, id, kind, source, endpoint, next] = cells(trigger).map(Into::into);
        [names[&trigger.fn_id].clone().into(), name, id, kind, source, endpoint, next]
    });
    session.output.table(
        ["FUNCTION", "NAME", "ID", "TYPE", "SOURCE", "ENDPOINT", "NEXT TICK"],
        rows,
        &triggers,
    )
}

async fn find(session: &Session, names: &TriggerName) -> Result<Trigger> {
    let client = session.client()?;
    let app = client.app(&names.app).await?;
    let function = client.function(&app, &names.function).await?;
    Ok(client.trigger(&app, &function, &names.name).await?)
}

/// Shows a trigger.
pub async fn inspect(session: &Session, args: InspectArgs) -> Result<()> {
    let trigger = find(session, &args.trigger).await?;
    if !args.endpoint {
        return show(session, &serde_json::to_value(trigger)?, args.property.as_deref());
    }
    let endpoint = trigger.endpoint().ok_or_else(|| no_endpoint("trigger"))?;
    session.output.result(endpoint, &endpoint)
}

/// Changes a trigger: reads it, changes it, writes it.
pub async fn update(session: &Session, args: UpdateArgs) -> Result<()> {
    let mut trigger = find(session, &args.trigger).await?;
    trigger.annotations = without_computed(trigger.annotations);
    trigger.annotations.extend(args.annotation);
    trigger.annotations.extend(args.schedule.annotations());
    if let Some(source) = &args.source {
        trigger.source = source_of(&trigger.kind, source);
    }
    let trigger = session.client()?.update_trigger(&trigger.id, &trigger).await?;
    let TriggerName { app, function, name } = args.trigger;
    session.output.result(format_args!("{app} {function} {name} updated"), &trigger)
}

/// Removes a trigger.
pub async fn delete(session: &Session, args: DeleteArgs) -> Result<()> {
    let trigger = find(session, &args.trigger).await?;
    session.client()?.delete_trigger(&trigger.id).await?;
    let TriggerName { app, function, name } = args.trigger;
    session.output.result(format_args!("{app} {function} {name} deleted"), &trigger)
}
