//! Annotations: a client's own key-value data on a resource, which no function sees.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ApiError;

/// On functions: where to POST a call. Computed on output, dropped on input.
pub const INVOKE_ENDPOINT: &str = "fnproject.io/fn/invokeEndpoint";

/// On triggers: where calls come in. Computed on output, dropped on input.
pub const HTTP_ENDPOINT: &str = "fnproject.io/trigger/httpEndpoint";

/// On functions: what the image was when it was deployed (`sha256:...`), set by the deployer.
pub const IMAGE_DIGEST: &str = "kiln.dev/image-digest";

/// On functions, and on apps for those of their functions that say nothing: most calls of a function that may run in
/// the fleet at a time, 1 to 100,000.
pub const CONCURRENCY_MAX: &str = "kiln.dev/concurrency-max";

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
