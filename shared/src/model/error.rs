//! Why the API says no: each case with its status and Fn's words.

use crate::syslog::TargetError;

/// A request that the API refuses. The text goes to the client as it is (`spec/api-v2.md`, parts 1 to 3).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's text says what it means")]
pub enum ApiError {
    #[error("Invalid JSON")]
    InvalidJson,
    #[error("Invalid cursor")]
    InvalidCursor,

    #[error("App ID cannot be supplied on create")]
    AppIdGiven,
    #[error("Missing Name")]
    AppNameMissing,
    #[error("App name must be 255 characters or less")]
    AppNameTooLong,
    #[error("Invalid app name")]
    AppNameInvalid,
    #[error("{0}")]
    SyslogUrlInvalid(TargetError),
    #[error("Invalid app shape")]
    ShapeInvalid,
    #[error("App already exists")]
    AppExists,
    #[error("App ID in path does not match ID in body")]
    AppIdMismatch,
    #[error("Could not update - name is immutable")]
    AppNameImmutable,
    #[error("App not found")]
    AppNotFound,

    #[error("ID cannot be provided for Fn creation")]
    FnIdGiven,
    #[error("Missing AppID on Fn")]
    FnAppIdMissing,
    #[error("Missing Fn name")]
    FnNameMissing,
    #[error("Fn name must be 255 characters or less")]
    FnNameTooLong,
    #[error("name must be a valid string")]
    FnNameInvalid,
    #[error("Missing image on Fn")]
    FnImageMissing,
    #[error("Invalid format on Fn")]
    FnFormatInvalid,
    #[error("timeout value is out of range, must be between 0 and 300")]
    FnTimeoutInvalid,
    #[error("idle_timeout value is out of range, must be between 0 and 3600")]
    FnIdleTimeoutInvalid,
    #[error("memory value is out of range. It should be between 0 and 8192")]
    FnMemoryInvalid,
    #[error("Fn with specified name already exists")]
    FnExists,
    #[error("Fn ID in path does not match that in body")]
    FnIdMismatch,
    #[error("Fn not found")]
    FnNotFound,

    #[error("ID cannot be provided for Trigger creation")]
    TriggerIdGiven,
    #[error("Trigger Created At Provided for Create")]
    TriggerCreatedAtGiven,
    #[error("Trigger ID Provided for Create")]
    TriggerUpdatedAtGiven,
    #[error("Missing App ID on Trigger")]
    TriggerAppIdMissing,
    #[error("Missing name on Trigger")]
    TriggerNameMissing,
    #[error("Trigger name must be 255 characters or less")]
    TriggerNameTooLong,
    #[error("Invalid name for Trigger")]
    TriggerNameInvalid,
    #[error("Missing Fn ID on Trigger")]
    TriggerFnIdMissing,
    #[error("Trigger Type Not Supported")]
    TriggerTypeInvalid,
    #[error("Missing Trigger Source")]
    TriggerSourceMissing,
    #[error("Missing Trigger Source Prefix '/'")]
    TriggerSourceWithoutSlash,
    /// Kiln's own rule. Holds what is wrong.
    #[error(
        "Invalid source of a schedule: {0}; it must be a cron line such as */5 * * * *, or six fields with seconds in front"
    )]
    ScheduleSourceInvalid(String),
    #[error("Invalid Fn ID - not owned by specified app")]
    TriggerFnOfOtherApp,
    #[error("Trigger with the same type and source exists on this app")]
    TriggerSourceExists,
    #[error("Trigger already exists")]
    TriggerExists,
    #[error("ID in path does not match ID in body")]
    TriggerIdMismatch,
    #[error("Trigger not found")]
    TriggerNotFound,

    #[error("Invalid annotation key, annotation keys must be non-empty ascii strings excluding whitespace")]
    AnnotationKeyInvalid,
    #[error("Invalid annotation key length, annotation keys may not be larger than 128 bytes")]
    AnnotationKeyTooLong,
    #[error(
        "Invalid annotation value, annotation values may only be non-empty strings, numbers, objects, or arrays"
    )]
    AnnotationValueInvalid,
    #[error(
        "Invalid annotation value length, annotation values may not be larger than 512 bytes when serialized as JSON"
    )]
    AnnotationValueTooLong,
    #[error(
        "Invalid annotation change, new key(s) exceed maximum permitted number of annotations keys (100)"
    )]
    AnnotationsTooMany,
    /// Kiln's own rule.
    #[error("Invalid annotation value, kiln.dev/concurrency-max must be a whole number from 1 to 100000")]
    ConcurrencyMaxInvalid,
    /// Kiln's own rule.
    #[error(
        "Invalid annotation value, kiln.dev/retry must be an object of attempts_max (1 to 100), backoff_ms and backoff_max_ms (up to a day)"
    )]
    RetryInvalid,
    /// Kiln's own rule. Holds the annotation's key.
    #[error("Invalid annotation value, {0} must be APP/FUNCTION or an http:// or https:// URL")]
    DestinationInvalid(&'static str),

    /// Kiln's own rule. Holds the annotation's key and what it must be, with an example.
    #[error("Invalid annotation value, {0} must be {1}")]
    ScheduleAnnotationInvalid(&'static str, &'static str),

    /// Kiln's own rule: such a pair cannot be an environment variable, so that the function could never start.
    #[error(
        "Invalid config, keys must be non-empty without '=', and neither keys nor values may contain NUL"
    )]
    ConfigInvalid,

    #[error("from_time is not an epoch time")]
    FromTimeInvalid,
    #[error("to_time is not an epoch time")]
    ToTimeInvalid,
    #[error("Call not found")]
    CallNotFound,
    #[error("Call log not found")]
    LogNotFound,
    #[error("unable to respond within acceptable response content types")]
    NotAcceptable,
}

impl ApiError {
    /// The HTTP status that goes with the text.
    pub fn status(&self) -> u16 {
        match self {
            Self::AppNotFound
            | Self::FnNotFound
            | Self::TriggerNotFound
            | Self::CallNotFound
            | Self::LogNotFound => 404,
            Self::NotAcceptable => 406,
            Self::AppExists
            | Self::AppNameImmutable
            | Self::FnExists
            | Self::TriggerSourceExists
            | Self::TriggerExists => 409,
            _ => 400,
        }
    }
}
