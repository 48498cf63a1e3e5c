//! Building a function's image: in Docker, or with this machine's own tool chain.
//!
//! Owns the choice, the commands that func.yaml wants run first, and how tools are run and their output shown.

pub mod docker;
pub mod host;
pub mod image;
mod tool;

use anyhow::Result;
use clap::{Args, ValueEnum};
use tokio::process::Command;

use crate::failure::Failure;
use crate::funcfile::FuncFile;
use crate::output::Output;
use crate::runtimes::{self, Runtime};

/// What builds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Builder {
    /// Docker: a Dockerfile with a stage that builds and a stage that runs.
    #[default]
    Docker,
    /// This machine's compiler: a static binary in an image of its own. Needs no base images and no network.
    Host,
}

/// How to build.
#[derive(Debug, Clone, Args)]
pub struct BuildOptions {
    /// Where to build: docker, or host for this machine's Rust or Go and an image without a base
    #[arg(
        long = "build",
        value_enum,
        value_name = "WHERE",
        default_value_t,
        env = "KILN_BUILD",
        hide_env_values = true,
        hide_possible_values = true
    )]
    pub builder: Builder,
    /// Do not use what Docker kept of earlier builds
    #[arg(long)]
    pub no_cache: bool,
    /// Variable of the Docker build; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = crate::args::key_value)]
    pub build_arg: Vec<(String, String)>,
}

/// Builds the image of a function under the name `image`; returns the image's id (`sha256:...`).
pub async fn build(output: Output, file: &FuncFile, image: &str, options: &BuildOptions) -> Result<String> {
    output.say(format_args!("Building image {image}"))?;
    for warning in file.unknown_fields() {
        output.warn(warning)?;
    }
    let runtime = runtime_of(file)?;
    let step = output.step(format!("Building image {image}"));
    for command in &file.spec.build {
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).current_dir(file.folder());
        tool::run(output, &step, &format!("the build command `{command}`"), shell).await?;
    }
    match options.builder {
        Builder::Docker => docker::build(output, &step, file, &runtime, image, options).await,
        Builder::Host => {
            let binary = host::compile(output, &step, file, &runtime).await?;
            step.now("making the image");
            image::load(image, &binary, file).await
        }
    }
}

fn runtime_of(file: &FuncFile) -> Result<Runtime> {
    let Some(text) = &file.spec.runtime else {
        return Runtime::detect(file.folder()).ok_or_else(|| {
            Failure::new(format!("{} names no runtime", file.path.display()))
                .hint(format!("add `runtime:` with one of {}", runtimes::names()))
                .into()
        });
    };
    Runtime::parse(text).ok_or_else(|| {
        Failure::new(format!("{}: there is no runtime {text:?}", file.path.display()))
            .hint(format!("use one of {}", runtimes::names()))
            .into()
    })
}
