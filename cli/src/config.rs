//! Config of apps and functions: set, get, list, unset. Each change sends only the name it changes.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;

use crate::client::config_change;
use crate::failure::Failure;
use crate::resources::{App, Config, Function};
use crate::session::Session;

/// An app's config value.
#[derive(Debug, Args)]
pub struct AppKey {
    /// Name of the app
    app: String,
    /// Name of the value
    key: String,
}

/// A function's config value.
#[derive(Debug, Args)]
pub struct FunctionKey {
    /// Name of the app
    app: String,
    /// Name of the function
    function: String,
    /// Name of the value
    key: String,
}

/// `kiln config`
#[derive(Debug, Subcommand)]
pub enum Set {
    /// Set a value for all functions of an app
    #[command(aliases = ["apps", "a"], after_help = "Example:\n  kiln config app demo DB_URL postgres://db/demo")]
    App {
        /// Which value.
        #[command(flatten)]
        key: AppKey,
        /// The value
        value: String,
    },
    /// Set a value for one function
    #[command(aliases = ["functions", "func", "funcs", "fn", "fns", "f"],
              after_help = "Example:\n  kiln config function demo hello GREETING Hi")]
    Function {
        /// Which value.
        #[command(flatten)]
        key: FunctionKey,
        /// The value
        value: String,
    },
}

/// `kiln get config`
#[derive(Debug, Subcommand)]
pub enum Get {
    /// Show a value of an app
    #[command(aliases = ["apps", "a"])]
    App(AppKey),
    /// Show a value of a function
    #[command(aliases = ["functions", "func", "funcs", "fn", "fns", "f"])]
    Function(FunctionKey),
}

/// `kiln list config`
#[derive(Debug, Subcommand)]
pub enum List {
    /// List the values of an app
    #[command(aliases = ["apps", "a"])]
    App {
        /// Name of the app
        app: String,
    },
    /// List the values of a function
    #[command(aliases = ["functions", "func", "funcs", "fn", "fns", "f"])]
    Function {
        /// Name of the app
        app: String,
        /// Name of the function
        function: String,
    },
}

/// `kiln unset config`
#[derive(Debug, Subcommand)]
pub enum Unset {
    /// Remove a value of an app
    #[command(aliases = ["apps", "a"])]
    App(AppKey),
    /// Remove a value of a function
    #[command(aliases = ["functions", "func", "funcs", "fn", "fns", "f"])]
    Function(FunctionKey),
}

async fn find_function(session: &Session, app: &str, function: &str) -> Result<Function> {
    let client = session.client()?;
    Ok(client.function(&client.app(app).await?, function).await?)
}

async fn find_app(session: &Session, app: &str) -> Result<App> {
    Ok(session.client()?.app(app).await?)
}

/// Sets a value.
pub async fn set(session: &Session, args: Set) -> Result<()> {
    let client = session.client()?;
    match args {
        Set::App { key: AppKey { app, key }, value } => {
            let id = find_app(session, &app).await?.id;
            let changed = client.update_app(&id, &config_change(&key, &value)).await?;
            session.output.result(format_args!("{app} updated {key} with {value}"), &changed)
        }
        Set::Function { key: FunctionKey { app, function, key }, value } => {
            let id = find_function(session, &app, &function).await?.id;
            let changed = client.update_function(&id, &config_change(&key, &value)).await?;
            session.output.result(format_args!("{app} {function} updated {key} with {value}"), &changed)
        }
    }
}

/// Shows a value.
pub async fn get(session: &Session, args: Get) -> Result<()> {
    let (config, key, list) = match args {
        Get::App(AppKey { app, key }) => {
            (find_app(session, &app).await?.config, key, format!("kiln list config app {app}"))
        }
        Get::Function(FunctionKey { app, function, key }) => {
            let list = format!("kiln list config function {app} {function}");
            (find_function(session, &app, &function).await?.config, key, list)
        }
    };
    let value = config.get(&key).ok_or_else(|| {
        Failure::new(format!("config key {key} does not exist")).hint(format!("`{list}` shows what there is"))
    })?;
    session.output.result(value, value)
}

/// Lists the values.
pub async fn list(session: &Session, args: List) -> Result<()> {
    let (config, of): (Config, String) = match args {
        List::App { app } => (find_app(session, &app).await?.config, format!("app: {app}")),
        List::Function { app, function } => {
            (find_function(session, &app, &function).await?.config, format!("function: {function}"))
        }
    };
    if config.is_empty() {
        session.note(&format!("no config found for {of}"))?;
    }
    let rows = config.iter().map(|(key, value)| [key.clone().into(), value.clone().into()]);
    session.output.table(["KEY", "VALUE"], rows, &config)
}

/// Removes a value. One that is not there is no error, as in Fn.
pub async fn unset(session: &Session, args: Unset) -> Result<()> {
    let client = session.client()?;
    let (found, key, of) = match args {
        Unset::App(AppKey { app, key }) => {
            let found = find_app(session, &app).await?;
            if found.config.contains_key(&key) {
                client.update_app(&found.id, &config_change(&key, "")).await?;
            }
            (found.config.contains_key(&key), key, format!("app '{app}'"))
        }
        Unset::Function(FunctionKey { app, function, key }) => {
            let found = find_function(session, &app, &function).await?;
            if found.config.contains_key(&key) {
                client.update_function(&found.id, &config_change(&key, "")).await?;
            }
            (found.config.contains_key(&key), key, format!("the function '{function}'"))
        }
    };
    let removed = json!({ "key": key, "removed": found });
    if found {
        session.output.result(format_args!("Removed key '{key}' from {of}"), &removed)
    } else {
        session.output.result(format_args!("Config key '{key}' does not exist. Nothing to do."), &removed)
    }
}
