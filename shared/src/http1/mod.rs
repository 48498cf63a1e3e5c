//! HTTP/1.1 messages (RFC 9110, RFC 9112): heads, framing and connections. The one implementation of message
//! framing and hop-by-hop rules in Kiln: the edge, the call hop, the container's socket and the `http`
//! format all read and write messages through it.
//!
//! [`head`] and [`chunked`] are pure; [`server`] and [`client`] drive a connection with them. Strict on
//! purpose: what could be read in two ways is refused, never repaired, so that nothing ambiguous is forwarded.

pub mod buffer;
pub mod chunked;
pub mod client;
mod date;
mod decimal;
pub mod head;
mod headers;
pub mod server;

pub use decimal::push_decimal;
pub use headers::{HeaderBlock, InvalidHeader, Lines, is_token_byte, is_value_byte, title_case};
