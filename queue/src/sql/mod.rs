//! What the backends on SQL databases share: the operations, in terms of the few statements that each database has
//! in its own words ([`Session`]).

mod enqueue;
pub(crate) mod filter;
mod operation;
mod reserve;
mod row;
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(crate) mod server;
mod session;
mod settle;

pub(crate) use crate::engine::{Core, Effect, Engine, Horizon, NewRow, Operation, Reply, Row, stored};
pub(crate) use enqueue::enqueue;
pub(crate) use operation::{Done, Fault, run};
pub(crate) use row::{Body, DepthRow, LaneRow, columns, lanes_max, parse};
pub(crate) use session::{Again, Buried, Session};
