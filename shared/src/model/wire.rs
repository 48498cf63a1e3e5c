//! How the API writes and reads values: times, absent values, and Go's way of escaping JSON.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ApiError;

/// Environment variables of an app or function, by name.
pub type Config = BTreeMap<String, String>;

/// How Go writes "no time". Clients send it with every request, also to create.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// Serde's view of a time: RFC 3339 in UTC with exactly three fraction digits.
pub(super) mod timestamp {
    use super::{Deserialize, Deserializer, Serializer, Timestamp, fmt};

    struct Millis(Timestamp);

    impl fmt::Display for Millis {
        fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(formatter, "{:.3}", self.0)
        }
    }

    pub(in crate::model) fn serialize<S: Serializer>(time: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&Millis(*time))
    }

    pub(in crate::model) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
        Timestamp::deserialize(from)
    }
}

/// As [`timestamp`], for a time that may be absent.
pub(super) mod optional_timestamp {
    use super::{Deserialize, Deserializer, Serializer, Timestamp, timestamp};

    #[expect(clippy::ref_option, reason = "serde passes a reference")]
    pub(in crate::model) fn serialize<S: Serializer>(
        time: &Option<Timestamp>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => timestamp::serialize(time, to),
            None => to.serialize_none(),
        }
    }

    pub(in crate::model) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Timestamp>, D::Error> {
        Option::deserialize(from)
    }
}

/// A time that a client sent: absent, `null`, empty and Go's zero time are all "none".
pub(super) fn given_time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
    let Some(text) = Option::<String>::deserialize(from)?.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let time: Timestamp = text.parse().map_err(D::Error::custom)?;
    let zero: Timestamp = ZERO_TIME.parse().expect("the constant is a time");
    Ok((time != zero).then_some(time))
}

/// Reads `null` as the value's default, as Go does.
pub(super) fn null_as_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Reads config in which a value of `null` means `""`.
pub(super) fn config<'de, D: Deserializer<'de>>(from: D) -> Result<Config, D::Error> {
    let given: Option<BTreeMap<String, Option<String>>> = Option::deserialize(from)?;
    Ok(given.into_iter().flatten().map(|(key, value)| (key, value.unwrap_or_default())).collect())
}

/// Merges a change into config: `""` deletes, any other value sets, keys not mentioned stay.
pub(super) fn merge_config(config: &mut Config, change: &Config) {
    for (key, value) in change {
        if value.is_empty() {
            config.remove(key);
        } else {
            config.insert(key.clone(), value.clone());
        }
    }
}

/// Refuses pairs that cannot be environment variables.
pub(super) fn check_config(config: &Config) -> Result<(), ApiError> {
    let fits =
        |key: &str, value: &str| !key.is_empty() && !key.contains(['=', '\0']) && !value.contains('\0');
    if config.iter().all(|(key, value)| fits(key, value)) { Ok(()) } else { Err(ApiError::ConfigInvalid) }
}

/// Reads what a client sent. Unknown fields are ignored and the last of duplicate ones holds.
///
/// # Errors
/// [`ApiError::InvalidJson`] if it is no JSON object or a field has another type.
pub fn from_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    // By way of a value, since serde's structs refuse duplicate fields and read arrays as structs.
    let value: serde_json::Value = serde_json::from_slice(body).map_err(|_| ApiError::InvalidJson)?;
    let object = match value {
        serde_json::Value::Null => serde_json::Value::Object(serde_json::Map::new()),
        object @ serde_json::Value::Object(_) => object,
        _ => return Err(ApiError::InvalidJson),
    };
    serde_json::from_value(object).map_err(|_| ApiError::InvalidJson)
}

/// JSON as Go's encoder writes it: `<`, `>`, `&` and the two line separators of Unicode are escaped.
///
/// # Panics
/// When a map has keys that are not text, which no type of the API has.
pub fn go_json(value: &impl Serialize) -> String {
    let json = serde_json::to_string(value).expect("API types have text keys only");
    if !json.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return json;
    }
    // These characters occur inside strings only, so that replacing them anywhere is right.
    let mut escaped = String::with_capacity(json.len() + 32);
    for c in json.chars() {
        match c {
            '<' => escaped.push_str("\\u003c"),
            '>' => escaped.push_str("\\u003e"),
            '&' => escaped.push_str("\\u0026"),
            '\u{2028}' => escaped.push_str("\\u2028"),
            '\u{2029}' => escaped.push_str("\\u2029"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Times {
        #[serde(with = "timestamp")]
        shown: Timestamp,
        #[serde(default, deserialize_with = "given_time", skip_serializing)]
        given: Option<Timestamp>,
    }

    #[test]
    fn a_time_is_shown_with_three_digits() {
        for (given, shown) in [
            ("2018-09-30T11:22:33Z", "2018-09-30T11:22:33.000Z"),
            ("2018-09-30T11:22:33.4449Z", "2018-09-30T11:22:33.444Z"),
            ("2018-09-30T13:22:33.5+02:00", "2018-09-30T11:22:33.500Z"),
        ] {
            let times: Times = serde_json::from_value(json!({ "shown": given })).expect("times");
            assert_eq!(serde_json::to_value(&times).expect("JSON"), json!({ "shown": shown }));
        }
    }

    #[test]
    fn gos_zero_time_is_none() {
        let zero = ["0001-01-01T00:00:00.000Z", "0001-01-01T00:00:00Z", "0001-01-01T01:00:00+01:00", ""];
        for given in zero.map(|text| json!(text)).into_iter().chain([json!(null)]) {
            let times: Times =
                serde_json::from_value(json!({ "shown": "2018-09-30T11:22:33Z", "given": given }))
                    .expect("times");
            assert_eq!(times.given, None, "{given}");
        }
    }

    proptest! {
        #[test]
        fn gos_json_says_what_json_says(text in "\\PC*|[<>&\u{2028}\u{2029}\"a]*") {
            let escaped = go_json(&json!({ "key<": text }));
            let harmful = ['<', '>', '&', '\u{2028}', '\u{2029}'];
            prop_assert!(!escaped.contains(harmful));
            let value: serde_json::Value = serde_json::from_str(&escaped).expect("JSON");
            prop_assert_eq!(value, json!({ "key<": text }));
        }

        #[test]
        fn merging_config_again_changes_nothing(
            mut config in prop::collection::btree_map("[a-c]", "[x-z]", 0..3),
            change in prop::collection::btree_map("[a-d]", "[x-z]?", 0..4),
        ) {
            merge_config(&mut config, &change);
            for (key, value) in &change {
                prop_assert_eq!(config.get(key), Some(value).filter(|value| !value.is_empty()));
            }
            let once = config.clone();
            merge_config(&mut config, &change);
            prop_assert_eq!(config, once);
        }
    }
}
