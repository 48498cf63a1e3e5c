//! Many exchanges side by side on one connection: Kiln's own framing, for calls from balancers to agents.
//!
//! The client opens streams; a stream carries one HTTP/1.1 head and a body each way, as [`crate::link::call`] has it on
//! a connection of its own. The body is not chunked: frames say where it ends. What many streams have to say
//! goes out in one system call a turn of the runtime, which is what makes this cheaper than a connection a call.
//!
//! Both sides begin with eight bytes: [`PREFACE`] and [`VERSION`]. Then come frames.
//!
//! - A stream begins with its first data, ids rise by one from 1. It ends both ways when the answer ends, or when either
//!   side gives it up.
//! - Each way of a stream begins with a credit of [`CREDIT_BYTES`], and the receiver grants more as its reader takes what came. So
//!   a reader that is slow holds up its own stream and no other.
//! - A server that drains takes no more streams and says which was the last: those above it were not begun and may
//!   be tried elsewhere.
//! - A peer that breaks a rule is told which, and the connection is closed.
//!
//! `connection.rs` has the rules and does no I/O, `driver.rs` moves the bytes over any stream of them, [`Client`] and
//! [`serve()`] are what others use. A connection and its streams stay on one thread: the lock that they share is there
//! for the types alone, and is never contended nor held across an await.

mod client;
mod connection;
mod driver;
mod frame;
mod message;
mod outbox;
mod serve;
mod stream;

use std::io;

pub use client::{Client, ClientDriver, Exchange, StartError};
pub use serve::serve;

/// How a connection begins. No HTTP request begins so.
pub const PREFACE: [u8; 7] = *b"\0KilnMx";
/// The version of the framing, which follows [`PREFACE`].
pub const VERSION: u8 = 1;

/// Most streams of a connection at a time.
pub const STREAMS_MAX: usize = 256;
/// Most bytes of one way of a stream that its reader has not taken. Longer than the head and body of a small call.
pub const CREDIT_BYTES: u32 = 256 << 10;
/// Bytes that wait to be written to a connection; what is not the beginning of a message waits at its source beyond
/// that, a server reads no more, and a client opens no stream.
const OUT_BYTES_MAX: usize = 256 << 10;
/// Longest text of why a connection ends.
const REASON_BYTES_MAX: usize = 256;

/// A rule that the peer broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// It does not begin as it must.
    #[error("the peer does not speak Kiln's multiplexing")]
    Preface,
    /// It speaks another version.
    #[error("the peer speaks version {theirs} of Kiln's multiplexing; this side speaks version {VERSION}")]
    Version {
        /// The peer's.
        theirs: u8,
    },
    /// A frame that this version does not know.
    #[error("a frame of the unknown kind {kind}")]
    Kind {
        /// What it says it is.
        kind: u8,
    },
    /// A payload that is too long or too short for its frame.
    #[error("a frame with a payload of {payload_bytes} bytes")]
    Length {
        /// Its length.
        payload_bytes: usize,
    },
    /// A frame for a stream that was never opened, or whose id leaves a gap.
    #[error("a frame for stream {stream}, which does not exist")]
    Stream {
        /// The stream.
        stream: u32,
    },
    /// More streams than allowed.
    #[error("more than {STREAMS_MAX} streams")]
    Streams,
    /// More bytes than were granted.
    #[error("more bytes of stream {stream} than were granted")]
    Credit {
        /// The stream.
        stream: u32,
    },
    /// More credit than can be.
    #[error("more credit for stream {stream} than can be")]
    Grant {
        /// The stream.
        stream: u32,
    },
    /// Bytes behind the end of a stream.
    #[error("bytes behind the end of stream {stream}")]
    Ended {
        /// The stream.
        stream: u32,
    },
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// Nobody needs it any longer.
    #[error("the connection was not needed any longer")]
    Unused,
    /// No connection was made.
    #[error("no connection could be made: {0}")]
    Unconnected(String),
    /// The peer closed it.
    #[error("the peer closed the connection")]
    ByPeer,
    /// The peer takes no more requests, for no fault of this side.
    #[error("the peer is draining")]
    Draining,
    /// The peer closed it and said why.
    #[error("the peer closed the connection: {0}")]
    Told(String),
    /// It failed.
    #[error("the connection failed: {0}")]
    Failed(String),
    /// The peer took nothing for too long.
    #[error("the peer took no byte in time")]
    Stalled,
    /// The peer broke a rule.
    #[error(transparent)]
    Violation(#[from] Violation),
}

/// Why a stream has no more to give.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// No byte of it was given to the peer, or the peer said that it does not take it.
    #[error("the peer has not taken the call: {0}")]
    NotTaken(Closed),
    /// The peer gave it up.
    #[error("the peer broke off")]
    Reset,
    /// The connection ended.
    #[error(transparent)]
    Lost(Closed),
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        let kind = match error {
            StreamError::Reset => io::ErrorKind::ConnectionReset,
            StreamError::NotTaken(_) | StreamError::Lost(_) => io::ErrorKind::ConnectionAborted,
        };
        Self::new(kind, error)
    }
}

#[cfg(test)]
mod tests;
