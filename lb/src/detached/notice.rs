//! How the end of a detached call is told to a destination: a message of its own, for a function or for a POST.

use jiff::Timestamp;
use kiln_shared::call::CallKind;
use kiln_shared::function::Function;
use kiln_shared::http1::HeaderBlock;
use kiln_shared::ids::{CallId, FunctionId};
use kiln_shared::queue::{KeptAnswer, NewMessage, QueueError, RetryPolicy, StoredCall};
use serde::Serialize;
use std::sync::LazyLock;
use std::time::Duration;

/// Stands in the queue for what a balancer POSTs itself; no function has this id.
pub(super) static DELIVERIES: LazyLock<FunctionId> =
    LazyLock::new(|| "0000000000KILNDELIVERIES00".parse().expect("26 letters and digits"));

/// A POST is tried for about a day.
const DELIVERY_RETRY: RetryPolicy = RetryPolicy {
    attempts_max: 30,
    pause_min: Duration::from_secs(2),
    pause_max: Duration::from_hours(1),
    jitter_percent: 20,
};

/// How the call ended.
#[derive(Debug, Clone, Copy)]
pub(super) enum End<'a> {
    /// The function answered.
    Success(&'a KeptAnswer),
    /// It failed for good, and why.
    Dead(&'a str),
}

/// What a destination is told, as JSON.
#[derive(Serialize)]
struct Notice<'a> {
    call_id: CallId,
    app: &'a str,
    function: &'a str,
    function_id: FunctionId,
    status: &'static str,
    attempts: u32,
    ended_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<Answer<'a>>,
}

#[derive(Serialize)]
struct Answer<'a> {
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    /// The body if it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    /// The body if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
    is_cut: bool,
}

/// Where a notice goes: to the function, or to the URL.
#[derive(Debug, Clone, Copy)]
pub(super) enum Recipient<'a> {
    Function(&'a Function),
    Url(&'a str),
}

/// The message that tells the end of a call of `function`. Made again for the same end it is not stored again.
pub(super) fn notice(
    call: CallId,
    function: &Function,
    attempts: u32,
    end: End<'_>,
    recipient: Recipient<'_>,
) -> Result<NewMessage, QueueError> {
    let (status, error, response) = match end {
        End::Success(answer) => ("success", None, Some(answer_of(answer))),
        End::Dead(error) => ("dead", Some(error), None),
    };
    let spec = &function.spec;
    let notice = Notice {
        call_id: call,
        app: &spec.app_name,
        function: &spec.name,
        function_id: spec.id,
        status,
        attempts,
        ended_at: Timestamp::now(),
        error,
        response,
    };
    let payload = serde_json::to_vec(&notice).map_err(|error| QueueError::Failed(error.to_string()))?;
    let (function_id, app_id, url, retry) = match recipient {
        Recipient::Function(to) => {
            let url = format!("http://localhost/invoke/{}", to.spec.id);
            (to.spec.id, to.spec.app_id, url, to.spec.detached.retry)
        }
        Recipient::Url(url) => (*DELIVERIES, spec.app_id, url.to_owned(), DELIVERY_RETRY),
    };
    let mut headers = HeaderBlock::new();
    headers.push_valid(b"Content-Type", b"application/json");
    headers.push_valid(b"Kiln-Source-Call", call.as_bytes());
    let path = "/invoke".to_owned();
    let stored = StoredCall { kind: CallKind::Invoke, method: http::Method::POST, url, path, headers };
    Ok(NewMessage {
        // No caller can give a key with a space in it.
        idempotency_key: Some(format!(" {call}/{status}")),
        retry,
        tells_an_end: true,
        envelope: stored.to_envelope()?,
        ..NewMessage::new(CallId::generate(), function_id, app_id, payload)
    })
}

fn answer_of(answer: &KeptAnswer) -> Answer<'_> {
    use base64::Engine as _;
    let text = std::str::from_utf8(&answer.body).ok();
    Answer {
        status: answer.status,
        content_type: answer.content_type.as_deref(),
        body: text,
        body_base64: text.is_none().then(|| base64::engine::general_purpose::STANDARD.encode(&answer.body)),
        is_cut: answer.is_cut,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kiln_shared::function::FunctionSpec;
    use kiln_shared::ids::AppId;

    use super::*;

    fn function() -> Function {
        Function::new(FunctionSpec::with_defaults(FunctionId::generate(), AppId::generate(), "i"))
    }

    fn answer(body: &'static [u8]) -> KeptAnswer {
        KeptAnswer { status: 200, content_type: None, body: Bytes::from_static(body), is_cut: false }
    }

    #[test]
    fn a_notice_says_what_was_answered_and_has_the_same_key_each_time() {
        let (call, from, to) = (CallId::generate(), function(), function());
        let make = |body| notice(call, &from, 2, End::Success(&answer(body)), Recipient::Function(&to));
        let (first, again) = (make(b"ok").expect("a notice"), make(b"ok").expect("a notice"));
        assert_eq!(first.idempotency_key, again.idempotency_key);
        assert_eq!(first.function_id, to.spec.id);
        let told: serde_json::Value = serde_json::from_slice(&first.payload).expect("JSON");
        assert_eq!((&told["response"]["body"], &told["attempts"]), (&"ok".into(), &2.into()));
        let told: serde_json::Value =
            serde_json::from_slice(&make(b"\xff").expect("a notice").payload).expect("JSON");
        assert_eq!(told["response"]["body_base64"], "/w==");
    }

    #[test]
    fn a_notice_for_a_url_is_a_delivery() {
        let made = notice(CallId::generate(), &function(), 1, End::Dead("no"), Recipient::Url("http://h/x"));
        let made = made.expect("a notice");
        assert_eq!(made.function_id, *DELIVERIES);
        assert_eq!(StoredCall::read(&made.envelope).expect("a call").url, "http://h/x");
    }
}
