//! This agent's identity: what it was given, or what its join token gets it.

use std::fs;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};
use kiln_shared::identity::{CertificateRequest, Credentials, Identity, IdentityError, JoinToken, Role};
use kiln_shared::link::join::join;
use kiln_shared::link::quic::dialer;
use kiln_shared::program::DataFolder;
use quinn::Endpoint;

use crate::node::node_id;

/// A socket to dial balancers from.
///
/// # Errors
/// There is none to be had.
pub fn dial_socket() -> Result<Endpoint> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let v4 = || dialer(SocketAddr::from(([0, 0, 0, 0], 0)));
    // A machine without IPv6 has no socket of both kinds.
    dialer(any).or_else(|_| v4()).context("cannot open a UDP socket")
}

/// Joins the fleet of `token` at the first of `balancers` that answers, as the node of this data folder, and keeps the
/// identity in `folder`.
///
/// # Errors
/// None answers, or one refuses.
pub async fn join_fleet(
    folder: &Path,
    name: &str,
    token: &JoinToken,
    balancers: &[String],
    dialer: &Endpoint,
) -> Result<Identity> {
    // The same for all: a balancer whose answer was lost has used the token up for it, and others know that.
    let request = CertificateRequest::generate()?;
    let mut last = None;
    for balancer in balancers {
        let addresses = match tokio::net::lookup_host(balancer).await {
            Ok(addresses) => addresses,
            Err(error) => {
                last = Some(anyhow::Error::new(error).context(format!("cannot resolve {balancer}")));
                continue;
            }
        };
        for address in addresses {
            match join(dialer, address, token, name, &request).await {
                Ok(identity) => {
                    identity.save(folder)?;
                    return Ok(identity);
                }
                Err(error) => {
                    last = Some(anyhow::Error::new(error).context(format!("cannot join at {balancer}")));
                }
            }
        }
    }
    match last {
        Some(error) => Err(error),
        None => bail!("name a balancer to join at, as HOST:PORT of its link"),
    }
}

/// The identity in `folder`; if there is none, or its time is over, and there is a token: the one that it gets.
///
/// # Errors
/// There is neither, or one is bad.
pub async fn identity(
    folder: &Path,
    token_file: Option<&Path>,
    balancers: &[String],
    data: &DataFolder,
    dialer: &Endpoint,
) -> Result<Credentials> {
    let missing = match Credentials::open(folder, Role::Agent, SystemTime::now()) {
        Err(error) if matches!(error, IdentityError::Missing { .. }) || error.has_ended() => error,
        other => return Ok(other?),
    };
    let Some(token_file) = token_file else {
        return Err(anyhow::Error::new(missing).context(
            "this node has no identity to use; make a token with `kiln node token` on the host of the fleet's CA, then run \
             `kiln node join` here or give the token with --join-token-file",
        ));
    };
    let text = fs::read_to_string(token_file)
        .with_context(|| format!("cannot read the join token from {}", token_file.display()))?;
    let token: JoinToken =
        text.trim().parse().with_context(|| format!("{} holds no join token", token_file.display()))?;
    let identity = join_fleet(folder, node_id(data)?.as_str(), &token, balancers, dialer).await?;
    tracing::info!(node = identity.peer().name(), "joined the fleet");
    Ok(Credentials::open(folder, Role::Agent, SystemTime::now())?)
}
