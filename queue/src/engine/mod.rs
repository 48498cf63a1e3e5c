//! What all backends share: the operations in the form in which an engine gets them, the checks before and the task
//! beside them, and what a stored message means. Knows no database.

mod core;
mod operation;
mod queue;
#[cfg(feature = "sql")]
mod room;
mod row;
mod tend;

pub(crate) use core::Core;
pub(crate) use operation::{Effect, Horizon, Operation, PURGED_MAX, Reply, page_begin};
pub(crate) use queue::{Engine, EngineQueue};
#[cfg(feature = "sql")]
pub(crate) use room::Room;
pub(crate) use row::{Broken, NewRow, Row, millis, parse, priority, stored, time};
