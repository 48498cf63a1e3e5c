//! This balancer's own identity: what it was given, or what it signs itself with the key of the fleet's CA.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use kiln_shared::identity::{
    CERTIFICATE_VALID_FOR, CertificateAuthority, Credentials, IdentityError, Peer, Role,
};

/// How often it is looked whether the certificate is to be renewed.
const LOOK_EVERY: Duration = Duration::from_mins(1);

/// The identity in `folder`; if there is none, or its time is over, and there is `authority`: one for
/// `name` that it signs.
///
/// # Errors
/// There is neither, or one is bad.
pub(super) fn identity(
    folder: &Path,
    name: &str,
    authority: Option<&CertificateAuthority>,
) -> Result<Credentials> {
    let missing = match Credentials::open(folder, Role::Balancer, SystemTime::now()) {
        Err(error) if matches!(error, IdentityError::Missing { .. }) || error.has_ended() => error,
        other => return Ok(other?),
    };
    let Some(authority) = authority else {
        return Err(anyhow::Error::new(missing).context(
            "this balancer has no certificate; issue one with `kiln ca issue`, or give it the key of the fleet's CA with --ca-dir",
        ));
    };
    let peer = Peer::new(Role::Balancer, name).context("choose the balancer's name with --name")?;
    authority.issue(&peer, CERTIFICATE_VALID_FOR, SystemTime::now())?.save(folder)?;
    Ok(Credentials::open(folder, Role::Balancer, SystemTime::now())?)
}

/// The CA in `folder`, if one is given.
///
/// # Errors
/// It cannot be read.
pub(super) fn authority(folder: Option<&PathBuf>) -> Result<Option<Arc<CertificateAuthority>>> {
    let open = |folder: &PathBuf| CertificateAuthority::open(folder, SystemTime::now()).map(Arc::new);
    Ok(folder.map(open).transpose()?)
}

/// Renews the certificate for ever, each time after two thirds of its life.
pub(super) async fn renew(credentials: Credentials, authority: Arc<CertificateAuthority>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let (credentials, authority) = (credentials.clone(), Arc::clone(&authority));
        // Signing and writing take their time.
        let renewed = tokio::task::spawn_blocking(move || -> Result<()> {
            let current = credentials.current();
            let trusts_the_same = current.trusted() == authority.trusted();
            if current.renew_at() > SystemTime::now() && trusts_the_same {
                return Ok(());
            }
            let identity = authority.issue(current.peer(), CERTIFICATE_VALID_FOR, SystemTime::now())?;
            Ok(credentials.install(identity)?)
        });
        if let Ok(Err(error)) = renewed.await {
            tracing::warn!("this balancer's certificate is not renewed yet: {error:#}");
        }
    }
}
