//! `kiln node join`: this machine's first certificate.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use kiln_agent::identity::{dial_socket, join_fleet};
use kiln_agent::node::node_id;
use kiln_shared::address::host_port;
use kiln_shared::identity::{IDENTITY_FILE, JoinToken};
use kiln_shared::program::DataFolder;
use serde_json::json;

use crate::failure::Failure;
use crate::output::Output;

/// `kiln node join`
#[derive(Debug, Args)]
#[command(after_help = "\
Run it on the machine that is to be a node, with a token of `kiln node token`, before its kiln-agent is started for the
first time. The agent renews the certificate by itself from then on. kiln-agent --join-token-file does the same.

Examples:
  kiln node join --balancer 10.0.0.2:8082 --token-file /tmp/token
  kiln node token | ssh node7 kiln node join --balancer 10.0.0.2:8082 --token-file -")]
pub struct JoinArgs {
    /// A balancer's link address; may be given several times
    #[arg(
        long = "balancer",
        env = "KILN_BALANCERS",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        value_parser = host_port,
        required = true
    )]
    balancers: Vec<String>,
    /// File with the token; - is standard input
    #[arg(long, env = "KILN_JOIN_TOKEN_FILE", value_name = "FILE")]
    token_file: PathBuf,
    /// Name of the node [default: one that is made and kept in the data folder]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Data folder of the agent
    #[arg(long, env = "KILN_AGENT_DATA_DIR", value_name = "FOLDER", default_value = "/var/lib/kiln-agent")]
    data_dir: PathBuf,
    /// Join although this machine has an identity already, and replace that
    #[arg(long)]
    force: bool,
}

/// Joins.
pub fn run(output: Output, args: &JoinArgs) -> Result<()> {
    let text = if args.token_file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin()).context("cannot read the token from standard input")?
    } else {
        std::fs::read_to_string(&args.token_file)
            .with_context(|| format!("cannot read the token from {}", args.token_file.display()))?
    };
    let token: JoinToken = text
        .trim()
        .parse()
        .map_err(|error| Failure::new(format!("{error}")).hint("make a token with `kiln node token`"))?;
    let folder = DataFolder::open(&args.data_dir)?;
    let identity_dir = folder.path().join("identity");
    if !args.force && identity_dir.join(IDENTITY_FILE).exists() {
        let file = identity_dir.join(IDENTITY_FILE);
        return Err(Failure::new(format!("this machine has an identity already, {}", file.display()))
            .hint("start kiln-agent, or join again with --force")
            .into());
    }
    let name = match &args.name {
        Some(name) => name.clone(),
        None => node_id(&folder)?.to_string(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let identity = runtime.block_on(async {
        let dialer = dial_socket()?;
        join_fleet(&identity_dir, &name, &token, &args.balancers, &dialer).await
    })?;
    output.result(
        format!("Joined as {name}. Start kiln-agent with --balancer {}.", args.balancers.join(",")),
        &json!({
            "node": name,
            "identity": identity_dir.join(IDENTITY_FILE),
            "certificate": identity.fingerprint().to_string(),
        }),
    )
}
