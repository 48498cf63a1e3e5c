//! Answers to agents' questions.

use std::sync::Arc;
use std::time::SystemTime;

use kiln_shared::identity::{CERTIFICATE_VALID_FOR, CertificateAuthority, Peer};
use kiln_shared::link::frame::write_message;
use kiln_shared::link::message::{Answer, Ask};
use quinn::SendStream;

use crate::route::RouteReader;

/// What answers are made of.
#[derive(Clone)]
pub struct Answers {
    routes: RouteReader,
    authority: Option<Arc<CertificateAuthority>>,
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Answers").finish_non_exhaustive()
    }
}

impl Answers {
    /// Answers from the catalog as `routes` knows it, and certificates if this balancer has the authority's key.
    pub fn new(routes: RouteReader, authority: Option<Arc<CertificateAuthority>>) -> Self {
        Self { routes, authority }
    }

    fn answer(&self, agent: &Peer, question: &Ask) -> Answer {
        match question {
            Ask::Function { id, revision } => {
                let mut routes = self.routes.clone();
                let function =
                    routes.routes().function(id).ok().filter(|function| function.revision == *revision);
                Answer::Function(function.map(|function| Box::new(function.spec.clone())))
            }
            Ask::Renew { request_pem } => self.renew(agent, request_pem),
        }
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
pub(super) async fn serve(answers: &Answers, agent: &Peer, question: Ask, mut writer: SendStream) {
    let answer = answers.answer(agent, &question);
    if write_message(&mut writer, &answer).await.is_ok() && writer.finish().is_ok() {
        drop(writer.stopped().await);
    }
}
