//! Annotations: a client's own key-value data on a resource, which no function sees.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ApiError;
use crate::queue::{Destination, RetryInput, RetryPolicy};

/// On functions: where to POST a call. Computed on output, dropped on input.
pub const INVOKE_ENDPOINT: &str = "fnproject.io/fn/invokeEndpoint";

/// On triggers: where calls come in. Computed on output, dropped on input.
pub const HTTP_ENDPOINT: &str = "fnproject.io/trigger/httpEndpoint";

/// On functions: what the image was when it was deployed (`sha256:...`), set by the deployer.
pub const IMAGE_DIGEST: &str = "kiln.dev/image-digest";

/// On functions, and on apps for those of their functions that say nothing: most calls of a function that may run in
/// the fleet at a time, 1 to 100,000.
pub const CONCURRENCY_MAX: &str = "kiln.dev/concurrency-max";

/// On functions, and on apps for those of their functions that say nothing: how often a detached call that failed is
/// tried again, as `{"attempts_max": 3, "backoff_ms": 1000, "backoff_max_ms": 300000}`.
pub const RETRY: &str = "kiln.dev/retry";

/// On functions, and on apps for those of their functions that say nothing: where the answer of a detached call goes, as
/// `APP/FUNCTION` or an `http://` or `https://` URL.
pub const ON_SUCCESS: &str = "kiln.dev/on-success";

/// On functions, and on apps for those of their functions that say nothing: where a detached call goes that failed for
/// good, as [`ON_SUCCESS`].
pub const ON_FAILURE: &str = "kiln.dev/on-failure";

/// On triggers of the type `schedule`: the next tick, RFC 3339 in UTC. Computed on output, dropped on input.
pub const NEXT_TICK: &str = "kiln.dev/next-tick";

/// On triggers of the type `schedule`: the IANA time zone of the cron line; UTC without it.
pub const TIME_ZONE: &str = "kiln.dev/time-zone";

/// On triggers of the type `schedule`: most seconds, 0 to 3600, by which a tick is late at random.
pub const JITTER_SECONDS: &str = "kiln.dev/jitter-seconds";

/// On triggers of the type `schedule`: what becomes of ticks that nobody was there to fire: `skip`, `once` or `all`.
pub const MISFIRE: &str = "kiln.dev/misfire";

/// On triggers of the type `schedule`: the text that is sent as the body of its calls.
pub const PAYLOAD: &str = "kiln.dev/payload";

/// On triggers of the type `schedule`: the body's `Content-Type`.
pub const CONTENT_TYPE: &str = "kiln.dev/content-type";

const CALLS_MAX: u64 = 100_000;

const KEYS_MAX: usize = 100;
const KEY_BYTES_MAX: usize = 128;
const VALUE_BYTES_MAX: usize = 512;

/// Annotations by key. Values are any JSON, with the order of their own keys kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Annotations(BTreeMap<String, Value>);

impl Annotations {
    /// True without any.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// Most calls that may run at a time, where [`CONCURRENCY_MAX`] is there and valid.
    pub(super) fn concurrency_max(&self) -> Option<u32> {
        let calls = self.get(CONCURRENCY_MAX)?.as_u64().filter(|calls| (1..=CALLS_MAX).contains(calls))?;
        u32::try_from(calls).ok()
    }

    /// How often a detached call is tried again, where [`RETRY`] is there and valid.
    pub(super) fn retry(&self) -> Option<RetryPolicy> {
        RetryInput::deserialize(self.get(RETRY)?).ok()?.policy()
    }

    /// Where detached calls are told, where `key` ([`ON_SUCCESS`], [`ON_FAILURE`]) is there and valid.
    pub(super) fn destination(&self, key: &str) -> Option<Destination> {
        self.get(key)?.as_str()?.parse().ok()
    }

    /// Sets `key` without checking the rules, for what the server itself computes.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        self.0.insert(key.into(), value.into());
    }

    /// Removes `key`.
    pub fn remove(&mut self, key: &str) {
        self.0.remove(key);
    }

    /// Keys and values, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// What a client gave, without what the server computes: clients send back what they were shown.
    pub(super) fn given(&self) -> Self {
        let mut given = self.clone();
        given.remove(INVOKE_ENDPOINT);
        given.remove(HTTP_ENDPOINT);
        given.remove(NEXT_TICK);
        given
    }

    /// Merges a change: `""` and `null` delete, any other value sets.
    pub(super) fn merge(&mut self, change: &Self) {
        for (key, value) in change.given().0 {
            if is_empty_value(&value) {
                self.0.remove(&key);
            } else {
                self.0.insert(key, value);
            }
        }
    }

    /// Checks the rules of `spec/api-v2.md`, part 2.4, and those of Kiln's own keys.
    pub(super) fn check(&self) -> Result<(), ApiError> {
        for (key, value) in &self.0 {
            if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(ApiError::AnnotationKeyInvalid);
            }
            if key.len() > KEY_BYTES_MAX {
                return Err(ApiError::AnnotationKeyTooLong);
            }
            if is_empty_value(value) {
                return Err(ApiError::AnnotationValueInvalid);
            }
            if value.to_string().len() > VALUE_BYTES_MAX {
                return Err(ApiError::AnnotationValueTooLong);
            }
        }
        if self.get(CONCURRENCY_MAX).is_some() && self.concurrency_max().is_none() {
            return Err(ApiError::ConcurrencyMaxInvalid);
        }
        if self.get(RETRY).is_some() && self.retry().is_none() {
            return Err(ApiError::RetryInvalid);
        }
        for key in [ON_SUCCESS, ON_FAILURE] {
            if self.get(key).is_some() && self.destination(key).is_none() {
                return Err(ApiError::DestinationInvalid(key));
            }
        }
        if self.0.len() > KEYS_MAX { Err(ApiError::AnnotationsTooMany) } else { Ok(()) }
    }
}

impl<K: Into<String>> FromIterator<(K, Value)> for Annotations {
    fn from_iter<I: IntoIterator<Item = (K, Value)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(key, value)| (key.into(), value)).collect())
    }
}

fn is_empty_value(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}
