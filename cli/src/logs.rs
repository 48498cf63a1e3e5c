//! What functions wrote: the log of a call.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;

use crate::calls::find_function;
use crate::client::Range;
use crate::failure::Failure;
use crate::session::Session;

/// `kiln logs`, with or without `get`
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  kiln logs demo hello             the last call\n  \
                        kiln logs get demo hello 01M83NY620R00040GZM0000001"
)]
pub struct LogsArgs {
    #[command(subcommand)]
    command: Option<LogsCommand>,
    #[command(flatten)]
    get: Option<GetArgs>,
}

#[derive(Debug, Subcommand)]
enum LogsCommand {
    /// Show what a function wrote during a call
    Get(GetArgs),
}

impl LogsArgs {
    /// The arguments, wherever they were given.
    pub fn into_get(self) -> Result<GetArgs> {
        let given = self.command.map(|LogsCommand::Get(args)| args).or(self.get);
        Ok(given
            .ok_or_else(|| Failure::misuse("which function's log?").hint("use `kiln logs APP FUNCTION`"))?)
    }
}

/// `kiln get logs`
#[derive(Debug, Args)]
pub struct GetArgs {
    /// Name of the app
    app: String,
    /// Name of the function
    function: String,
    /// The call's id, or `last`
    #[arg(default_value = "last")]
    call_id: String,
}

/// Shows the log of a call.
pub async fn get(session: &Session, args: GetArgs) -> Result<()> {
    let client = session.client()?;
    let function = find_function(session, &args.app, &args.function).await?;
    let call_id = if matches!(args.call_id.as_str(), "last" | "l") {
        let latest = client.calls(&function, None, None, Range { items_max: 1, cursor: None }).await?;
        let no_calls = || Failure::new("no previous calls found").hint("a call shows here after it ended");
        latest.into_iter().next().ok_or_else(no_calls)?.id
    } else {
        args.call_id
    };
    let log = client.call_log(&function, &call_id).await?;
    if session.output.is_json() {
        return session.output.json(&json!({ "call_id": call_id, "log": log }));
    }
    session.output.raw(log.as_bytes())
}
