//! Builds in Docker, through Docker's own command line: it knows its contexts, credentials and builders best.

use std::io;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use tokio::process::Command;

use super::{BuildOptions, tool};
use crate::failure::Failure;
use crate::funcfile::FuncFile;
use crate::output::{Output, Step};
use crate::runtimes::{Language, Runtime};

/// Builds the function's Dockerfile, or the one made for its runtime; returns the image's id.
pub(super) async fn build(
    output: Output,
    step: &Step,
    file: &FuncFile,
    runtime: &Runtime,
    image: &str,
    options: &BuildOptions,
) -> Result<String> {
    let own = file.folder().join("Dockerfile");
    // Lives until the build is over. Outside of the folder, so that it is not part of the image.
    let mut made = None;
    let dockerfile = if own.exists() {
        own
    } else if runtime.language == Language::Docker {
        return Err(Failure::new(format!("{} does not exist", own.display()))
            .hint("the runtime docker needs a Dockerfile; name the function's language in func.yaml for one that is made for it")
            .into());
    } else {
        let text = runtime.dockerfile(file);
        if output.verbose {
            output.warn(format_args!("Dockerfile made for {}:\n{text}", runtime.name()))?;
        }
        let path = std::env::temp_dir().join(format!(
            "kiln-dockerfile-{}-{}",
            std::process::id(),
            file.name()?.replace('/', "-")
        ));
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        made.insert(RemovedOnDrop(path)).0.clone()
    };
    let mut command = docker();
    command.args(["build", "--tag", image, "--file"]).arg(&dockerfile);
    if options.no_cache {
        command.arg("--no-cache");
    }
    for (name, value) in &options.build_arg {
        command.args(["--build-arg", &format!("{name}={value}")]);
    }
    command.arg(file.folder());
    let built = tool::run(output, step, "docker build", command).await;
    drop(made);
    built.map_err(explain)?;
    image_id(image).await
}

struct RemovedOnDrop(std::path::PathBuf);

impl Drop for RemovedOnDrop {
    fn drop(&mut self) {
        // A file left in the temporary folder does no harm.
        std::fs::remove_file(&self.0).ok();
    }
}

/// Pushes an image to the registry in its name.
pub async fn push(output: Output, image: &str) -> Result<()> {
    if !image.contains('/') {
        return Err(Failure::new(format!("the image {image} names no registry to push to"))
            .hint("give one with --registry or FN_REGISTRY or `kiln update context registry NAME`; or deploy with --local")
            .into());
    }
    output.say(format_args!("Pushing {image} to its registry..."))?;
    let step = output.step(format!("Pushing {image}"));
    let mut command = docker();
    command.args(["push", image]);
    tool::run(output, &step, "docker push", command).await.map_err(|error| {
        if is_missing(&error) {
            explain(error)
        } else {
            error.context("log in with `docker login` if the registry wants it")
        }
    })
}

/// The id of a local image, `sha256:...`.
async fn image_id(image: &str) -> Result<String> {
    let mut command = docker();
    command.args(["image", "inspect", "--format", "{{.Id}}", image]).stdin(Stdio::null());
    let answer = command.output().await.context("cannot run docker image inspect").map_err(explain)?;
    let id = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
    if answer.status.success() && !id.is_empty() {
        return Ok(id);
    }
    Err(Failure::new(format!("docker does not know the image {image} that it just built"))
        .hint("check that docker build and docker image inspect use the same engine (`docker context ls`)")
        .into())
}

fn docker() -> Command {
    Command::new("docker")
}

fn is_missing(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::NotFound))
}

/// Docker's command line is not there: says so instead of "no such file".
fn explain(error: anyhow::Error) -> anyhow::Error {
    if !is_missing(&error) {
        return error;
    }
    Failure::new("there is no docker command on this machine")
        .hint("install Docker's command line, or build Rust and Go functions with --build host")
        .into()
}
