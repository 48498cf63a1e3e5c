//! `kiln push`: pushes a function's image.

use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::args::FolderArgs;
use crate::build::docker;
use crate::session::Session;

/// `kiln push`
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  kiln push --registry me\n\nLog in with `docker login` first if the registry wants it."
)]
pub struct PushArgs {
    #[command(flatten)]
    folder: FolderArgs,
}

/// Pushes it.
pub async fn run(session: &Session, args: PushArgs) -> Result<()> {
    let file = args.folder.function()?;
    let image = file.image(session.settings.registry.as_deref())?;
    docker::push(session.output, &image).await?;
    session.output.result(
        format_args!("Function {image} pushed successfully."),
        &json!({ "name": file.name()?, "image": image }),
    )
}
