//! The first certificate of a machine that has a join token.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use kiln_api::Catalog;
use kiln_shared::identity::{
    CERTIFICATE_VALID_FOR, CertificateAuthority, Claim, Fingerprint, JoinAnswer, JoinRequest,
};
use kiln_shared::link::frame::{MessageReader, write_message};
use quinn::Connection;
use tokio::time::timeout;

use super::RemovedNodes;

/// Longest time for the whole exchange.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest request in bytes: a token, a name and a certificate request. Anybody may send one.
const REQUEST_BYTES_MAX: usize = 32 << 10;
/// Characters of a refused machine's name that are logged.
const NAME_SHOWN_MAX: usize = 128;

/// Lets machines join: the key of the fleet's CA, and the memory of tokens that all balancers share.
#[derive(Debug, Clone)]
pub struct Registrar {
    authority: Arc<CertificateAuthority>,
    catalog: Catalog,
    removed: RemovedNodes,
}

impl Registrar {
    /// A registrar that records redeemed tokens in `catalog` and lets in no node that was `removed`.
    pub fn new(authority: Arc<CertificateAuthority>, catalog: Catalog, removed: RemovedNodes) -> Self {
        Self { authority, catalog, removed }
    }

    async fn redeem(&self, request: &JoinRequest) -> JoinAnswer {
        let claim = async |id: kiln_shared::identity::TokenId, expires_at: SystemTime| {
            if self.removed.check(&request.name).is_err() {
                return Claim::Removed;
            }
            // One who asks again for the same key has not had its answer.
            let used_by = Fingerprint::of(request.csr_pem.as_bytes()).to_string();
            let expires_at = Timestamp::try_from(expires_at).unwrap_or(Timestamp::MAX);
            match self.catalog.claim_join_token(&id.to_string(), &used_by, expires_at).await {
                Ok(true) => Claim::First,
                Ok(false) => Claim::Again,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot record a join token");
                    Claim::Unavailable
                }
            }
        };
        let redeemed = self.authority.redeem(request, CERTIFICATE_VALID_FOR, SystemTime::now(), claim).await;
        match &redeemed {
            Ok(redeemed) => tracing::info!(peer = %redeemed.peer, "a machine has joined the fleet"),
            Err(refused) => {
                metrics::counter!("kiln_link_refusals_total", "reason" => refused.reason()).increment(1);
                let name: String = request.name.chars().take(NAME_SHOWN_MAX).collect();
                tracing::warn!(name, "a machine may not join: {refused}");
            }
        }
        (&redeemed).into()
    }
}

/// Answers one request for a first certificate; a balancer without the CA's key says so.
pub(super) async fn serve(registrar: Option<&Registrar>, connection: &Connection) {
    let exchange = async {
        let (mut writer, reader) = connection.accept_bi().await.ok()?;
        let request: JoinRequest = MessageReader::new(reader, REQUEST_BYTES_MAX).next().await.ok()??;
        let answer = match registrar {
            Some(registrar) => registrar.redeem(&request).await,
            None => JoinAnswer::Refused {
                reason: "no_ca".to_owned(),
                message: "this balancer does not have the key of the fleet's CA; join at one that runs with --ca-dir"
                    .to_owned(),
            },
        };
        write_message(&mut writer, &answer).await.ok()?;
        writer.finish().ok()?;
        // The machine closes the connection when it has its answer.
        connection.closed().await;
        Some(())
    };
    drop(timeout(JOIN_TIMEOUT, exchange).await);
}
