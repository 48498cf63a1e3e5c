//! `kiln build`: builds a function's image.

use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::args::FolderArgs;
use crate::build::{BuildOptions, build};
use crate::session::Session;

/// `kiln build`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kiln build                     in Docker, by the folder's Dockerfile or one made for the runtime
  kiln build --build host        with this machine's Rust or Go, into an image without a base; needs no network")]
pub struct BuildArgs {
    #[command(flatten)]
    options: BuildOptions,
    #[command(flatten)]
    folder: FolderArgs,
}

/// Builds it.
pub async fn run(session: &Session, args: BuildArgs) -> Result<()> {
    let file = args.folder.function()?;
    let image = file.image(session.settings.registry.as_deref())?;
    let id = build(session.output, &file, &image, &args.options).await?;
    session.output.result(
        format_args!("Function {image} built successfully."),
        &json!({ "name": file.name()?, "image": image, "image_id": id }),
    )
}
