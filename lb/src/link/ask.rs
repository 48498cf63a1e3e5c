//! Answers to agents' questions.

use std::sync::Arc;
use std::time::SystemTime;

use kiln_shared::identity::{CERTIFICATE_VALID_FOR, CertificateAuthority, Peer};
use kiln_shared::link::frame::write_message;
use kiln_shared::link::message::{Answer, Ask};
use quinn::SendStream;

use super::LinkServer;

/// What answers are made of.
#[derive(Clone, Default)]
pub struct Answers {
    authority: Option<Arc<CertificateAuthority>>,
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Answers").finish_non_exhaustive()
    }
}

impl Answers {
    /// Answers with certificates, if this balancer has the authority's key.
    pub fn new(authority: Option<Arc<CertificateAuthority>>) -> Self {
        Self { authority }
    }

    /// Only for the name that the agent has proved to have.
    fn renew(&self, agent: &Peer, request_pem: &str) -> Answer {
        let Some(authority) = &self.authority else {
            return Answer::Cannot(
                "this balancer does not have the key of the fleet's CA (--ca-dir)".to_owned(),
            );
        };
        match authority.sign(request_pem, agent, CERTIFICATE_VALID_FOR, SystemTime::now()) {
            Ok(signed) => {
                tracing::info!(node = agent.name(), "a certificate is renewed");
                Answer::Certificate(signed)
            }
            Err(error) => Answer::Cannot(error.to_string()),
        }
    }
}

/// Answers one question. An answer that does not arrive is asked for again.
pub(super) async fn serve(server: &LinkServer, agent: &Peer, question: Ask, mut writer: SendStream) {
    let answer = match (server.removed.check(agent.name()), question) {
        (Err(refused), _) => Answer::Cannot(refused.to_string()),
        (Ok(()), Ask::Renew { request_pem }) => server.answers.renew(agent, &request_pem),
    };
    if write_message(&mut writer, &answer).await.is_ok() && writer.finish().is_ok() {
        drop(writer.stopped().await);
    }
}
