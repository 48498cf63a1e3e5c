//! The commands on contexts: create, list, inspect, update, delete, use, unset. No server is asked.

use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::contexts::{
    API_URL, ContextFile, ContextStore, DEFAULT_API_URL, DEFAULT_CONTEXT, PROVIDER, REGISTRY, check_api_url,
    check_name, no_such_context,
};
use crate::failure::Failure;
use crate::output::Output;

/// `kiln create context`
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  kiln create context prod --api-url https://kiln.example.com --registry me\n  \
                        kiln use context prod\n\nThe API URL is http://localhost:8080 unless --api-url tells another."
)]
pub struct CreateArgs {
    /// Name of the context
    name: String,
    /// Who speaks with the server; kiln knows one: default
    #[arg(long, default_value = DEFAULT_CONTEXT)]
    provider: String,
}

/// `kiln inspect context`
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Name of the context; the current one if left out
    name: Option<String>,
}

/// `kiln update context`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  kiln update context registry me\n  kiln update context registry --delete"
)]
pub struct UpdateArgs {
    /// What to change: api-url, registry or provider
    key: String,
    /// Its new value
    #[arg(required_unless_present = "delete")]
    value: Option<String>,
    /// Remove it from the context
    #[arg(long, conflicts_with = "value")]
    delete: bool,
}

/// `kiln delete context`
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Name of the context
    name: String,
}

/// `kiln use context`
#[derive(Debug, Args)]
pub struct UseArgs {
    /// Name of the context
    name: String,
}

/// Makes a context.
pub fn create(
    output: Output,
    store: &ContextStore,
    args: &CreateArgs,
    api_url: Option<String>,
    registry: Option<String>,
) -> Result<()> {
    check_name(&args.name)?;
    if store.read(&args.name)?.is_some() {
        return Err(Failure::new(format!("context {} already exists", args.name))
            .hint("change it with `kiln use context` and `kiln update context`, or delete it first")
            .into());
    }
    let api_url = api_url.unwrap_or_else(|| DEFAULT_API_URL.to_owned());
    check_api_url(&api_url)?;
    let context = ContextFile::from([
        (API_URL.to_owned(), api_url),
        (PROVIDER.to_owned(), args.provider.clone()),
        (REGISTRY.to_owned(), registry.unwrap_or_default()),
    ]);
    store.write(&args.name, &context)?;
    output.result(format_args!("Successfully created context: {}", args.name), &context)
}

/// Lists the contexts.
pub fn list(output: Output, store: &ContextStore, chosen: Option<&str>) -> Result<()> {
    let current = current_name(store, chosen)?;
    let contexts = store.list()?;
    let get = |context: &ContextFile, key: &str| context.get(key).cloned().unwrap_or_default();
    let values: Vec<_> = contexts
        .iter()
        .map(|(name, context)| {
            json!({
                "name": name, "current": *name == current, "provider": get(context, PROVIDER),
                "api-url": get(context, API_URL), "registry": get(context, REGISTRY),
            })
        })
        .collect();
    let rows = contexts.iter().map(|(name, context)| {
        let mark = if *name == current { "*" } else { "" };
        let [provider, api_url, registry] = [PROVIDER, API_URL, REGISTRY].map(|key| get(context, key).into());
        [mark.into(), name.clone().into(), provider, api_url, registry]
    });
    output.table(["CURRENT", "NAME", "PROVIDER", "API URL", "REGISTRY"], rows, &values)
}

/// Shows a context.
pub fn inspect(output: Output, store: &ContextStore, args: &InspectArgs, chosen: Option<&str>) -> Result<()> {
    let current = current_name(store, chosen)?;
    let name = args.name.as_ref().unwrap_or(&current);
    let context = find(store, name)?;
    if output.is_json() {
        return output.json(&context);
    }
    if *name == current {
        output.say(format_args!("Current context: {name}\n"))?;
    }
    for (key, value) in &context {
        output.say(format_args!("{key}: {value}"))?;
    }
    Ok(())
}

/// Changes a value of the context in use.
pub fn update(output: Output, store: &ContextStore, args: &UpdateArgs, chosen: Option<&str>) -> Result<()> {
    let name = current_name(store, chosen)?;
    let mut context = find(store, &name)?;
    if args.delete {
        if context.remove(&args.key).is_none() {
            return Err(Failure::new(format!("context {name} has no {}", args.key))
                .hint("`kiln inspect context` shows what it has")
                .into());
        }
        store.write(&name, &context)?;
        return output.result(format_args!("Current context deleted {}", args.key), &context);
    }
    let value = args.value.clone().unwrap_or_default();
    if args.key == API_URL {
        check_api_url(&value)?;
    }
    if ![API_URL, REGISTRY, PROVIDER].contains(&args.key.as_str()) {
        return Err(Failure::misuse(format!("a context has no {}", args.key))
            .hint("change api-url, registry or provider")
            .into());
    }
    context.insert(args.key.clone(), value.clone());
    store.write(&name, &context)?;
    output.result(format_args!("Current context updated {} with {value}", args.key), &context)
}

/// Removes a context.
pub fn delete(output: Output, store: &ContextStore, args: &DeleteArgs) -> Result<()> {
    check_name(&args.name)?;
    if args.name == DEFAULT_CONTEXT {
        return Err(Failure::new("cannot delete the default context").into());
    }
    if store.read(&args.name)?.is_none() {
        return Err(no_such_context(&args.name));
    }
    if store.current()?.as_ref() == Some(&args.name) {
        return Err(Failure::new(format!("cannot delete the current context: {}", args.name))
            .hint("leave it first with `kiln unset context`")
            .into());
    }
    store.remove(&args.name)?;
    output
        .result(format_args!("Successfully deleted context {}", args.name), &json!({ "deleted": args.name }))
}

/// Chooses a context.
pub fn use_context(output: Output, store: &ContextStore, args: &UseArgs) -> Result<()> {
    find(store, &args.name)?;
    store.set_current(Some(&args.name))?;
    output.result(format_args!("Now using context: {}", args.name), &json!({ "current": args.name }))
}

/// Goes back to the default context.
pub fn unset(output: Output, store: &ContextStore) -> Result<()> {
    if store.current()?.is_none() {
        return Err(Failure::new("no context is in use")
            .hint("choose one with `kiln use context NAME`")
            .into());
    }
    store.set_current(None)?;
    output.result("Successfully unset current context", &json!({ "current": null }))
}

fn current_name(store: &ContextStore, chosen: Option<&str>) -> Result<String> {
    match chosen.filter(|name| !name.is_empty()) {
        Some(name) => Ok(name.to_owned()),
        None => Ok(store.current()?.unwrap_or_else(|| DEFAULT_CONTEXT.to_owned())),
    }
}

fn find(store: &ContextStore, name: &str) -> Result<ContextFile> {
    check_name(name)?;
    store.list()?.remove(name).ok_or_else(|| no_such_context(name))
}
