//! What a node needs to know to run a function: app and function resolved into one value.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::ids::{AppId, FunctionId};
use crate::queue::DetachedPolicy;

/// How calls are framed between the agent and the function's container (`spec/container-contract.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// HTTP/1.1 over a unix socket that the function makes. What every FDK since 2019 speaks.
    #[default]
    HttpStream,
    /// One container per call: body on stdin, answer on stdout.
    Default,
    /// HTTP/1.1 messages on stdin and stdout, many calls per container.
    Http,
    /// JSON objects on stdin and stdout, many calls per container.
    Json,
    /// CloudEvents 0.1 in JSON on stdin and stdout, many calls per container.
    Cloudevent,
}

impl Format {
    /// The name that APIs and `FN_FORMAT` use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HttpStream => "http-stream",
            Self::Default => "default",
            Self::Http => "http",
            Self::Json => "json",
            Self::Cloudevent => "cloudevent",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A format name that Kiln does not know.
#[derive(Debug, thiserror::Error)]
#[error("unknown format {0:?}; use http-stream, default, http, json or cloudevent")]
pub struct UnknownFormat(pub String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        Ok(match text {
            "http-stream" => Self::HttpStream,
            "default" => Self::Default,
            "http" => Self::Http,
            "json" => Self::Json,
            "cloudevent" => Self::Cloudevent,
            other => return Err(UnknownFormat(other.to_owned())),
        })
    }
}

/// Version of a function: a hash of everything that its containers are made from, so that any change makes
/// new containers and a change of nothing keeps the warm ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

/// A function as a node runs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionSpec {
    /// The function.
    pub id: FunctionId,
    /// Its name within the app.
    pub name: String,
    /// The app it belongs to.
    pub app_id: AppId,
    /// The app's name.
    pub app_name: String,
    /// Image reference, as deployed.
    pub image: String,
    /// What the image was when it was deployed (`sha256:...`), where the deployer said so. It is part of the
    /// revision, so that a redeployed tag makes new containers.
    #[serde(default)]
    pub image_digest: Option<String>,
    /// Framing between agent and container.
    #[serde(default)]
    pub format: Format,
    /// Memory limit of one container in MiB.
    pub memory_mib: u64,
    /// CPU limit of one container in thousandths of a core; `None` is unlimited.
    #[serde(default)]
    pub cpu_millis: Option<u32>,
    /// Size of `/tmp` in MiB; `None` takes the agent's default.
    #[serde(default)]
    pub tmpfs_mib: Option<u32>,
    /// Longest time one call may run, counted from the moment it got a slot.
    pub timeout: Duration,
    /// A container unused for this long is removed.
    pub idle_timeout: Duration,
    /// Environment from app and function config; the function's entries win.
    pub config: BTreeMap<String, String>,
    /// Where the app's logs are sent, as given.
    #[serde(default)]
    pub syslog_url: Option<String>,
    /// Most calls of it that may run in the fleet at a time; `None` is no limit. What containers are made from does not
    /// change with it, so it is no part of the revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency_max: Option<u32>,
    /// What becomes of its detached calls; no part of the revision either.
    #[serde(default, skip_serializing_if = "DetachedPolicy::is_default")]
    pub detached: DetachedPolicy,
}

impl FunctionSpec {
    /// A function of `image` as Fn makes it where nothing more is said: `http-stream`, 128 MiB, 30 s for a call and for
    /// idle containers, no config. App and function go by the names `app` and `function`.
    pub fn with_defaults(id: FunctionId, app_id: AppId, image: impl Into<String>) -> Self {
        Self {
            id,
            name: "function".to_owned(),
            app_id,
            app_name: "app".to_owned(),
            image: image.into(),
            image_digest: None,
            format: Format::default(),
            memory_mib: 128,
            cpu_millis: None,
            tmpfs_mib: None,
            timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(30),
            config: BTreeMap::new(),
            syslog_url: None,
            concurrency_max: None,
            detached: DetachedPolicy::default(),
        }
    }

    /// The revision of this spec. O(size of the spec); compute once and keep.
    pub fn revision(&self) -> Revision {
        let text = if self.concurrency_max.is_none() && self.detached.is_default() {
            serde_json::to_vec(self)
        } else {
            let detached = DetachedPolicy::default();
            serde_json::to_vec(&Self { concurrency_max: None, detached, ..self.clone() })
        };
        Revision(xxh3_64(&text.expect("a spec always serializes: its map keys are strings")))
    }
}

/// A spec with its revision, as it is handed around.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// What to run.
    pub spec: FunctionSpec,
    /// Hash of `spec`.
    pub revision: Revision,
}

impl Function {
    /// Resolves the revision of `spec`.
    pub fn new(spec: FunctionSpec) -> Self {
        let revision = spec.revision();
        Self { spec, revision }
    }
}
