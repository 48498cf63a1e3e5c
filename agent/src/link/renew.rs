//! The agent's certificate, renewed before it ends. No connection is cut for it.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use kiln_shared::identity::{CertificateRequest, Credentials, Role};
use kiln_shared::link::message::{Answer, Ask};

use super::Linked;

/// Pause after a try to renew it. It is asked for long before the end.
const RETRY_PAUSE: Duration = Duration::from_mins(1);

/// Renews the certificate for ever, each time after two thirds of its life.
pub async fn renew(credentials: Credentials, linked: Linked) {
    loop {
        let until = credentials.current().renew_at().duration_since(SystemTime::now());
        // The wall clock may be set meanwhile: look again now and then.
        tokio::time::sleep(until.unwrap_or_default().min(RETRY_PAUSE)).await;
        if credentials.current().renew_at() > SystemTime::now() {
            continue;
        }
        if let Err(error) = renew_once(&credentials, &linked).await {
            let ends_in_seconds = credentials.expires_in(SystemTime::now()).as_secs();
            tracing::warn!(ends_in_seconds, "the certificate is not renewed yet: {error:#}");
        }
        // Also after success: what a CA signs in its own last minutes is to be renewed at once.
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

async fn renew_once(credentials: &Credentials, linked: &Linked) -> Result<()> {
    let request = CertificateRequest::generate()?;
    let question = Ask::Renew { request_pem: request.csr_pem().to_owned() };
    let Answer::Certificate(signed) = linked.ask(&question).await? else {
        bail!("a balancer answered something else");
    };
    let identity = request.complete(&signed, Role::Agent, SystemTime::now())?;
    let credentials = credentials.clone();
    // Writing waits for the disk.
    tokio::task::spawn_blocking(move || credentials.install(identity))
        .await
        .context("the renewal panicked")??;
    Ok(())
}
