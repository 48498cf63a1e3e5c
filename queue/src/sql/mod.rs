//! What the backends on SQL databases share: the operations, in terms of the few statements that each database has
//! in its own words ([`Session`]).

mod enqueue;
pub(crate) mod filter;
mod lanes;
mod operation;
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(crate) mod refusal;
mod reserve;
mod row;
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(crate) mod server;
mod session;
mod settle;

#[cfg(feature = "sqlite")]
pub(crate) use enqueue::enqueue;
#[cfg(feature = "sqlite")]
pub(crate) use operation::{Done, Fault, run};
pub(crate) use row::{Body, DepthRow, KnownRow, LaneRow, columns};
pub(crate) use session::{Again, Buried, Session, keyed};
