//! One message, from the queue into a container, and how that ended.

use bytes::{Bytes, BytesMut};
use kiln_shared::body::{Body, BodyError};
use kiln_shared::call::{CallError, CallResponse, Failure, FailureKind};
use kiln_shared::queue::{ANSWER_BYTES_MAX, KeptAnswer, Outcome, Retry, StoredCall, Work, kept_error};
use tokio_util::sync::CancellationToken;

use super::held::End;
use crate::Agent;
use crate::call::QueuedCall;

/// A longer content type is not kept: no media type is that long, and many ends are told in one message.
const CONTENT_TYPE_BYTES_MAX: usize = 1024;

/// A message that stands in line for a container.
pub(super) struct Entered {
    call: Result<QueuedCall, Outcome>,
    keeps_answer: bool,
}

/// Lets a message get in line for a container, behind those that came before.
pub(super) fn enter(agent: &Agent, work: Work) -> Entered {
    let Work { message, function } = work;
    let keeps_answer = function.spec.detached.on_success.is_some();
    let taken = || {
        let call = StoredCall::read(&message.envelope).map_err(|error| never(&error.to_string()))?;
        let request = call.into_request(message.receipt.id, function, message.payload);
        agent.take_queued(request).map_err(outcome)
    };
    Entered { call: taken(), keeps_answer }
}

impl Entered {
    /// Runs it. `give_up` ends its wait for a container, not its run; `begins` is called when it has one, and says whether
    /// it may run after all.
    pub(super) async fn run(self, give_up: &CancellationToken, begins: impl FnOnce() -> bool + Send) -> End {
        let answered = match self.call {
            Ok(call) => call.run(give_up, begins).await.map_err(outcome),
            Err(outcome) => Err(outcome),
        };
        let (outcome, answer) = match answered {
            Ok(response) => ended(response, self.keeps_answer).await,
            Err(outcome) => (outcome, None),
        };
        End { outcome, answer }
    }
}

fn outcome(error: CallError) -> Outcome {
    match error {
        CallError::Refused { .. } => Outcome::Unstarted,
        CallError::Failed(failure) => failed(&failure),
    }
}

/// What a failure means for the message.
fn failed(failure: &Failure) -> Outcome {
    let error = match &failure.detail {
        Some(detail) => format!("{failure}: {detail}"),
        None => failure.to_string(),
    };
    match failure.kind {
        // Another node may have the room.
        FailureKind::Busy | FailureKind::CannotFit => Outcome::Unstarted,
        // The same message will always be wrong.
        FailureKind::BadRequest | FailureKind::RequestTooLarge => never(&error),
        _ => Outcome::Failed { error: kept_error(&error), retry: Retry::ByPolicy },
    }
}

fn never(error: &str) -> Outcome {
    Outcome::Failed { error: kept_error(error), retry: Retry::Never }
}

/// Reads an answer to its end; a function that breaks off has failed.
async fn ended(response: CallResponse, keeps_answer: bool) -> (Outcome, Option<KeptAnswer>) {
    let CallResponse { status, headers, body, .. } = response;
    match read(body, keeps_answer).await {
        Ok((body, is_cut)) => {
            let content_type =
                headers.get("Content-Type").filter(|value| value.len() <= CONTENT_TYPE_BYTES_MAX);
            let content_type = content_type.map(|value| String::from_utf8_lossy(value).into_owned());
            let answer = keeps_answer.then_some(KeptAnswer { status, content_type, body, is_cut });
            (Outcome::Done, answer)
        }
        Err(error) => {
            let error = kept_error(&format!("the function's answer broke off: {error}"));
            (Outcome::Failed { error, retry: Retry::ByPolicy }, None)
        }
    }
}

/// The beginning of a body as far as it is kept, and whether there was more.
async fn read(mut body: Body, keeps: bool) -> Result<(Bytes, bool), BodyError> {
    let (mut kept, mut is_cut) = (BytesMut::new(), false);
    while let Some(chunk) = body.next_chunk().await {
        let chunk = chunk?;
        if keeps {
            let room = (ANSWER_BYTES_MAX - kept.len()).min(chunk.len());
            kept.extend_from_slice(&chunk[..room]);
            is_cut |= room < chunk.len();
        }
    }
    Ok((kept.freeze(), is_cut))
}

#[cfg(test)]
mod tests {
    use kiln_shared::call::Stages;
    use kiln_shared::http1::HeaderBlock;

    use super::*;

    fn answer(body: Bytes) -> CallResponse {
        answer_of_type("text/plain", body)
    }

    fn answer_of_type(content_type: &str, body: Bytes) -> CallResponse {
        let mut headers = HeaderBlock::new();
        headers.push_valid(b"Content-Type", content_type.as_bytes());
        CallResponse { status: 200, headers, body: Body::from(body), stages: Stages::default() }
    }

    #[tokio::test]
    async fn an_answer_is_kept_for_its_destination_as_far_as_the_bound_goes() {
        let long = Bytes::from(vec![b'x'; ANSWER_BYTES_MAX + 1]);
        let (outcome, kept) = ended(answer(long), true).await;
        let kept = kept.expect("an answer");
        assert_eq!(outcome, Outcome::Done);
        assert_eq!((kept.body.len(), kept.is_cut), (ANSWER_BYTES_MAX, true));
        assert_eq!(kept.content_type.as_deref(), Some("text/plain"));
        assert_eq!(ended(answer(Bytes::from_static(b"ok")), false).await, (Outcome::Done, None));
        let endless = "x".repeat(CONTENT_TYPE_BYTES_MAX + 1);
        let (_, kept) = ended(answer_of_type(&endless, Bytes::new()), true).await;
        assert_eq!(kept.expect("an answer").content_type, None);
    }

    #[test]
    fn only_what_can_get_better_is_tried_again() {
        assert_eq!(failed(&Failure::busy()), Outcome::Unstarted);
        assert_eq!(failed(&Failure::cannot_fit()), Outcome::Unstarted);
        let retry = |failure: &Failure| match failed(failure) {
            Outcome::Failed { retry, .. } => Some(retry),
            _ => None,
        };
        assert_eq!(retry(&Failure::request_too_large()), Some(Retry::Never));
        assert_eq!(retry(&Failure::function_failed()), Some(Retry::ByPolicy));
        assert_eq!(retry(&Failure::timed_out()), Some(Retry::ByPolicy));
    }
}
