//! Answers to agents' questions.

use kiln_shared::identity::Peer;
use kiln_shared::link::frame::write_message;
use kiln_shared::link::message::{Answer, Ask};
use quinn::SendStream;

use crate::route::RouteReader;

/// What answers are made of.
#[derive(Clone)]
pub struct Answers {
    routes: RouteReader,
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Answers").finish_non_exhaustive()
    }
}

impl Answers {
    /// Answers from the catalog as `routes` knows it.
    pub fn new(routes: RouteReader) -> Self {
        Self { routes }
    }

    fn answer(&self, _agent: &Peer, question: Ask) -> Answer {
        match question {
            Ask::Function { id, revision } => {
                let mut routes = self.routes.clone();
                let function = routes.routes().function(id).filter(|function| function.revision == revision);
                Answer::Function(function.map(|function| Box::new(function.spec.clone())))
            }
            Ask::Renew { .. } => Answer::Cannot("this balancer has no key of the fleet's authority".to_owned()),
        }
    }
}

/// Answers one question. An answer that does not arrive is asked for again.
pub(super) async fn serve(answers: &Answers, agent: &Peer, question: Ask, mut writer: SendStream) {
    let answer = answers.answer(agent, question);
    if write_message(&mut writer, &answer).await.is_ok() && writer.finish().is_ok() {
        drop(writer.stopped().await);
    }
}
