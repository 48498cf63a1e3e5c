//! What the backends on SQL databases share: the operations, in terms of the few statements that each database has
//! in its own words ([`Session`]), and what runs beside them.

mod core;
mod enqueue;
pub(crate) mod filter;
mod operation;
mod queue;
mod reserve;
mod row;
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(crate) mod server;
mod session;
mod settle;
mod tend;

pub(crate) use core::Core;
pub(crate) use enqueue::enqueue;
pub(crate) use operation::{Done, Effect, Fault, Operation, Reply, run};
pub(crate) use queue::{Engine, SqlQueue};
pub(crate) use row::{Body, DepthRow, LaneRow, NewRow, Row, columns, lanes_max, parse, stored};
pub(crate) use session::{Again, Buried, Horizon, Session};
