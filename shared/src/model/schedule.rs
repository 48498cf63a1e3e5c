//! What a trigger of the type `schedule` says in its source and annotations.

use std::time::Duration;

use jiff::tz::TimeZone;

use super::annotations::{Annotations, CONTENT_TYPE, JITTER_SECONDS, MISFIRE, PAYLOAD, TIME_ZONE};
use super::error::ApiError;
use crate::schedule::{JITTER_MAX, Misfire, Schedule};

const TIME_ZONE_WANTED: &str = "the name of an IANA time zone, such as Europe/Vienna";
const JITTER_WANTED: &str = "a whole number of seconds from 0 to 3600, such as 30";
const MISFIRE_WANTED: &str = "skip, once or all";
const PAYLOAD_WANTED: &str = "a text, such as \"hello\"";
const CONTENT_TYPE_WANTED: &str = "a media type, such as application/json";

/// When a function is called, and with what.
#[derive(Debug, Clone)]
pub struct ScheduledCall {
    /// When.
    pub schedule: Schedule,
    /// The call's body.
    pub payload: String,
    /// The body's type.
    pub content_type: Option<String>,
}

impl ScheduledCall {
    /// Reads a trigger's source and annotations.
    ///
    /// # Errors
    /// The first field that does not fit, with an example of one that does.
    pub(super) fn read(source: &str, annotations: &Annotations) -> Result<Self, ApiError> {
        let text = |key, wanted, default: &'static str| match annotations.get(key) {
            None => Ok(default),
            Some(value) => value.as_str().ok_or(ApiError::ScheduleAnnotationInvalid(key, wanted)),
        };
        let zone = TimeZone::get(text(TIME_ZONE, TIME_ZONE_WANTED, "UTC")?)
            .map_err(|_unknown| ApiError::ScheduleAnnotationInvalid(TIME_ZONE, TIME_ZONE_WANTED))?;
        let misfire = Misfire::parse(text(MISFIRE, MISFIRE_WANTED, "once")?)
            .ok_or(ApiError::ScheduleAnnotationInvalid(MISFIRE, MISFIRE_WANTED))?;
        let payload = text(PAYLOAD, PAYLOAD_WANTED, "")?.to_owned();
        let content_type = text(CONTENT_TYPE, CONTENT_TYPE_WANTED, "")?;
        if !content_type.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
            return Err(ApiError::ScheduleAnnotationInvalid(CONTENT_TYPE, CONTENT_TYPE_WANTED));
        }
        let content_type = (!content_type.is_empty()).then(|| content_type.to_owned());
        let schedule = Schedule::new(source, zone, jitter(annotations)?, misfire)
            .map_err(|bad| ApiError::ScheduleSourceInvalid(bad.to_string()))?;
        Ok(Self { schedule, payload, content_type })
    }
}

fn jitter(annotations: &Annotations) -> Result<Duration, ApiError> {
    let Some(value) = annotations.get(JITTER_SECONDS) else { return Ok(Duration::ZERO) };
    let jitter = value.as_u64().map(Duration::from_secs).filter(|jitter| *jitter <= JITTER_MAX);
    jitter.ok_or(ApiError::ScheduleAnnotationInvalid(JITTER_SECONDS, JITTER_WANTED))
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZoneDatabase;
    use serde_json::{Value, json};

    use super::*;

    fn read(source: &str, key: &str, value: Value) -> Result<ScheduledCall, ApiError> {
        ScheduledCall::read(source, &Annotations::from_iter([(key, value)]))
    }

    #[test]
    fn a_bad_field_is_refused_by_its_name_and_with_an_example() {
        for (key, value) in [
            (TIME_ZONE, json!("Europe/Atlantis")),
            (TIME_ZONE, json!(2)),
            (JITTER_SECONDS, json!(3601)),
            (JITTER_SECONDS, json!("30")),
            (JITTER_SECONDS, json!(-1)),
            (MISFIRE, json!("never")),
            (PAYLOAD, json!({"a": 1})),
            (CONTENT_TYPE, json!("a\nb")),
        ] {
            let refused = read("@hourly", key, value.clone()).expect_err("refused");
            let (said, status) = (refused.to_string(), refused.status());
            assert!(said.starts_with(&format!("Invalid annotation value, {key} must be ")), "{said}");
            assert_eq!(status, 400, "{key}: {value}");
        }
        let refused = read("61 * * * *", TIME_ZONE, json!("UTC")).expect_err("refused").to_string();
        assert!(refused.starts_with("Invalid source of a schedule: "), "{refused}");
        assert!(refused.contains("*/5 * * * *"), "{refused}");
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        let call = ScheduledCall::read("@hourly", &Annotations::default()).expect("a schedule");
        assert_eq!((call.payload.as_str(), call.content_type), ("", None));
        let text = read("@hourly", PAYLOAD, json!("now")).expect("a schedule");
        assert_eq!(text.payload, "now");
    }

    /// A machine may have no zone data of its own.
    #[test]
    fn time_zones_are_built_in() {
        let zones = TimeZoneDatabase::bundled();
        for name in ["Europe/Vienna", "Europe/Athens", "America/New_York", "UTC"] {
            assert!(zones.get(name).is_ok(), "{name}");
        }
    }
}
