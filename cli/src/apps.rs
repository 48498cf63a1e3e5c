//! Apps: create, list, inspect, update, delete.

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use crate::args::{PageArgs, annotation, key_value};
use crate::client::Range;
use crate::failure::Failure;
use crate::resources::{App, property, without_computed};
use crate::session::Session;

/// What an app may be given.
#[derive(Debug, Args)]
pub struct AppOptions {
    /// Config value for all functions of the app; may be given several times
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = key_value)]
    config: Vec<(String, String)>,
    /// Annotation; may be given several times
    #[arg(long, value_name = "NAME=JSON", value_parser = annotation)]
    annotation: Vec<(String, Value)>,
    /// Syslog sinks that the functions' logs are sent to, such as tcp+tls://logs.example.com,udp://10.0.0.9; empty for
    /// those of the node, if it has any
    #[arg(long, value_name = "URLS")]
    syslog_url: Option<String>,
}

impl AppOptions {
    fn put_on(self, app: &mut App) {
        app.config.extend(self.config);
        app.annotations.extend(self.annotation);
        if self.syslog_url.is_some() {
            app.syslog_url = self.syslog_url;
        }
    }
}

/// `kiln create app`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln create app demo --config DB_URL=postgres://db/demo")]
pub struct CreateArgs {
    /// Name of the app
    name: String,
    #[command(flatten)]
    options: AppOptions,
    /// Processor architectures of the app's images
    #[arg(long, value_parser = ["GENERIC_X86", "GENERIC_ARM", "GENERIC_X86_ARM"])]
    shape: Option<String>,
}

/// `kiln list apps`
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    page: PageArgs,
}

/// `kiln inspect app`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln inspect app demo\n  kiln inspect app demo config.DB_URL")]
pub struct InspectArgs {
    /// Name of the app
    name: String,
    /// Show only this property, such as id or config.DB_URL
    property: Option<String>,
}

/// `kiln update app`
#[derive(Debug, Args)]
#[command(
    after_help = "Only what is given changes; an empty config value and the annotation \"\" remove theirs.\n\n\
                        Example:\n  kiln update app demo --config OLD= --syslog-url udp://127.0.0.1:514"
)]
pub struct UpdateArgs {
    /// Name of the app
    name: String,
    #[command(flatten)]
    options: AppOptions,
}

/// `kiln delete app`
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Name of the app
    name: String,
    #[command(flatten)]
    removal: RemovalArgs,
}

/// How to remove something that has other things in it.
#[derive(Debug, Args)]
pub struct RemovalArgs {
    /// First remove what is in it, one by one, after asking
    #[arg(long, short)]
    recursive: bool,
    /// Do not ask
    #[arg(long, short)]
    force: bool,
}

impl RemovalArgs {
    /// True if the contents are to be removed one by one.
    pub fn is_recursive(&self) -> bool {
        self.recursive
    }

    /// Asks whether to remove that many things, unless told not to.
    pub fn confirm(&self, session: &Session, functions: usize, triggers: usize, what: &str) -> Result<bool> {
        if self.force {
            return Ok(true);
        }
        session.confirm(&format!(
            "You are about to delete {what} with {functions} function(s) and {triggers} trigger(s). \
             This cannot be undone. Proceed? Y/N: "
        ))
    }
}

/// Makes an app.
pub async fn create(session: &Session, args: CreateArgs) -> Result<()> {
    let mut app = App { name: args.name, shape: args.shape.unwrap_or_default(), ..App::default() };
    args.options.put_on(&mut app);
    let app = session.client()?.create_app(&app).await?;
    session.output.result(format_args!("Successfully created app:  {}", app.name), &app)
}

/// Lists the apps.
pub async fn list(session: &Session, args: ListArgs) -> Result<()> {
    let apps = session.client()?.apps(args.page.into()).await?;
    if apps.is_empty() {
        session.note("no apps found; make one with `kiln create app NAME`")?;
    }
    let rows = apps.iter().map(|app| [app.name.clone().into(), app.id.clone().into()]);
    session.output.table(["NAME", "ID"], rows, &apps)
}

/// Shows an app.
pub async fn inspect(session: &Session, args: InspectArgs) -> Result<()> {
    let app = session.client()?.app(&args.name).await?;
    show(session, &serde_json::to_value(app)?, args.property.as_deref())
}

/// Changes an app: reads it, changes it, writes it.
pub async fn update(session: &Session, args: UpdateArgs) -> Result<()> {
    let client = session.client()?;
    let mut app = client.app(&args.name).await?;
    app.annotations = without_computed(app.annotations);
    args.options.put_on(&mut app);
    let app = client.update_app(&app.id, &app).await?;
    session.output.result(format_args!("app {} updated", args.name), &app)
}

/// Removes an app. With `-r` first what is in it, so that a server without cascade does it too.
pub async fn delete(session: &Session, args: DeleteArgs) -> Result<()> {
    let client = session.client()?;
    let app = client.app(&args.name).await?;
    if args.removal.is_recursive() {
        let functions = client.functions(&app, Range::all()).await?;
        let triggers = client.triggers(&app, None, Range::all()).await?;
        let what = format!("app {}", app.name);
        if !args.removal.confirm(session, functions.len(), triggers.len(), &what)? {
            return session.output.say("Cancelling delete");
        }
        for trigger in &triggers {
            client.delete_trigger(&trigger.id).await?;
            session.output.say(format_args!("Trigger  {}  deleted", trigger.name))?;
        }
        for function in &functions {
            client.delete_function(&function.id).await?;
            session.output.say(format_args!("Function  {}  deleted", function.name))?;
        }
    }
    client.delete_app(&app.id).await?;
    session.output.result(format_args!("App {} deleted", args.name), &app)
}

/// Prints a resource, or one property of it, as JSON.
pub fn show(session: &Session, value: &Value, path: Option<&str>) -> Result<()> {
    let Some(path) = path else { return session.output.json(value) };
    let found = property(value, path).ok_or_else(|| {
        let names: Vec<&str> =
            value.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        Failure::new(format!("there is no property {path}")).hint(format!("it has {}", names.join(", ")))
    })?;
    session.output.json(found)
}
