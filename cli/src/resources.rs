//! Apps, functions, triggers and calls as the HTTP API shows them (`GET /v2/...`).
//!
//! These are the client's own, forgiving shapes: fields that a newer or older server adds are kept and sent back,
//! so that a read-change-write never loses them. Validation is the server's.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Annotation with the URL that invokes a function; computed by the server.
pub const INVOKE_ENDPOINT: &str = "fnproject.io/fn/invokeEndpoint";
/// Annotation with the URL of an HTTP trigger; computed by the server.
pub const TRIGGER_ENDPOINT: &str = "fnproject.io/trigger/httpEndpoint";

/// Annotation with the next tick of a schedule; computed by the server.
pub const NEXT_TICK: &str = "kiln.dev/next-tick";
/// Annotation with the id of the image that was deployed, so that deploying the same tag again is a change.
pub const IMAGE_DIGEST: &str = "kiln.dev/image-digest";

/// Name-value pairs given to functions.
pub type Config = BTreeMap<String, String>;
/// Notes on a resource: any JSON value by name.
pub type Annotations = Map<String, Value>;

/// An application: a namespace of functions and triggers.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct App {
    /// Given by the server.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Unique on the server.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Given to all functions of the app.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config: Config,
    /// See [`Annotations`].
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub annotations: Annotations,
    /// Where the logs of the functions go; an empty text clears it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub syslog_url: Option<String>,
    /// Processor architectures, such as `GENERIC_X86`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub shape: String,
    /// Fields this client does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A function.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Function {
    /// Given by the server.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Unique in its app.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The app it belongs to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub app_id: String,
    /// Container image.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// Megabytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Seconds a call may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
    /// Seconds a container is kept without calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<u32>,
    /// Given to the function, over the app's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config: Config,
    /// See [`Annotations`].
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub annotations: Annotations,
    /// Fields this client does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A trigger: a URL path that calls a function.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Trigger {
    /// Given by the server.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Unique in its function.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The app it belongs to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub app_id: String,
    /// The function it calls.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fn_id: String,
    /// `http` or `schedule`.
    #[serde(default, rename = "type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Path below `/t/APP`, with a leading slash; or a cron line.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// See [`Annotations`].
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub annotations: Annotations,
    /// Fields this client does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A call that ended, or a detached one on its way.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Call {
    /// The call's id.
    #[serde(default)]
    pub id: String,
    /// `success`, `error` or `timeout`; of a detached one also `queued`, `delayed`, `running`, `cancelled` or `dead`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub status: String,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub created_at: String,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub started_at: String,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub completed_at: String,
    /// Fields this client does not show by name.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Function {
    /// The URL that invokes it, if the server told one.
    pub fn invoke_endpoint(&self) -> Option<&str> {
        self.annotations.get(INVOKE_ENDPOINT).and_then(Value::as_str)
    }
}

impl Trigger {
    /// The URL of the trigger, if the server told one.
    pub fn endpoint(&self) -> Option<&str> {
        self.annotations.get(TRIGGER_ENDPOINT).and_then(Value::as_str)
    }

    /// When a schedule calls next, if the server told.
    pub fn next_tick(&self) -> Option<&str> {
        self.annotations.get(NEXT_TICK).and_then(Value::as_str)
    }
}

/// Removes the annotations that the server computes, so that an update does not store them.
pub fn without_computed(mut annotations: Annotations) -> Annotations {
    annotations.shift_remove(INVOKE_ENDPOINT);
    annotations.shift_remove(TRIGGER_ENDPOINT);
    annotations.shift_remove(NEXT_TICK);
    annotations
}

/// Finds `path` (names joined by dots, as in `config.DB_URL`) in `value`. Names that hold dots themselves, as those of
/// annotations do, are found too.
pub fn property<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    if let Some(found) = value.get(path) {
        return Some(found);
    }
    path.match_indices('.').find_map(|(dot, _)| property(value.get(&path[..dot])?, &path[dot + 1..]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn properties_are_found_below_names_with_dots() {
        let value = json!({"annotations": {"fnproject.io/fn/invokeEndpoint": "u", "a": {"b": 1}}});
        assert_eq!(property(&value, "annotations.fnproject.io/fn/invokeEndpoint"), Some(&json!("u")));
        assert_eq!(property(&value, "annotations.a.b"), Some(&json!(1)));
        assert_eq!(property(&value, "annotations.a.c"), None);
    }

    #[test]
    fn fields_of_another_server_version_are_kept() {
        let text = json!({"id": "1", "name": "a", "lifecycle_state": "ACTIVE"});
        let app: App = serde_json::from_value(text.clone()).unwrap();
        assert_eq!(serde_json::to_value(&app).unwrap(), text);
    }
}
