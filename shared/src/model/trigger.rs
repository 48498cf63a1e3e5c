//! Triggers: paths under `/t/{app}/` that lead to a function, and schedules that call one.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::wire;
use super::{Annotations, ApiError, FunctionResource, ScheduledCall, check_name, is_in_word};
use crate::ids::{AppId, FunctionId, TriggerId};

/// What makes a trigger fire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum TriggerType {
    /// A request to `/t/{app}{source}`.
    Http,
    /// The ticks of the cron line in `source`: Kiln's own kind.
    Schedule,
}

impl TriggerType {
    /// The API's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Schedule => "schedule",
        }
    }

    /// Reads the API's word; `None` if it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "http" => Some(Self::Http),
            "schedule" => Some(Self::Schedule),
            _ => None,
        }
    }
}

/// A trigger, as stored and as the API shows it (`spec/api-v2.md`, part 2.3).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Trigger {
    /// Names the trigger for good.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub id: TriggerId,
    /// Unique within its function.
    pub name: String,
    /// The app it belongs to.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub app_id: AppId,
    /// The function it leads to, of the same app.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub fn_id: FunctionId,
    /// What makes it fire.
    #[serde(rename = "type")]
    pub kind: TriggerType,
    /// The path below the app, with its leading slash, unique within the app; or a cron line.
    pub source: String,
    /// The client's own data.
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
    /// When it was made.
    #[serde(with = "wire::timestamp")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub created_at: Timestamp,
    /// When something in it last changed.
    #[serde(with = "wire::timestamp")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub updated_at: Timestamp,
}

/// What a client sends to create or update a trigger. Empty fields count as not given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TriggerInput {
    /// Only in updates, where it must be the id in the path.
    #[serde(deserialize_with = "wire::null_as_default", skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Required to create.
    #[serde(deserialize_with = "wire::null_as_default", skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Required to create, ignored in updates.
    #[serde(deserialize_with = "wire::null_as_default", skip_serializing_if = "String::is_empty")]
    pub app_id: String,
    /// Required to create; must be a function of the same app.
    #[serde(deserialize_with = "wire::null_as_default", skip_serializing_if = "String::is_empty")]
    pub fn_id: String,
    /// Required to create, ignored in updates. `http` or `schedule`.
    #[serde(
        rename = "type",
        deserialize_with = "wire::null_as_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub kind: String,
    /// Required to create; a path that begins with a slash, or a cron line.
    #[serde(deserialize_with = "wire::null_as_default", skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// In updates merged by key; `""` and `null` delete.
    #[serde(deserialize_with = "wire::null_as_default", skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
    /// Must not be given to create, ignored in updates.
    #[serde(deserialize_with = "wire::given_time", skip_serializing)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub created_at: Option<Timestamp>,
    /// Must not be given to create, ignored in updates.
    #[serde(deserialize_with = "wire::given_time", skip_serializing)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub updated_at: Option<Timestamp>,
}

impl Trigger {
    /// Checks everything that can be checked without knowing app and function.
    ///
    /// # Errors
    /// The first rule that `input` breaks, in the order of `spec/api-v2.md`, part 2.3.
    pub fn check_create(input: &TriggerInput) -> Result<(), ApiError> {
        if !input.id.is_empty() {
            return Err(ApiError::TriggerIdGiven);
        }
        if input.created_at.is_some() {
            return Err(ApiError::TriggerCreatedAtGiven);
        }
        if input.updated_at.is_some() {
            return Err(ApiError::TriggerUpdatedAtGiven);
        }
        if input.app_id.is_empty() {
            return Err(ApiError::TriggerAppIdMissing);
        }
        check_trigger_name(&input.name)?;
        if input.fn_id.is_empty() {
            return Err(ApiError::TriggerFnIdMissing);
        }
        let kind = TriggerType::parse(&input.kind).ok_or(ApiError::TriggerTypeInvalid)?;
        let annotations = input.annotations.given();
        check_source(kind, &input.source)?;
        annotations.check()?;
        check_schedule(kind, &input.source, &annotations)
    }

    /// A new trigger of `function`, which belongs to `app_id` or is refused.
    ///
    /// # Errors
    /// As [`Self::check_create`], or the function is another app's.
    pub fn create(
        input: &TriggerInput,
        app_id: AppId,
        function: &FunctionResource,
        now: Timestamp,
    ) -> Result<Self, ApiError> {
        Self::check_create(input)?;
        let trigger = Self {
            id: TriggerId::generate(),
            name: input.name.clone(),
            app_id,
            fn_id: function.id,
            kind: TriggerType::parse(&input.kind).ok_or(ApiError::TriggerTypeInvalid)?,
            source: input.source.clone(),
            annotations: input.annotations.given(),
            created_at: now,
            updated_at: now,
        };
        trigger.check_owner(function)?;
        Ok(trigger)
    }

    /// This trigger after an update; `function` is the one it leads to then. It differs from this one only
    /// if something changed.
    ///
    /// # Errors
    /// The first rule that the result breaks, or the function is another app's.
    pub fn update(
        &self,
        input: &TriggerInput,
        function: &FunctionResource,
        now: Timestamp,
    ) -> Result<Self, ApiError> {
        let mut trigger = self.clone();
        if !input.name.is_empty() {
            trigger.name.clone_from(&input.name);
        }
        if !input.source.is_empty() {
            trigger.source.clone_from(&input.source);
        }
        trigger.fn_id = function.id;
        trigger.annotations.merge(&input.annotations);
        check_trigger_name(&trigger.name)?;
        check_source(trigger.kind, &trigger.source)?;
        trigger.annotations.check()?;
        check_schedule(trigger.kind, &trigger.source, &trigger.annotations)?;
        trigger.check_owner(function)?;
        if trigger != *self {
            trigger.updated_at = now;
        }
        Ok(trigger)
    }

    /// What a trigger of the type `schedule` does; `None` for others.
    ///
    /// # Errors
    /// Source or annotations do not say it, which no stored trigger's do unless another version stored it.
    pub fn scheduled(&self) -> Result<Option<ScheduledCall>, ApiError> {
        match self.kind {
            TriggerType::Http => Ok(None),
            TriggerType::Schedule => ScheduledCall::read(&self.source, &self.annotations).map(Some),
        }
    }

    fn check_owner(&self, function: &FunctionResource) -> Result<(), ApiError> {
        if function.app_id == self.app_id { Ok(()) } else { Err(ApiError::TriggerFnOfOtherApp) }
    }
}

fn check_trigger_name(name: &str) -> Result<(), ApiError> {
    let refusals = [ApiError::TriggerNameMissing, ApiError::TriggerNameTooLong, ApiError::TriggerNameInvalid];
    check_name(name, is_in_word, refusals)
}

fn check_source(kind: TriggerType, source: &str) -> Result<(), ApiError> {
    if source.is_empty() {
        return Err(ApiError::TriggerSourceMissing);
    }
    if kind == TriggerType::Schedule || source.starts_with('/') {
        return Ok(());
    }
    Err(ApiError::TriggerSourceWithoutSlash)
}

fn check_schedule(kind: TriggerType, source: &str, annotations: &Annotations) -> Result<(), ApiError> {
    match kind {
        TriggerType::Http => Ok(()),
        TriggerType::Schedule => ScheduledCall::read(source, annotations).map(drop),
    }
}
