//! What Kiln's parts agree on: the model, the function contract, HTTP/1.1 framing, and the seams between
//! balancer, agent, API and queue ([`call::CallHop`], [`report::NodeReport`], [`record::RecordSink`],
//! [`queue::Queue`]).
//!
//! Knows nothing of routing, SQL or Docker. A thing lives here only when two crates use it.

pub mod address;
pub mod body;
pub mod call;
pub mod contract;
pub mod function;
pub mod http1;
pub mod identity;
pub mod ids;
pub mod link;
pub mod listen;
pub mod model;
pub mod mux;
pub mod mysql_url;
pub mod program;
pub mod queue;
pub mod record;
pub mod report;
pub mod schedule;
pub mod story;
pub mod syslog;
pub mod telemetry;
pub mod token;
