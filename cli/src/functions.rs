//! Functions: create, list, inspect, update, delete.

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use crate::apps::{RemovalArgs, show};
use crate::args::{PageArgs, annotation, key_value};
use crate::client::Range;
use crate::failure::Failure;
use crate::resources::{Function, without_computed};
use crate::session::Session;

/// What a function may be given besides its image.
#[derive(Debug, Args)]
pub struct FunctionOptions {
    /// Memory of a container, in megabytes
    #[arg(long, short, value_name = "MB")]
    pub(crate) memory: Option<u64>,
    /// Seconds that a call may take
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u32>,
    /// Seconds that a container is kept without calls
    #[arg(long, value_name = "SECONDS")]
    pub(crate) idle_timeout: Option<u32>,
    /// Config value; may be given several times
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = key_value)]
    pub(crate) config: Vec<(String, String)>,
    /// Annotation; may be given several times
    #[arg(long, value_name = "NAME=JSON", value_parser = annotation)]
    pub(crate) annotation: Vec<(String, Value)>,
}

impl FunctionOptions {
    fn put_on(self, function: &mut Function) {
        function.memory = self.memory.or(function.memory);
        function.timeout = self.timeout.or(function.timeout);
        function.idle_timeout = self.idle_timeout.or(function.idle_timeout);
        function.config.extend(self.config);
        function.annotations.extend(self.annotation);
    }
}

/// `kiln create function`
#[derive(Debug, Args)]
#[command(
    after_help = "`kiln deploy` does this for you. By hand:\n  kiln create function demo hello me/hello:0.0.1 --memory 64"
)]
pub struct CreateArgs {
    /// Name of the app
    app: String,
    /// Name of the function
    name: String,
    /// Its image
    #[arg(required_unless_present = "image_option")]
    image: Option<String>,
    /// Its image
    #[arg(long = "image", value_name = "IMAGE", hide = true, conflicts_with = "image")]
    image_option: Option<String>,
    #[command(flatten)]
    options: FunctionOptions,
}

/// `kiln list functions`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Name of the app
    app: String,
    #[command(flatten)]
    page: PageArgs,
}

/// `kiln inspect function`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  kiln inspect function demo hello\n  kiln inspect function demo hello memory\n  \
                        curl -d Ada \"$(kiln inspect function demo hello --endpoint)\""
)]
pub struct InspectArgs {
    /// Name of the app
    app: String,
    /// Name of the function
    name: String,
    /// Show only this property, such as memory or config.GREETING
    property: Option<String>,
    /// Show only the URL that invokes it
    #[arg(long, conflicts_with = "property")]
    endpoint: bool,
}

/// `kiln update function`
#[derive(Debug, Args)]
#[command(
    after_help = "Only what is given changes; an empty config value and the annotation \"\" remove theirs.\n\n\
                        Example:\n  kiln update function demo hello --memory 256 --config GREETING=Hi"
)]
pub struct UpdateArgs {
    /// Name of the app
    app: String,
    /// Name of the function
    name: String,
    /// Its new image
    image: Option<String>,
    /// Its new image
    #[arg(long = "image", value_name = "IMAGE", hide = true, conflicts_with = "image")]
    image_option: Option<String>,
    #[command(flatten)]
    options: FunctionOptions,
}

/// `kiln delete function`
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Name of the app
    app: String,
    /// Name of the function
    name: String,
    #[command(flatten)]
    removal: RemovalArgs,
}

/// Makes a function.
pub async fn create(session: &Session, args: CreateArgs) -> Result<()> {
    let client = session.client()?;
    let app = client.app(&args.app).await?;
    let image = args.image.or(args.image_option).unwrap_or_default();
    let mut function = Function { name: args.name, app_id: app.id, image, ..Function::default() };
    args.options.put_on(&mut function);
    let function = client.create_function(&function).await?;
    session.output.result(created(&function), &function)
}

/// What is said when a function was made.
pub fn created(function: &Function) -> String {
    format!("Successfully created function: {} with {}", function.name, function.image)
}

/// Lists the functions of an app.
pub async fn list(session: &Session, args: ListArgs) -> Result<()> {
    let client = session.client()?;
    let app = client.app(&args.app).await?;
    let functions = client.functions(&app, args.page.into()).await?;
    if functions.is_empty() {
        session.note(&format!("no functions found for app: {}", app.name))?;
    }
    let rows = functions.iter().map(|f| [f.name.clone().into(), f.image.clone().into(), f.id.clone().into()]);
    session.output.table(["NAME", "IMAGE", "ID"], rows, &functions)
}

/// Shows a function.
pub async fn inspect(session: &Session, args: InspectArgs) -> Result<()> {
    let client = session.client()?;
    let function = client.function(&client.app(&args.app).await?, &args.name).await?;
    if !args.endpoint {
        return show(session, &serde_json::to_value(function)?, args.property.as_deref());
    }
    let endpoint = function.invoke_endpoint().ok_or_else(|| no_endpoint("function"))?;
    session.output.result(endpoint, &endpoint)
}

/// Error for a resource that the server gave no URL.
pub fn no_endpoint(kind: &str) -> Failure {
    Failure::new(format!("missing or invalid endpoint on {kind}"))
        .hint("the server tells it when it is asked through its edge; check --api-url / FN_API_URL")
}

/// Changes a function: reads it, changes it, writes it.
pub async fn update(session: &Session, args: UpdateArgs) -> Result<()> {
    let client = session.client()?;
    let mut function = client.function(&client.app(&args.app).await?, &args.name).await?;
    function.annotations = without_computed(function.annotations);
    if let Some(image) = args.image.or(args.image_option) {
        function.image = image;
    }
    args.options.put_on(&mut function);
    let function = client.update_function(&function.id, &function).await?;
    session.output.result(format_args!("{} {} updated", args.app, args.name), &function)
}

/// Removes a function. With `-r` first its triggers.
pub async fn delete(session: &Session, args: DeleteArgs) -> Result<()> {
    let client = session.client()?;
    let app = client.app(&args.app).await?;
    let function = client.function(&app, &args.name).await?;
    if args.removal.is_recursive() {
        let triggers = client.triggers(&app, Some(&function), Range::all()).await?;
        let what = format!("function {}", function.name);
        if !args.removal.confirm(session, 1, triggers.len(), &what)? {
            return session.output.say("Cancelling delete");
        }
        for trigger in &triggers {
            client.delete_trigger(&trigger.id).await?;
            session.output.say(format_args!("Trigger  {}  deleted", trigger.name))?;
        }
    }
    client.delete_function(&function.id).await?;
    session.output.result(format_args!("Function {} deleted", args.name), &function)
}
