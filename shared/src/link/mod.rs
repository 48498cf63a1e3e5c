//! What balancers and agents say to each other.
//!
//! The **link** is a QUIC connection that an agent keeps to every balancer ([`quic`]): its state, call records and
//! questions go one way, commands the other ([`message`], as [`frame`]s on streams). The **call hop** carries the calls
//! themselves, on TLS connections that balancers make to agents ([`call`]).

pub mod call;
pub mod frame;
pub mod join;
pub mod message;
pub mod quic;
pub mod work;

use std::time::Duration;

/// Names the link in the TLS handshake (ALPN).
pub const LINK_ALPN: &[u8] = b"kiln-link";

/// Names calls side by side on one connection in the TLS handshake ([`crate::mux`]).
pub const MUX_ALPN: &[u8] = b"kiln-call";
/// Names calls one after the other on one connection in the TLS handshake (RFC 7301).
pub const HTTP1_ALPN: &[u8] = b"http/1.1";
/// Names the way to a first certificate in the TLS handshake ([`join`]).
pub const JOIN_ALPN: &[u8] = b"kiln-join";
/// The name that is asked for in the TLS handshake. Balancers are known by their certificates' role, not by this.
pub const SERVER_NAME: &str = "balancer.kiln";

/// Longest time between two messages of an agent's state.
pub const BEAT: Duration = Duration::from_millis(200);
/// Longest time between two whole reports.
pub const WHOLE_EVERY: Duration = Duration::from_secs(5);

/// How long an agent lets a call wait for a slot.
pub const QUEUE_WAIT_MAX: Duration = Duration::from_secs(30);

/// Longest state message in bytes: a report of some 100,000 functions.
pub const STATE_BYTES_MAX: usize = 16 << 20;
/// Longest batch of records in bytes.
pub const RECORDS_BYTES_MAX: usize = 64 << 20;
/// Longest question, answer or message of a balancer in bytes.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Runs a call ([`call`]).
pub const CALL_PATH: &str = "/call";
/// `PUT /functions/{revision}` with a [`FunctionSpec`](crate::function::FunctionSpec): the agent knows it then.
pub const FUNCTIONS_PATH: &str = "/functions/";
/// `GET /health`: 200 while the agent lives.
pub const HEALTH_PATH: &str = "/health";

/// `GET /ready`: 200 while a balancer is linked, so that calls can come.
pub const READY_PATH: &str = "/ready";
