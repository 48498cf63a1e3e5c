//! From a request's path to the function it means.
//!
//! One owner keeps the [`RouteTable`] and feeds it the catalog's changes; each worker keeps a [`RouteReader`] and
//! resolves paths in an immutable snapshot, without lock and without allocation. A path with escapes costs one.

mod copier;
pub mod disk;
pub mod follow;
pub mod path;
pub mod snapshot;
pub mod table;

use kiln_shared::call::{Failure, FailureKind};

pub use follow::{FollowError, Followed, Follower, follow, follow_with_copy};
pub use path::{Target, classify, decode};
pub use snapshot::{Route, RouteReader, Routes, ScheduleRoute, TriggerRoute};
pub use table::RouteTable;

/// Why a path leads to no function. Words and statuses are Fn's (`spec/api-v2.md`, parts 4 and 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// A `%` is not followed by two hexadecimal digits (400).
    #[error("Invalid path: bad percent escape")]
    BadEscape,
    /// No app has this name (404).
    #[error("App not found")]
    AppNotFound,
    /// The app has no trigger with this source (404).
    #[error("Trigger not found")]
    TriggerNotFound,
    /// No function has this id (404).
    #[error("Fn not found")]
    FunctionNotFound,
}

impl RouteError {
    /// HTTP status for the client.
    pub fn status(self) -> u16 {
        if self == Self::BadEscape { 400 } else { 404 }
    }
}

impl From<RouteError> for Failure {
    fn from(error: RouteError) -> Self {
        let message = match error {
            RouteError::BadEscape => "Invalid path: bad percent escape",
            RouteError::AppNotFound => "App not found",
            RouteError::TriggerNotFound => "Trigger not found",
            RouteError::FunctionNotFound => "Fn not found",
        };
        Self::new(FailureKind::BadRequest, error.status(), message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_the_error_says() {
        use RouteError::{AppNotFound, BadEscape, FunctionNotFound, TriggerNotFound};
        for error in [BadEscape, AppNotFound, TriggerNotFound, FunctionNotFound] {
            let failure = Failure::from(error);
            assert_eq!(
                (failure.message.as_ref(), failure.status),
                (error.to_string().as_str(), error.status())
            );
        }
    }
}
