//! `kiln ca`: the fleet's certificate authority and the identities of balancers and agents.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use kiln_shared::identity::{CertificateAuthority, IDENTITY_FILE, Peer, Role};
use serde_json::json;

use crate::args::duration;
use crate::failure::Failure;
use crate::output::Output;

const INIT_EXAMPLES: &str = "\
The CA's key decides who belongs to the fleet. Keep it on the balancers that let nodes join, or
on a machine of its own, and keep a copy in a safe place: without it no node joins and no
certificate is renewed.

To replace a CA, make the new one in another folder. Append its ca.pem to the old one's and
restart the balancers; when all certificates are renewed, put its ca-key.pem in the old one's
place and restart them again; when all are renewed again, take the old certificate out of ca.pem.

Examples:
  kiln ca init                             make the CA in /etc/kiln/ca
  kiln ca issue --role balancer --name lb1 --out /etc/kiln/identity
                                           let this machine be a balancer
  kiln node token                          let a node join";

const ISSUE_EXAMPLES: &str = "\
FOLDER/identity.pem then holds the private key, its certificate and the CAs that it trusts. An
older one is replaced in one step; programs that use it notice within seconds, without a restart.

Examples:
  kiln ca issue --role balancer --name lb1 --out /etc/kiln/identity
  kiln ca issue --role agent --name node7 --valid-for 90d --out ./node7";

const SHOW_EXAMPLES: &str = "\
Examples:
  kiln ca show
  kiln ca show --output json | jq -r .fingerprint";

/// Where the CA is.
#[derive(Debug, Clone, Args)]
pub struct CaArgs {
    /// Folder of the fleet's CA
    #[arg(
        long = "ca-dir",
        visible_alias = "dir",
        env = "KILN_CA_DIR",
        value_name = "FOLDER",
        default_value = "/etc/kiln/ca"
    )]
    folder: PathBuf,
}

impl CaArgs {
    /// Opens the CA.
    ///
    /// # Errors
    /// There is none, or it is broken or has ended.
    pub fn open(&self, now: SystemTime) -> Result<CertificateAuthority> {
        Ok(CertificateAuthority::open(&self.folder, now)?)
    }
}

/// `kiln ca init`
#[derive(Debug, Args)]
#[command(after_help = INIT_EXAMPLES)]
pub struct InitArgs {
    #[command(flatten)]
    ca: CaArgs,
}

/// `kiln ca issue`
#[derive(Debug, Args)]
#[command(after_help = ISSUE_EXAMPLES)]
pub struct IssueArgs {
    #[command(flatten)]
    ca: CaArgs,
    /// What the machine does
    #[arg(long, value_enum, value_name = "ROLE")]
    role: Role,
    /// Its name: an agent's node id, or the balancer's name
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Life of the certificate, as in 12h or 30d; it ends with the CA at the latest
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30d")]
    valid_for: Duration,
    /// Folder to write identity.pem to
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
}

/// `kiln ca show`
#[derive(Debug, Args)]
#[command(after_help = SHOW_EXAMPLES)]
pub struct ShowArgs {
    #[command(flatten)]
    ca: CaArgs,
}

/// Makes a CA.
pub fn init(output: Output, args: &InitArgs) -> Result<()> {
    let ca = CertificateAuthority::init(&args.ca.folder, SystemTime::now())?;
    let (folder, fingerprint) = (args.ca.folder.display(), ca.fingerprint());
    let expires_at = seconds(ca.validity().not_after)?;
    output.result(
        format_args!("Made the fleet's CA {fingerprint} in {folder}, valid until {expires_at}"),
        &json!({
            "folder": args.ca.folder,
            "fingerprint": fingerprint.to_string(),
            "expires_at": expires_at.to_string(),
        }),
    )
}

/// Issues an identity.
pub fn issue(output: Output, args: &IssueArgs) -> Result<()> {
    let now = SystemTime::now();
    let peer = Peer::new(args.role, args.name.as_str())
        .map_err(|error| Failure::misuse(error.to_string()).hint("choose another --name"))?;
    let identity = args.ca.open(now)?.issue(&peer, args.valid_for, now)?;
    identity.save(&args.out)?;
    let (path, expires_at) = (args.out.join(IDENTITY_FILE), seconds(identity.validity().not_after)?);
    output.result(
        format_args!("Issued {peer} to {}, valid until {expires_at}", path.display()),
        &json!({
            "identity": path,
            "role": peer.role(),
            "name": peer.name(),
            "fingerprint": identity.fingerprint().to_string(),
            "expires_at": expires_at.to_string(),
        }),
    )
}

/// Shows the CA.
pub fn show(output: Output, args: &ShowArgs) -> Result<()> {
    let ca = args.ca.open(SystemTime::now())?;
    let expires_at = seconds(ca.validity().not_after)?;
    let trusted: Vec<_> = ca.trusted().iter().map(ToString::to_string).collect();
    if output.is_json() {
        return output.json(&json!({
            "folder": args.ca.folder,
            "fingerprint": ca.fingerprint().to_string(),
            "expires_at": expires_at.to_string(),
            "trusted": trusted,
        }));
    }
    output.say(format_args!("Folder:       {}", args.ca.folder.display()))?;
    output.say(format_args!("Fingerprint:  {}", ca.fingerprint()))?;
    output.say(format_args!("Valid until:  {expires_at}"))?;
    for other in trusted.iter().filter(|other| **other != ca.fingerprint().to_string()) {
        output.say(format_args!("Also trusted: {other}"))?;
    }
    Ok(())
}

/// A time in whole seconds, as text and JSON show it.
pub fn seconds(time: SystemTime) -> Result<Timestamp> {
    let time = Timestamp::try_from(time)?;
    Ok(Timestamp::from_second(time.as_second())?)
}
