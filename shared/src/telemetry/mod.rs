//! Logs and metrics set-up.
