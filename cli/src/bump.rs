//! `kiln bump`: raises the version in func.yaml.

use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::args::FolderArgs;
use crate::funcfile::Bump;
use crate::output::Output;

/// `kiln bump`
#[derive(Debug, Args)]
#[command(after_help = "Without an option the last number is raised: 1.2.3 becomes 1.2.4.")]
pub struct BumpArgs {
    /// Raise the first number
    #[arg(long, group = "part")]
    major: bool,
    /// Raise the second number
    #[arg(long, group = "part")]
    minor: bool,
    /// Raise the third number
    #[arg(long, group = "part")]
    patch: bool,
    #[command(flatten)]
    folder: FolderArgs,
}

/// Raises the version.
pub fn run(output: Output, args: &BumpArgs) -> Result<()> {
    let bump = match (args.major, args.minor) {
        (true, _) => Bump::Major,
        (_, true) => Bump::Minor,
        _ => Bump::Patch,
    };
    let mut file = args.folder.function()?;
    let version = file.bump(bump)?;
    output.result(
        format_args!("Bumped to version {version}"),
        &json!({ "name": file.name()?, "version": version }),
    )
}
