//! Apps: what groups functions, gives them common config and a place for their logs.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::wire::{self, Config};
use super::{Annotations, ApiError, check_name, is_in_word};
use crate::ids::AppId;
use crate::syslog::targets;

/// Which processors an app's functions are built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Shape {
    /// x86-64.
    #[serde(rename = "GENERIC_X86")]
    X86,
    /// 64-bit ARM.
    #[serde(rename = "GENERIC_ARM")]
    Arm,
    /// Both.
    #[serde(rename = "GENERIC_X86_ARM")]
    X86Arm,
}

impl Shape {
    /// The API's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X86 => "GENERIC_X86",
            Self::Arm => "GENERIC_ARM",
            Self::X86Arm => "GENERIC_X86_ARM",
        }
    }

    /// Reads the API's word; `None` if it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::X86, Self::Arm, Self::X86Arm].into_iter().find(|shape| shape.as_str() == text)
    }
}

/// An app, as stored and as the API shows it (`spec/api-v2.md`, part 2.1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct App {
    /// Names the app for good.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub id: AppId,
    /// Unique among apps, never changes.
    pub name: String,
    /// Environment of all its functions.
    #[serde(default, skip_serializing_if = "Config::is_empty")]
    pub config: Config,
    /// The client's own data.
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
    /// Where its functions' logs are sent: URLs of syslog sinks, separated by commas or spaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub syslog_url: Option<String>,
    /// Which processors its functions are built for.
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

/// What a client sends to create or update an app. Empty fields count as not given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AppInput {
    /// Only in updates, where it must be the id in the path.
    #[serde(deserialize_with = "wire::null_as_default", skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Required to create; in updates only the present name is allowed.
    #[serde(deserialize_with = "wire::null_as_default", skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// In updates merged by key; `""` deletes.
    #[serde(deserialize_with = "wire::config", skip_serializing_if = "Config::is_empty")]
    pub config: Config,
    /// In updates merged by key; `""` and `null` delete.
    #[serde(deserialize_with = "wire::null_as_default", skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
    /// `None` keeps, `""` clears.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub syslog_url: Option<String>,
    /// Only for create.
    #[serde(deserialize_with = "wire::null_as_default", skip_serializing_if = "String::is_empty")]
    pub shape: String,
    /// Checked to be a time and otherwise ignored.
    #[serde(deserialize_with = "wire::given_time", skip_serializing)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub created_at: Option<Timestamp>,
    /// Checked to be a time and otherwise ignored.
    #[serde(deserialize_with = "wire::given_time", skip_serializing)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub updated_at: Option<Timestamp>,
}

impl App {
    /// A new app with a new id.
    ///
    /// # Errors
    /// The first rule that `input` breaks, in the order of `spec/api-v2.md`, part 2.1.
    pub fn create(input: &AppInput, now: Timestamp) -> Result<Self, ApiError> {
        if !input.id.is_empty() {
            return Err(ApiError::AppIdGiven);
        }
        let app = Self {
            id: AppId::generate(),
            name: input.name.clone(),
            config: input.config.clone(),
            annotations: input.annotations.given(),
            syslog_url: input.syslog_url.clone().filter(|url| !url.is_empty()),
            shape: Shape::parse(&input.shape),
            created_at: now,
            updated_at: now,
        };
        app.check()?;
        if app.shape.is_none() && !input.shape.is_empty() {
            return Err(ApiError::ShapeInvalid);
        }
        wire::check_config(&app.config)?;
        Ok(app)
    }

    /// This app after an update. It differs from this one only if something changed.
    ///
    /// # Errors
    /// The name differs, or the first rule that the result breaks.
    pub fn update(&self, input: &AppInput, now: Timestamp) -> Result<Self, ApiError> {
        if !input.name.is_empty() && input.name != self.name {
            return Err(ApiError::AppNameImmutable);
        }
        let mut app = self.clone();
        wire::merge_config(&mut app.config, &input.config);
        app.annotations.merge(&input.annotations);
        if let Some(url) = &input.syslog_url {
            app.syslog_url = Some(url.clone()).filter(|url| !url.is_empty());
        }
        app.check()?;
        wire::check_config(&app.config)?;
        if app != *self {
            app.updated_at = now;
        }
        Ok(app)
    }

    fn check(&self) -> Result<(), ApiError> {
        check_name(
            &self.name,
            is_in_word,
            [ApiError::AppNameMissing, ApiError::AppNameTooLong, ApiError::AppNameInvalid],
        )?;
        self.annotations.check()?;
        match &self.syslog_url {
            Some(list) => targets(list).map(drop).map_err(ApiError::SyslogUrlInvalid),
            None => Ok(()),
        }
    }
}
