//! `kiln deploy`: from a folder to a function that can be called.
//!
//! For each function: bump, build, push, make or change it on the server, then its triggers. The app is looked up
//! before anything is built, so that a wrong name costs nothing.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::{Value, json};

use crate::build::{BuildOptions, build, docker};
use crate::client::{ApiError, Client};
use crate::failure::Failure;
use crate::funcfile::{AppSpec, Bump, FuncFile, function_folders};
use crate::functions;
use crate::resources::{App, Function, IMAGE_DIGEST, Trigger};
use crate::session::Session;
use crate::triggers::{say_created, with_slash};

/// `kiln deploy`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kiln deploy --app demo --create-app --local               build in Docker, do not push
  kiln deploy --app demo --create-app --local --build host  build with this machine's Rust or Go; needs no network
  kiln deploy --app demo --registry me                      build, push to the registry, deploy
  kiln deploy --all                                         all functions below a folder with an app.yaml

The version in func.yaml is raised first, unless --no-bump is given.")]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub struct DeployArgs {
    /// App to deploy to; from app.yaml if left out
    #[arg(long, value_name = "NAME")]
    app: Option<String>,
    /// Make the app if there is none
    #[arg(long)]
    create_app: bool,
    /// Do not push: the server runs on this machine
    #[arg(long, visible_alias = "skip-push")]
    local: bool,
    /// Deploy all functions below the folder
    #[arg(long)]
    all: bool,
    /// Leave the version as it is
    #[arg(long)]
    no_bump: bool,
    #[command(flatten)]
    build: BuildOptions,
    /// Folder of the function
    #[arg(conflicts_with = "dir")]
    folder: Option<PathBuf>,
    /// Folder of the function
    #[arg(long, visible_alias = "working-dir", short = 'w', value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

/// Deploys one function or all.
pub async fn run(session: &Session, args: DeployArgs) -> Result<()> {
    let root = args.folder.clone().or_else(|| args.dir.clone()).unwrap_or_else(|| PathBuf::from("."));
    if !root.is_dir() {
        return Err(Failure::misuse(format!("there is no folder {}", root.display()))
            .hint("check the path")
            .into());
    }
    let app_spec = app_spec(&root, args.all)?;
    let name = args.app.clone().or_else(|| app_spec.as_ref().and_then(|spec| spec.name.clone()));
    let name = name.ok_or_else(|| {
        Failure::misuse("which app shall the function be in?").hint("name it with --app NAME, or in app.yaml")
    })?;
    // Files are read before the server is asked or anything is built: mistakes in them cost nothing.
    let mut files = function_files(&root, args.all)?;
    let client = session.client()?;
    let app = ensure_app(&client, session, &name, app_spec, args.create_app).await?;
    let mut deployed = Vec::new();
    for file in &mut files {
        let of = file.path.display().to_string();
        let one = deploy_one(session, &client, &app, file, &args).await;
        deployed.push(if args.all { one.with_context(|| format!("deploy error on {of}"))? } else { one? });
    }
    if session.output.is_json() {
        return session.output.json(&json!({ "app": app.name, "app_id": app.id, "functions": deployed }));
    }
    Ok(())
}

/// The app's file: in the folder itself.
fn app_spec(root: &Path, all: bool) -> Result<Option<AppSpec>> {
    let spec = AppSpec::load(root)?;
    if spec.is_none() && all {
        return Err(Failure::new(format!("there is no app.yaml in {}", root.display()))
            .hint("--all deploys the functions below a folder with an app.yaml; `name: APP` is all it needs")
            .into());
    }
    Ok(spec)
}

fn function_files(root: &Path, all: bool) -> Result<Vec<FuncFile>> {
    if !all {
        return Ok(vec![FuncFile::load(root)?]);
    }
    let folders =
        function_folders(root).with_context(|| format!("cannot look through {}", root.display()))?;
    if folders.is_empty() {
        return Err(Failure::new("No functions found to deploy").hint("make one with `kiln init`").into());
    }
    let mut files = Vec::new();
    for folder in folders {
        let mut file = FuncFile::load(&folder)?;
        if file.spec.name.is_none()
            && let Ok(below) = folder.strip_prefix(root)
            && !below.as_os_str().is_empty()
        {
            // As Fn: the path below the app's folder.
            file.spec.name = Some(below.to_string_lossy().to_lowercase().replace('/', "-"));
        }
        files.push(file);
    }
    Ok(files)
}

async fn ensure_app(
    client: &Client,
    session: &Session,
    name: &str,
    spec: Option<AppSpec>,
    create: bool,
) -> Result<App> {
    let has_spec = spec.is_some();
    let spec = spec.unwrap_or_default();
    let wanted = App {
        name: name.to_owned(),
        config: spec.config,
        annotations: spec.annotations,
        syslog_url: spec.syslog_url.filter(|url| !url.is_empty()),
        shape: spec.shape,
        ..App::default()
    };
    match client.app(name).await {
        Ok(app) if has_spec => {
            // The name must be the app's own, and a shape cannot be changed: neither is part of an update.
            let changes = App { name: String::new(), shape: String::new(), ..wanted };
            Ok(client.update_app(&app.id, &changes).await?)
        }
        Ok(app) => Ok(app),
        Err(error) if error.is_name_not_found() && create => {
            let app = client.create_app(&wanted).await?;
            session.output.say(format_args!("Successfully created app:  {}", app.name))?;
            Ok(app)
        }
        Err(error @ ApiError::NameNotFound { .. }) => Err(Failure::new(error.to_string())
            .hint("add --create-app to make it, or see `kiln list apps`")
            .into()),
        Err(error) => Err(error.into()),
    }
}

async fn deploy_one(
    session: &Session,
    client: &Client,
    app: &App,
    file: &mut FuncFile,
    args: &DeployArgs,
) -> Result<Value> {
    let output = session.output;
    let name = file.name()?;
    output.say(format_args!("Deploying {name} to app: {}", app.name))?;
    let registry = session.settings.registry.as_deref();
    if !args.local && !file.image(registry)?.contains('/') {
        // Told before anything is done rather than after the build.
        return Err(Failure::misuse(format!("the image of {name} names no registry to push to"))
            .hint("add --local if the server runs on this machine; else give --registry or FN_REGISTRY")
            .into());
    }
    if !args.no_bump {
        let version = file.bump(Bump::Patch)?;
        output.say(format_args!("Bumped to version {version}"))?;
    }
    let image = file.image(registry)?;
    let image_id = build(output, file, &image, &args.build).await?;
    if !args.local {
        docker::push(output, &image).await?;
    }
    output.say(format_args!("Updating function {name} using image {image}..."))?;
    let function = put_function(session, client, app, file, &name, &image, &image_id).await?;
    let mut triggers = Vec::new();
    for spec in &file.spec.triggers {
        let wanted = Trigger {
            name: spec.name.clone(),
            app_id: app.id.clone(),
            fn_id: function.id.clone(),
            kind: spec.kind.clone(),
            source: with_slash(&spec.source),
            ..Trigger::default()
        };
        triggers.push(put_trigger(session, client, app, &function, wanted).await?);
    }
    Ok(json!({
        "name": name,
        "id": function.id,
        "version": file.version(),
        "image": image,
        "image_id": image_id,
        "invoke_endpoint": function.invoke_endpoint(),
        "triggers": triggers,
    }))
}

async fn put_function(
    session: &Session,
    client: &Client,
    app: &App,
    file: &FuncFile,
    name: &str,
    image: &str,
    image_id: &str,
) -> Result<Function> {
    let spec = &file.spec;
    let mut wanted = Function {
        image: image.to_owned(),
        memory: spec.memory,
        timeout: spec.timeout,
        idle_timeout: spec.idle_timeout,
        config: spec.config.clone(),
        annotations: spec.annotations.clone(),
        ..Function::default()
    };
    wanted.annotations.insert(IMAGE_DIGEST.to_owned(), image_id.into());
    match client.function(app, name).await {
        Ok(found) => {
            wanted.id.clone_from(&found.id);
            let updated = client.update_function(&found.id, &wanted).await?;
            // A server that annotates only what it is asked for tells the endpoint in the first answer.
            Ok(if updated.invoke_endpoint().is_some() { updated } else { found })
        }
        Err(error) if error.is_name_not_found() => {
            name.clone_into(&mut wanted.name);
            app.id.clone_into(&mut wanted.app_id);
            let function = client.create_function(&wanted).await?;
            session.output.say(functions::created(&function))?;
            Ok(function)
        }
        Err(error) => Err(error.into()),
    }
}

async fn put_trigger(
    session: &Session,
    client: &Client,
    app: &App,
    function: &Function,
    mut wanted: Trigger,
) -> Result<Trigger> {
    match client.trigger(app, function, &wanted.name).await {
        Ok(found) => {
            wanted.id.clone_from(&found.id);
            let updated = client.update_trigger(&found.id, &wanted).await?;
            let shown = if updated.endpoint().is_some() {
                updated
            } else {
                Trigger { source: wanted.source, ..found }
            };
            if let Some(endpoint) = shown.endpoint() {
                session.output.say(format_args!("Trigger Endpoint: {endpoint}"))?;
            }
            Ok(shown)
        }
        Err(error) if error.is_name_not_found() => {
            let trigger = client.create_trigger(&wanted).await?;
            say_created(session.output, &trigger)?;
            Ok(trigger)
        }
        Err(error) => Err(error.into()),
    }
}
