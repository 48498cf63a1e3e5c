//! What happens to a function's detached calls after they ran, as its annotations say.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::RetryPolicy;

/// Most attempts that a function may ask for.
const ATTEMPTS_MAX: u32 = 100;

/// What becomes of detached calls. No container is made from it, so it is no part of a function's revision.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DetachedPolicy {
    /// How often one that failed is tried again.
    pub retry: RetryPolicy,
    /// Where the answer of one that succeeded goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_success: Option<Destination>,
    /// Where one goes that failed for good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<Destination>,
}

impl DetachedPolicy {
    /// True if it is as for a function that says nothing.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Where the end of a detached call is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Destination {
    /// A detached call of this function.
    Function {
        /// Its app's name.
        app: String,
        /// Its name.
        function: String,
    },
    /// A POST to this URL.
    Http(String),
}

/// A text that names no destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no destination; use APP/FUNCTION or an http:// or https:// URL")]
pub struct NoDestination(String);

impl FromStr for Destination {
    type Err = NoDestination;

    fn from_str(text: &str) -> Result<Self, NoDestination> {
        let refused = || NoDestination(text.to_owned());
        if text.contains("://") {
            let url: http::Uri = text.parse().map_err(|_| refused())?;
            let is_known = matches!(url.scheme_str(), Some("http" | "https"));
            return if is_known && url.host().is_some_and(|host| !host.is_empty()) {
                Ok(Self::Http(text.to_owned()))
            } else {
                Err(refused())
            };
        }
        let is_name = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
        match text.split_once('/') {
            Some((app, function)) if is_name(app) && is_name(function) && !function.contains('/') => {
                Ok(Self::Function { app: app.to_owned(), function: function.to_owned() })
            }
            _ => Err(refused()),
        }
    }
}

impl TryFrom<String> for Destination {
    type Error = NoDestination;

    fn try_from(text: String) -> Result<Self, NoDestination> {
        text.parse()
    }
}

impl From<Destination> for String {
    fn from(destination: Destination) -> Self {
        destination.to_string()
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Function { app, function } => write!(formatter, "{app}/{function}"),
            Self::Http(url) => formatter.write_str(url),
        }
    }
}

/// How often to try again, as it stands in an annotation. What is absent is as for a function that says nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryInput {
    attempts_max: Option<u32>,
    backoff_ms: Option<u64>,
    backoff_max_ms: Option<u64>,
}

impl RetryInput {
    /// The policy that it asks for; `None` if it asks for what no queue does.
    pub fn policy(self) -> Option<RetryPolicy> {
        let usual = RetryPolicy::default();
        let pause_min = self.backoff_ms.map_or(usual.pause_min, Duration::from_millis);
        let pause_max = self.backoff_max_ms.map_or(usual.pause_max.max(pause_min), Duration::from_millis);
        let attempts_max = self.attempts_max.unwrap_or(usual.attempts_max);
        let policy = RetryPolicy { attempts_max, pause_min, pause_max, ..usual };
        (attempts_max <= ATTEMPTS_MAX && policy.check().is_ok()).then_some(policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_a_function_or_a_url() {
        for text in ["shop/paid", "http://h/x?y=1", "https://h:8443"] {
            let read: Destination = text.parse().expect("a destination");
            assert_eq!(read.to_string(), text);
        }
        for text in ["", "shop", "/paid", "shop/", "a/b/c", "ftp://h/x", "http://", "a b/c"] {
            assert!(text.parse::<Destination>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn retries_are_read_with_the_usual_for_what_is_absent() {
        let read = |text: &str| serde_json::from_str::<RetryInput>(text).ok().and_then(RetryInput::policy);
        assert_eq!(read("{}"), Some(RetryPolicy::default()));
        let policy = read(r#"{"attempts_max":2,"backoff_ms":500,"backoff_max_ms":900}"#).expect("a policy");
        assert_eq!((policy.attempts_max, policy.pause_min.as_millis()), (2, 500));
        for bad in [
            r#"{"attempts_max":0}"#,
            r#"{"attempts_max":101}"#,
            r#"{"backoff_ms":10,"backoff_max_ms":5}"#,
            r#"{"tries":3}"#,
            r#"{"backoff_ms":-1}"#,
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
