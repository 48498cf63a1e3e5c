//! What balancers and agents say to each other: HTTP/1.1 over pooled TCP connections, the balancer asks.
//!
//! Calls go as in [`call`]; everything else is JSON at the paths below and long polls, so that news arrive at once
//! and silence is noticed. Every request shows the fleet's token, if there is one, in its first header line.

pub mod call;

use serde::{Deserialize, Serialize};
use std::time::Duration;

use crate::record::Record;

/// Runs a call ([`call`]).
pub const CALL_PATH: &str = "/call";
/// `PUT /functions/{revision}` with a [`FunctionSpec`](crate::function::FunctionSpec): the agent knows it then.
pub const FUNCTIONS_PATH: &str = "/functions/";
/// `GET /report?after={epoch}.{sequence}`: the [`NodeReport`](crate::report::NodeReport) as soon as it is another
/// one, or 204 after [`BEAT`]. Without `after`, at once.
pub const REPORT_PATH: &str = "/report";
/// `POST /records?taken={number}`: the next [`RecordBatch`], or 204 after [`BEAT`]. The batch of that number is
/// forgotten; any other is given again.
pub const RECORDS_PATH: &str = "/records";
/// `GET /health`: 200 while the agent lives.
pub const HEALTH_PATH: &str = "/health";

/// The header line with the fleet's token.
pub const TOKEN_HEADER: &str = "Kiln-Token";

/// An agent answers a long poll after this time, news or none.
pub const BEAT: Duration = Duration::from_secs(3);

/// Call records and logs on their way to the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordBatch {
    /// Names this batch; never 0.
    pub number: u64,
    /// The records, oldest first.
    pub records: Vec<Record>,
}
