//! The backends of the async queue ([`kiln_shared::queue::Queue`]), opened by URL.
//!
//! Knows nothing of calls beyond their ids: envelopes and payloads pass through unread. All backends pass one suite of
//! tests, `tests/queue/conformance/`.

mod clock;
mod engine;
mod fair;
#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "kafka")]
mod machine;
#[cfg(feature = "mysql")]
mod mysql;
mod open;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "sql")]
mod sql;
#[cfg(feature = "sqlite")]
mod sqlite;

pub use clock::{Clock, ManualClock};
pub use open::{OpenError, Options, open};
