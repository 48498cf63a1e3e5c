//! A call as it lies in the queue: the envelope of a message whose payload is the call's body.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::QueueError;
use crate::body::Body;
use crate::call::{CallKind, CallRequest};
use crate::function::Function;
use crate::http1::HeaderBlock;
use crate::ids::CallId;

/// All of a call but its id, its function and its body, which the message has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredCall {
    /// How it came in.
    pub kind: CallKind,
    /// The client's method.
    pub method: http::Method,
    /// The client's whole URL.
    pub url: String,
    /// For `FN_PATH`.
    pub path: String,
    /// The client's header lines, as in [`CallRequest::headers`].
    pub headers: HeaderBlock,
}

/// The form in which it is kept. Bytes of header values are characters U+0000 to U+00FF, so that every value
/// that HTTP allows comes back as it was.
#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    kind: CallKind,
    method: Cow<'a, str>,
    url: Cow<'a, str>,
    path: Cow<'a, str>,
    headers: Vec<(Cow<'a, str>, String)>,
}

impl StoredCall {
    /// The envelope of its message.
    ///
    /// # Errors
    /// [`QueueError::Invalid`] if it cannot be written, which no call that came over HTTP is.
    pub fn to_envelope(&self) -> Result<Box<RawValue>, QueueError> {
        let line = |(name, value): (&[u8], &[u8])| (Cow::Owned(characters(name)), characters(value));
        let envelope = Envelope {
            kind: self.kind,
            method: self.method.as_str().into(),
            url: (&*self.url).into(),
            path: (&*self.path).into(),
            headers: self.headers.iter().map(line).collect(),
        };
        let text = serde_json::to_string(&envelope).map_err(|error| unreadable(&error))?;
        RawValue::from_string(text).map_err(|error| unreadable(&error))
    }

    /// Reads an envelope.
    ///
    /// # Errors
    /// [`QueueError::Invalid`] if it is none: something else wrote it.
    pub fn read(envelope: &RawValue) -> Result<Self, QueueError> {
        let envelope: Envelope<'_> =
            serde_json::from_str(envelope.get()).map_err(|error| unreadable(&error))?;
        let mut headers = HeaderBlock::new();
        for (name, value) in &envelope.headers {
            let value = bytes(value).ok_or_else(|| unreadable(&"a header value that is no text of HTTP"))?;
            headers.push(name.as_bytes(), &value).map_err(|error| unreadable(&error))?;
        }
        Ok(Self {
            kind: envelope.kind,
            method: envelope.method.parse().map_err(|_| unreadable(&"a method that is none"))?,
            url: envelope.url.into_owned(),
            path: envelope.path.into_owned(),
            headers,
        })
    }

    /// The call, to be run now.
    pub fn into_request(self, id: CallId, function: Arc<Function>, payload: Bytes) -> Box<CallRequest> {
        Box::new(CallRequest {
            id,
            function,
            kind: self.kind,
            method: self.method,
            url: self.url,
            path: Cow::Owned(self.path),
            headers: self.headers,
            body: Body::from(payload),
            received: Instant::now(),
            placement: None,
        })
    }
}

fn unreadable(error: &dyn std::fmt::Display) -> QueueError {
    QueueError::Invalid(format!("a message that holds no call: {error}"))
}

fn characters(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

fn bytes(characters: &str) -> Option<Vec<u8>> {
    characters.chars().map(|character| u8::try_from(character).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::{is_token_byte, is_value_byte};
    use crate::ids::TriggerId;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn lines() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
        let name = vec(any::<u8>().prop_filter("a token", |&byte| is_token_byte(byte)), 1..20);
        let value = vec(any::<u8>().prop_filter("a value", |&byte| is_value_byte(byte)), 0..40);
        vec((name, value), 0..8)
    }

    proptest! {
        #[test]
        fn a_call_comes_back_as_it_was(lines in lines(), url in ".{0,60}", path in ".{0,20}", triggered: bool) {
            let mut headers = HeaderBlock::new();
            for (name, value) in &lines {
                headers.push(name, value).expect("valid");
            }
            let kind = if triggered { CallKind::Trigger(TriggerId::generate()) } else { CallKind::Invoke };
            let call = StoredCall { kind, method: http::Method::PUT, url, path, headers };
            let envelope = call.to_envelope().expect("an envelope");
            prop_assert_eq!(StoredCall::read(&envelope), Ok(call));
        }
    }

    #[test]
    fn what_is_no_call_is_said_to_be_none() {
        for text in
            ["{}", "7", r#"{"kind":"invoke","method":"GET","url":"","path":"","headers":[["a b","c"]]}"#]
        {
            let envelope = RawValue::from_string(text.to_owned()).expect("JSON");
            let error = StoredCall::read(&envelope).expect_err("no call").to_string();
            assert!(error.starts_with("a message that holds no call: "), "{error}");
        }
    }
}
