//! Functions as the API shows them, and how app and function become what a node runs.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::wire::{self, Config};
use super::{Annotations, ApiError, App, IMAGE_DIGEST, ON_FAILURE, ON_SUCCESS, Shape, check_name};
use crate::function::{Format, FunctionSpec};
use crate::ids::{AppId, FunctionId};
use crate::queue::DetachedPolicy;

const MEMORY_MIB_DEFAULT: u64 = 128;
const MEMORY_MIB_MAX: u64 = 8192;
const TIMEOUT_SECONDS_DEFAULT: i32 = 30;
const TIMEOUT_SECONDS_MAX: i32 = 300;
const IDLE_TIMEOUT_SECONDS_DEFAULT: i32 = 30;
const IDLE_TIMEOUT_SECONDS_MAX: i32 = 3600;

/// A function, as stored and as the API shows it ("fn" there; `spec/api-v2.md`, part 2.2). What a node runs
/// is a [`FunctionSpec`], made by [`resolve`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = Fn))]
pub struct FunctionResource {
    /// Names the function for good.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub id: FunctionId,
    /// Unique within its app, never changes.
    pub name: String,
    /// The app it belongs to.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub app_id: AppId,
    /// Image reference, as deployed.
    pub image: String,
    /// How calls are framed. Shown only where it is not today's `http-stream`.
    #[serde(default, skip_serializing_if = "is_http_stream")]
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub format: Format,
    /// Memory limit of one container in MiB, 1 to 8192.
    #[serde(rename = "memory")]
    pub memory_mib: u64,
    /// Longest time of one call in seconds, 1 to 300.
    #[serde(rename = "timeout")]
    pub timeout_seconds: i32,
    /// A container unused for this many seconds is removed, 1 to 3600.
    #[serde(rename = "idle_timeout")]
    pub idle_timeout_seconds: i32,
    /// Environment, over the app's.
    #[serde(default)]
    pub config: Config,
    /// The client's own data.
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
    /// The app's shape when the function was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<Shape>,
    /// When it was made.
    #[serde(with = "wire::timestamp")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub created_at: Timestamp,
    /// When something in it last changed.
    #[serde(with = "wire::timestamp")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub updated_at: Timestamp,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_http_stream(format: &Format) -> bool {
    *format == Format::HttpStream
}

/// What a client sends to create or update a function. Empty fields count as not given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = FnInput))]
pub struct FunctionInput {
    /// Only in updates, where it must be the id in the path.
    #[serde(deserialize_with = "wire::null_as_default", skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Required to create, ignored in updates.
    #[serde(deserialize_with = "wire::null_as_default", skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Required to create, ignored in updates.
    #[serde(deserialize_with = "wire::null_as_default", skip_serializing_if = "String::is_empty")]
    pub app_id: String,
    /// Required to create.
    #[serde(deserialize_with = "wire::null_as_default", skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// One of Fn's formats of 2018 or `http-stream`, the default.
    #[serde(deserialize_with = "wire::null_as_default", skip_serializing_if = "String::is_empty")]
    pub format: String,
    /// MiB; 0 is 128 on create and no change in updates.
    #[serde(rename = "memory", deserialize_with = "wire::null_as_default", skip_serializing_if = "is_zero")]
    pub memory_mib: u64,
    /// Seconds; 0 is 30 on create and no change in updates.
    #[serde(rename = "timeout", deserialize_with = "wire::null_as_default", skip_serializing_if = "is_zero")]
    pub timeout_seconds: i32,
    /// Seconds; 0 is 30 on create and no change in updates.
    #[serde(
        rename = "idle_timeout",
        deserialize_with = "wire::null_as_default",
        skip_serializing_if = "is_zero"
    )]
    pub idle_timeout_seconds: i32,
    /// In updates merged by key; `""` deletes.
    #[serde(deserialize_with = "wire::config", skip_serializing_if = "Config::is_empty")]
    pub config: Config,
    /// In updates merged by key; `""` and `null` delete.
    #[serde(deserialize_with = "wire::null_as_default", skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
    /// Checked to be a time and otherwise ignored.
    #[serde(deserialize_with = "wire::given_time", skip_serializing)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub created_at: Option<Timestamp>,
    /// Checked to be a time and otherwise ignored.
    #[serde(deserialize_with = "wire::given_time", skip_serializing)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub updated_at: Option<Timestamp>,
}

fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

impl FunctionInput {
    fn format(&self) -> Result<Option<Format>, ApiError> {
        if self.format.is_empty() {
            return Ok(None);
        }
        self.format.parse().map(Some).map_err(|_| ApiError::FnFormatInvalid)
    }
}

impl FunctionResource {
    /// Checks everything that can be checked without knowing the app.
    ///
    /// # Errors
    /// The first rule that `input` breaks, in the order of `spec/api-v2.md`, part 2.2.
    pub fn check_create(input: &FunctionInput) -> Result<(), ApiError> {
        Self::draft(input, AppId::generate(), None, Timestamp::UNIX_EPOCH).map(drop)
    }

    /// A new function of `app` with a new id.
    ///
    /// # Errors
    /// As [`Self::check_create`].
    pub fn create(input: &FunctionInput, app: &App, now: Timestamp) -> Result<Self, ApiError> {
        Self::draft(input, app.id, app.shape, now)
    }

    fn draft(
        input: &FunctionInput,
        app_id: AppId,
        shape: Option<Shape>,
        now: Timestamp,
    ) -> Result<Self, ApiError> {
        if !input.id.is_empty() {
            return Err(ApiError::FnIdGiven);
        }
        if input.app_id.is_empty() {
            return Err(ApiError::FnAppIdMissing);
        }
        let refusals = [ApiError::FnNameMissing, ApiError::FnNameTooLong, ApiError::FnNameInvalid];
        check_name(&input.name, is_in_segment, refusals)?;
        if input.image.is_empty() {
            return Err(ApiError::FnImageMissing);
        }
        let function = Self {
            id: FunctionId::generate(),
            name: input.name.clone(),
            app_id,
            image: input.image.clone(),
            format: input.format()?.unwrap_or_default(),
            memory_mib: or_default(input.memory_mib, MEMORY_MIB_DEFAULT),
            timeout_seconds: or_default(input.timeout_seconds, TIMEOUT_SECONDS_DEFAULT),
            idle_timeout_seconds: or_default(input.idle_timeout_seconds, IDLE_TIMEOUT_SECONDS_DEFAULT),
            config: input.config.clone(),
            annotations: input.annotations.given(),
            shape,
            created_at: now,
            updated_at: now,
        };
        function.check()?;
        Ok(function)
    }

    /// This function after an update. It differs from this one only if something changed.
    ///
    /// # Errors
    /// The first rule that the result breaks.
    pub fn update(&self, input: &FunctionInput, now: Timestamp) -> Result<Self, ApiError> {
        let mut function = self.clone();
        if !input.image.is_empty() {
            function.image.clone_from(&input.image);
        }
        if let Some(format) = input.format()? {
            function.format = format;
        }
        function.memory_mib = or_default(input.memory_mib, self.memory_mib);
        function.timeout_seconds = or_default(input.timeout_seconds, self.timeout_seconds);
        function.idle_timeout_seconds = or_default(input.idle_timeout_seconds, self.idle_timeout_seconds);
        wire::merge_config(&mut function.config, &input.config);
        function.annotations.merge(&input.annotations);
        function.check()?;
        if function != *self {
            function.updated_at = now;
        }
        Ok(function)
    }

    fn check(&self) -> Result<(), ApiError> {
        if !(1..=TIMEOUT_SECONDS_MAX).contains(&self.timeout_seconds) {
            return Err(ApiError::FnTimeoutInvalid);
        }
        if !(1..=IDLE_TIMEOUT_SECONDS_MAX).contains(&self.idle_timeout_seconds) {
            return Err(ApiError::FnIdleTimeoutInvalid);
        }
        if !(1..=MEMORY_MIB_MAX).contains(&self.memory_mib) {
            return Err(ApiError::FnMemoryInvalid);
        }
        self.annotations.check()?;
        wire::check_config(&self.config)
    }
}

/// What stands in a URL's path segment as it is.
fn is_in_segment(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.~$&+:=@".contains(c)
}

fn or_default<T: Default + PartialEq>(given: T, default: T) -> T {
    if is_zero(&given) { default } else { given }
}

/// What a node runs: the function with its app's config under its own. `app` must be the function's.
pub fn resolve(app: &App, function: &FunctionResource) -> FunctionSpec {
    let mut config = app.config.clone();
    config.extend(function.config.clone());
    let destination =
        |key| function.annotations.destination(key).or_else(|| app.annotations.destination(key));
    let image_digest = function.annotations.get(IMAGE_DIGEST).and_then(|value| value.as_str());
    FunctionSpec {
        id: function.id,
        name: function.name.clone(),
        app_id: app.id,
        app_name: app.name.clone(),
        image: function.image.clone(),
        image_digest: image_digest.map(str::to_owned),
        format: function.format,
        memory_mib: function.memory_mib,
        cpu_millis: None,
        tmpfs_mib: None,
        timeout: seconds(function.timeout_seconds),
        idle_timeout: seconds(function.idle_timeout_seconds),
        config,
        syslog_url: app.syslog_url.clone(),
        concurrency_max: function.annotations.concurrency_max().or_else(|| app.annotations.concurrency_max()),
        detached: DetachedPolicy {
            retry: function.annotations.retry().or_else(|| app.annotations.retry()).unwrap_or_default(),
            on_success: destination(ON_SUCCESS),
            on_failure: destination(ON_FAILURE),
        },
    }
}

fn seconds(count: i32) -> Duration {
    Duration::from_secs(u64::from(count.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::{AppInput, CONCURRENCY_MAX, RETRY, from_json};

    fn app(input: &serde_json::Value) -> App {
        let input = from_json::<AppInput>(input.to_string().as_bytes()).expect("readable");
        App::create(&input, Timestamp::UNIX_EPOCH).expect("valid")
    }

    fn function(app: &App, input: &serde_json::Value) -> FunctionResource {
        let input = from_json::<FunctionInput>(input.to_string().as_bytes()).expect("readable");
        FunctionResource::create(&input, app, Timestamp::UNIX_EPOCH).expect("valid")
    }

    #[test]
    fn a_function_runs_with_its_apps_config_under_its_own() {
        let app =
            app(&json!({"name": "a", "config": {"BOTH": "app", "APP": "1"}, "syslog_url": "udp://h:514"}));
        let given = json!({
            "app_id": app.id, "name": "f", "image": "i:1", "config": {"BOTH": "fn", "FN": "2"}, "memory": 256,
            "timeout": 5, "idle_timeout": 60, "format": "json", "annotations": {IMAGE_DIGEST: "sha256:ab"},
        });
        let resource = function(&app, &given);
        let spec = resolve(&app, &resource);
        assert_eq!(
            spec,
            FunctionSpec {
                id: resource.id,
                name: "f".to_owned(),
                app_id: app.id,
                app_name: "a".to_owned(),
                image: "i:1".to_owned(),
                image_digest: Some("sha256:ab".to_owned()),
                format: Format::Json,
                memory_mib: 256,
                cpu_millis: None,
                tmpfs_mib: None,
                timeout: Duration::from_secs(5),
                idle_timeout: Duration::from_mins(1),
                config: [("APP", "1"), ("BOTH", "fn"), ("FN", "2")]
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .into(),
                syslog_url: Some("udp://h:514".to_owned()),
                concurrency_max: None,
                detached: DetachedPolicy::default(),
            }
        );
    }

    #[test]
    fn a_new_digest_of_the_image_is_a_new_revision_and_other_annotations_are_not() {
        let app = app(&json!({"name": "a"}));
        let before = function(&app, &json!({"app_id": app.id, "name": "f", "image": "i"}));
        let revision = |change: serde_json::Value| {
            let input = from_json::<FunctionInput>(change.to_string().as_bytes()).expect("readable");
            let after = before.update(&input, Timestamp::UNIX_EPOCH).expect("valid");
            resolve(&app, &after).revision()
        };
        let same = resolve(&app, &before).revision();
        assert_eq!(revision(json!({"annotations": {"note": 1, IMAGE_DIGEST: 5}})), same);
        assert_ne!(revision(json!({"annotations": {IMAGE_DIGEST: "sha256:cd"}})), same);
        assert_ne!(revision(json!({"config": {"K": "V"}})), same);
    }

    #[test]
    fn a_limit_on_calls_comes_from_the_function_or_else_its_app_and_makes_no_new_revision() {
        let plain = app(&json!({"name": "a"}));
        let limited = app(&json!({"name": "a", "annotations": {CONCURRENCY_MAX: 5}}));
        let before = function(&plain, &json!({"app_id": plain.id, "name": "f", "image": "i"}));
        let own = from_json(json!({"annotations": {CONCURRENCY_MAX: 100_000}}).to_string().as_bytes());
        let after = before.update(&own.expect("readable"), Timestamp::UNIX_EPOCH).expect("valid");
        let (none, of_app) = (resolve(&plain, &before), resolve(&limited, &before));
        let specs = [&none, &of_app, &resolve(&limited, &after)].map(|spec| spec.concurrency_max);
        assert_eq!(specs, [None, Some(5), Some(100_000)]);
        assert_eq!(none.revision(), FunctionSpec { app_id: none.app_id, ..of_app }.revision());
    }

    #[test]
    fn a_limit_on_calls_is_a_number_from_1_to_100_000() {
        let app = app(&json!({"name": "a"}));
        for limit in [json!(0), json!(100_001), json!("7"), json!(1.5), json!(-1)] {
            let given =
                json!({"app_id": app.id, "name": "f", "image": "i", "annotations": {CONCURRENCY_MAX: limit}});
            let input = from_json::<FunctionInput>(given.to_string().as_bytes()).expect("readable");
            let refused = FunctionResource::create(&input, &app, Timestamp::UNIX_EPOCH);
            assert_eq!(refused, Err(ApiError::ConcurrencyMaxInvalid), "{limit}");
        }
    }

    #[test]
    fn what_becomes_of_detached_calls_comes_from_the_function_or_else_its_app_and_makes_no_new_revision() {
        let told =
            app(&json!({"name": "a", "annotations": {ON_SUCCESS: "a/next", ON_FAILURE: "http://h/x"}}));
        let before = function(&told, &json!({"app_id": told.id, "name": "f", "image": "i"}));
        let change = json!({"annotations": {ON_SUCCESS: "b/own", RETRY: {"attempts_max": 7}}});
        let own = from_json(change.to_string().as_bytes()).expect("readable");
        let after = before.update(&own, Timestamp::UNIX_EPOCH).expect("valid");
        let (of_app, of_function) = (resolve(&told, &before), resolve(&told, &after));
        let shown = |spec: &FunctionSpec| {
            let DetachedPolicy { retry, on_success, on_failure } = spec.detached.clone();
            (retry.attempts_max, on_success.expect("one").to_string(), on_failure.expect("one").to_string())
        };
        let usual = DetachedPolicy::default().retry.attempts_max;
        assert_eq!(shown(&of_app), (usual, "a/next".to_owned(), "http://h/x".to_owned()));
        assert_eq!(shown(&of_function), (7, "b/own".to_owned(), "http://h/x".to_owned()));
        let plain = FunctionSpec { detached: DetachedPolicy::default(), ..of_app.clone() };
        assert_eq!([of_app.revision(), of_function.revision()], [plain.revision(); 2]);
    }

    #[test]
    fn retries_and_destinations_that_cannot_be_are_refused_by_name() {
        let app = app(&json!({"name": "a"}));
        for (annotations, refusal) in [
            (json!({RETRY: {"attempts_max": 0}}), ApiError::RetryInvalid),
            (json!({RETRY: 3}), ApiError::RetryInvalid),
            (json!({ON_SUCCESS: "nowhere"}), ApiError::DestinationInvalid(ON_SUCCESS)),
            (json!({ON_FAILURE: ["a/b"]}), ApiError::DestinationInvalid(ON_FAILURE)),
        ] {
            let given = json!({"app_id": app.id, "name": "f", "image": "i", "annotations": annotations});
            let input = from_json::<FunctionInput>(given.to_string().as_bytes()).expect("readable");
            assert_eq!(FunctionResource::create(&input, &app, Timestamp::UNIX_EPOCH), Err(refusal));
        }
    }

    #[test]
    fn what_a_client_sends_holds_only_what_is_set() {
        let input = FunctionInput { image: "i:2".to_owned(), memory_mib: 64, ..FunctionInput::default() };
        assert_eq!(serde_json::to_string(&input).expect("JSON"), r#"{"image":"i:2","memory":64}"#);
        let clear = AppInput { syslog_url: Some(String::new()), ..AppInput::default() };
        assert_eq!(serde_json::to_string(&clear).expect("JSON"), r#"{"syslog_url":""}"#);
    }
}
