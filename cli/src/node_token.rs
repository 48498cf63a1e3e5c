//! `kiln node token`: a secret with which one machine joins the fleet.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use clap::Args;
use kiln_shared::identity::Role;
use serde_json::json;

use crate::args::duration;
use crate::ca::{CaArgs, seconds};
use crate::failure::Failure;
use crate::output::Output;

const EXAMPLES: &str = "\
Run it where the fleet's CA is and hand the token to the machine that is to join; whoever has it
first joins in its place, once. It needs no server, and tells the machine whom to believe.

Examples:
  kiln node token                          for one agent, within an hour
  kiln node token --valid-for 10m --role balancer
  kiln node token | ssh node7 'umask 077; cat > /tmp/token'";

/// `kiln node token`
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct TokenArgs {
    #[command(flatten)]
    ca: CaArgs,
    /// What the machine will do
    #[arg(long, value_enum, value_name = "ROLE", default_value = "agent")]
    role: Role,
    /// How long the token can be used, as in 30m or 2d; at most 7d
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "1h")]
    valid_for: Duration,
}

/// Prints a token.
pub fn run(output: Output, args: &TokenArgs) -> Result<()> {
    let now = SystemTime::now();
    let token = args
        .ca
        .open(now)?
        .mint_token(args.role, args.valid_for, now)
        .map_err(|error| Failure::misuse(error.to_string()).hint("choose another --valid-for"))?;
    output.result(
        token.expose(),
        &json!({
            "token": token.expose(),
            "id": token.id().to_string(),
            "role": token.role(),
            "expires_at": seconds(token.expires_at())?.to_string(),
            "ca": token.ca().to_string(),
        }),
    )
}
