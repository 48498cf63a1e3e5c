//! Ended calls as the API shows them (`spec/api-v2.md`, part 8).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::wire;
use crate::ids::{AppId, CallId, FunctionId, TriggerId};
use crate::record::{CallRecord, CallStatus};

/// A call that ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Call {
    /// Names the call.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub id: CallId,
    /// How it ended.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub status: CallStatus,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its app.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub app_id: AppId,
    /// Its function.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub fn_id: FunctionId,
    /// The trigger it came through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub trigger_id: Option<TriggerId>,
    /// When a node took it.
    #[serde(with = "wire::timestamp")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub created_at: Timestamp,
    /// When it got a container; absent if it never did.
    #[serde(default, with = "wire::optional_timestamp", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(with = "wire::timestamp")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub completed_at: Timestamp,
    /// A container was started for it. Kiln's own field, shown only where true.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cold: bool,
}

impl From<CallRecord> for Call {
    fn from(record: CallRecord) -> Self {
        Self {
            id: record.id,
            status: record.status,
            error: record.error,
            app_id: record.app_id,
            fn_id: record.function_id,
            trigger_id: record.trigger_id,
            created_at: record.created_at,
            started_at: record.started_at,
            completed_at: record.completed_at,
            cold: record.cold,
        }
    }
}
