//! The edge from outside: bytes on a socket in, bytes out, and what reaches a node in between.

#[path = "../support/fed.rs"]
mod fed;

mod answers;
mod framing;
mod http2;
mod paths;
mod support;
mod waiting;
mod why;
