//! Identifiers: 26 characters of Crockford base32 that sort by the time they were made (a ULID's text).
//!
//! Fn's ids have the same shape (`spec/api-v2.md`, part 1), so clients cannot tell them apart. Ids are `Copy`
//! and hold their text, so that the data path neither allocates nor formats.

use std::cell::RefCell;
use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Length of every id in bytes.
pub const ID_BYTES: usize = 26;

/// A text that is not an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an id: expected 26 letters and digits")]
pub struct ParseIdError;

/// The text of an id. Only ASCII letters and digits, always [`ID_BYTES`] long.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id([u8; ID_BYTES]);

struct Source {
    millis: u64,
    random: u128,
}

thread_local! {
    static SOURCE: RefCell<Source> = const { RefCell::new(Source { millis: 0, random: 0 }) };
}

/// Random part of an id: 80 bits.
const RANDOM_MASK: u128 = (1 << 80) - 1;

impl Id {
    /// Makes an id that is unique across the fleet and larger than every id this thread made before.
    pub fn generate() -> Self {
        let now_millis = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        let (millis, random) = SOURCE.with_borrow_mut(|source| {
            if now_millis > source.millis {
                // 79 random bits, so that counting up within a millisecond cannot overflow.
                *source = Source { millis: now_millis, random: rand::random::<u128>() & (RANDOM_MASK >> 1) };
            } else {
                source.random = (source.random + 1) & RANDOM_MASK;
            }
            (source.millis, source.random)
        });
        let mut text = [0; ID_BYTES];
        ulid::Ulid::from_parts(millis, random).array_to_str(&mut text);
        Self(text)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("ids are ASCII by construction")
    }

    /// The id as ASCII bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for Id {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let bytes: [u8; ID_BYTES] = text.as_bytes().try_into().map_err(|_| ParseIdError)?;
        if bytes.iter().all(u8::is_ascii_alphanumeric) { Ok(Self(bytes)) } else { Err(ParseIdError) }
    }
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Id);

        impl $name {
            /// Makes a new, unique id.
            pub fn generate() -> Self {
                Self(Id::generate())
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }

            /// The id as ASCII bytes.
            pub fn as_bytes(&self) -> &[u8] {
                self.0.as_bytes()
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                text.parse().map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseIdError;

            fn try_from(text: String) -> Result<Self, ParseIdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(self.as_str())
            }
        }
    };
}

id_type!(
    /// Names an app.
    AppId
);
id_type!(
    /// Names a function.
    FunctionId
);
id_type!(
    /// Names a trigger.
    TriggerId
);
id_type!(
    /// Names one call.
    CallId
);

/// Names a node of the fleet: the text an operator gave, or one made on first start.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeId(std::sync::Arc<str>);

impl NodeId {
    /// Takes the name as given.
    pub fn new(name: impl Into<std::sync::Arc<str>>) -> Self {
        Self(name.into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_one_thread_are_unique_and_sorted() {
        let ids: Vec<CallId> = (0..10_000).map(|_| CallId::generate()).collect();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn an_id_round_trips_through_its_text() {
        let id = FunctionId::generate();
        assert_eq!(id.as_str().parse::<FunctionId>(), Ok(id));
        assert_eq!(id.as_str().len(), ID_BYTES);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "short", "01CQ4S2K8JNG8G00GZJ00000011", "01CQ4S2K8JNG8G00GZJ000000/"] {
            assert_eq!(text.parse::<CallId>(), Err(ParseIdError), "{text}");
        }
    }
}
