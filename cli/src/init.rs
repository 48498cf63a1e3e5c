//! `kiln init`: makes a function's project, or a func.yaml beside code that is there already.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::json;

use crate::failure::Failure;
use crate::funcfile::{FuncFile, FuncSpec, INITIAL_VERSION, SCHEMA_VERSION, TriggerSpec, check_name};
use crate::functions::FunctionOptions;
use crate::output::Output;
use crate::runtimes::{self, DOCKER, Language, Runtime};

/// `kiln init`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kiln init --runtime rust --trigger http hello     a new folder hello with a Rust function
  kiln init --runtime python3.11                    in this folder
  kiln init                                         a func.yaml for the code or Dockerfile in this folder

Runtimes: rust, go, python, node, java, ruby, kotlin, docker (with your own Dockerfile). Add a version to choose one.
Rust and Go functions can be built without base images: `kiln deploy --build host`.")]
pub struct InitArgs {
    /// Folder to make; this one if left out
    folder: Option<PathBuf>,
    /// Language of the function, such as rust or python3.11
    #[arg(long)]
    runtime: Option<String>,
    /// Name of the function; the folder's in lower case if left out
    #[arg(long)]
    name: Option<String>,
    /// Write func.yaml even if there is one, and into a folder that exists; code that is there stays
    #[arg(long)]
    force: bool,
    /// Make a trigger /NAME of this type
    #[arg(long, value_parser = ["http"], value_name = "TYPE")]
    trigger: Option<String>,
    /// First version
    #[arg(long, default_value = INITIAL_VERSION)]
    version: String,
    /// Program and arguments of the container
    #[arg(long)]
    entrypoint: Option<String>,
    /// Arguments of the image's own entry point
    #[arg(long)]
    cmd: Option<String>,
    #[command(flatten)]
    options: FunctionOptions,
    /// Work in this folder
    #[arg(long = "working-dir", short = 'w', value_name = "FOLDER", default_value = ".")]
    working_dir: PathBuf,
}

/// Makes the project.
pub fn run(output: Output, args: InitArgs) -> Result<()> {
    let folder = match &args.folder {
        Some(folder) => args.working_dir.join(folder),
        None => args.working_dir.clone(),
    };
    if args.folder.is_some() && folder.exists() && !args.force {
        return Err(Failure::new(format!("{} exists already", folder.display()))
            .hint("choose another folder, or go there and run `kiln init`; --force uses it as it is")
            .into());
    }
    if FuncFile::exists(&folder) && !args.force {
        return Err(Failure::new(format!("{} has a function's file already", folder.display()))
            .hint("--force writes it anew")
            .into());
    }
    let runtime = choose_runtime(args.runtime.as_deref(), &folder)?;
    let name = name_of(args.name.as_deref(), &folder)?;
    // Code is only made when a runtime was asked for; without one it is there already.
    let mut files = if args.runtime.is_some() { runtime.project(&name) } else { Vec::new() };
    if runtime.language == Language::Docker && folder.join("Dockerfile").exists() {
        files.clear();
    }
    let taken = files.iter().find(|(path, _)| folder.join(path).exists());
    if let (Some((path, _)), false) = (taken, args.force) {
        return Err(Failure::new(format!("{} exists already", folder.join(path).display()))
            .hint("`kiln init` without --runtime takes the code that is there; --force keeps it and writes the rest")
            .into());
    }
    let spec = describe(args, &runtime, &name);
    if let Some(given) = folder.file_name().filter(|_| folder != Path::new(".")) {
        output.say(format_args!("Creating function at: ./{}", given.to_string_lossy()))?;
    }
    for (path, text) in &files {
        let path = folder.join(path);
        if !path.exists() {
            write(&path, text)?;
        }
    }
    if !files.is_empty() {
        output.say("Function boilerplate generated.")?;
    }
    let path = folder.join("func.yaml");
    write(&path, &serde_saphyr::to_string(&spec)?)?;
    output.result(
        "func.yaml created.",
        &json!({ "name": name, "runtime": spec.runtime, "folder": folder, "func_file": path }),
    )
}

fn choose_runtime(given: Option<&str>, folder: &Path) -> Result<Runtime> {
    let Some(text) = given else {
        return Runtime::detect(folder).ok_or_else(|| {
            Failure::misuse("cannot tell what this function is written in")
                .hint(format!("name it with --runtime: {}", runtimes::names()))
                .into()
        });
    };
    Runtime::parse(text).ok_or_else(|| {
        Failure::misuse(format!("there is no runtime {text:?}"))
            .hint(format!("use one of {}; with --runtime {DOCKER} any language works", runtimes::names()))
            .into()
    })
}

fn name_of(given: Option<&str>, folder: &Path) -> Result<String> {
    let name = match given {
        Some(name) => name.to_lowercase(),
        None => std::path::absolute(folder)?
            .components()
            .next_back()
            .map(|last| last.as_os_str().to_string_lossy().to_lowercase())
            .unwrap_or_default(),
    };
    check_name(&name)
        .map_err(|text| Failure::misuse(format!("{name:?}: {text}")).hint("give another with --name"))?;
    Ok(name)
}

fn describe(args: InitArgs, runtime: &Runtime, name: &str) -> FuncSpec {
    let own_command = args.entrypoint.is_some() || args.cmd.is_some();
    FuncSpec {
        schema_version: Some(SCHEMA_VERSION),
        name: Some(name.to_owned()),
        version: Some(args.version),
        runtime: Some(args.runtime.unwrap_or_else(|| runtime.name())),
        build_image: runtime.build_image(),
        run_image: runtime.run_image(),
        entrypoint: if own_command { args.entrypoint } else { runtime.entrypoint().map(str::to_owned) },
        cmd: if own_command { args.cmd } else { runtime.cmd().map(str::to_owned) },
        memory: args.options.memory.or(runtime.memory()),
        timeout: args.options.timeout,
        idle_timeout: args.options.idle_timeout,
        config: args.options.config.into_iter().collect(),
        annotations: args.options.annotation.into_iter().collect(),
        triggers: args
            .trigger
            .map(|kind| TriggerSpec { name: name.to_owned(), kind, source: format!("/{name}") })
            .into_iter()
            .collect(),
        ..FuncSpec::default()
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(path, text));
    written.with_context(|| format!("cannot write {}", path.display()))
}
