//! HTTP/1.1 messages (RFC 9110, RFC 9112): heads, framing and connections. The one implementation of message
//! framing and hop-by-hop rules in Kiln.

mod headers;

pub use headers::{HeaderBlock, InvalidHeader};
