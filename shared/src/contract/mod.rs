//! The function contract: environment, framings and limits (`spec/container-contract.md`).
//!
//! Owns every byte that passes between the agent and a function's container, and what an answer means. Pure:
//! no I/O, no clock, no task; deadlines are passed in. Every length that a function or a client controls has a
//! limit in [`Limits`].
//!
//! # How an agent drives it
//!
//! *Before the start of a container*: [`environment::environment`] is the container's environment;
//! [`environment::CallEnvironment`] for the `default` format, whose containers serve one call each.
//!
//! *`http-stream`*: write [`http_stream::request_head`], then the body in the framing that the head announced
//! (fixed length where [`Body::length`](crate::body::Body::length) is known, else chunks). Read the response's
//! head, hand status and headers to [`http_stream::verdict`] and obey: an answer is streamed on (count its body
//! with [`Limits::check_response`]), a failure ends the call, and [`ContainerFate`] says what becomes of the
//! container. What is left of a failed call's response must be read or its connection closed.
//!
//! *Pipes* ([`pipe`]): one encoder and one decoder per call drive all four formats alike. A call that ends
//! before [`pipe::Event::End`] for any reason (deadline, caller gone, error of any kind) leaves the container
//! in an unknown state: kill it, or its late answer goes to the next caller.

mod answer;
mod cloudevent;
mod default;
mod digits;
pub mod environment;
mod http;
pub mod http_stream;
mod json;
mod limits;
pub mod pipe;
mod protocol;
#[cfg(test)]
pub(crate) mod testing;

pub use limits::{Limits, LogBudget};

use std::time::Duration;

use jiff::Timestamp;

use crate::call::Failure;

/// Until when a call has time that began at `started`, in a function with this timeout.
pub fn deadline(started: Timestamp, timeout: Duration) -> Timestamp {
    let timeout = jiff::SignedDuration::try_from(timeout).unwrap_or(jiff::SignedDuration::MAX);
    started.checked_add(timeout).unwrap_or(Timestamp::MAX)
}

/// What becomes of a container after a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerFate {
    /// It is in a known, clean state and may serve the next call.
    Keep,
    /// Nobody knows what it will write next; it must never serve again.
    Kill,
}

/// A call that ended without an answer, and what that means for its container.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{failure}")]
pub struct CallFailed {
    /// For the client and the record.
    pub failure: Failure,
    /// For the slot.
    pub container: ContainerFate,
}

impl CallFailed {
    /// The call failed; the container is clean.
    pub fn keep(failure: Failure) -> Self {
        Self { failure, container: ContainerFate::Keep }
    }

    /// The call failed, and the container with it.
    pub fn kill(failure: Failure) -> Self {
        Self { failure, container: ContainerFate::Kill }
    }
}

/// How a container ended, as far as an answer depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerExit {
    /// Its first process ended with this code.
    Code(i64),
    /// The kernel killed it for its memory.
    OutOfMemory,
    /// It is gone and nobody knows how.
    Unknown,
}

impl ContainerExit {
    /// What a caller gets whose call was under way (`spec/container-contract.md`, A5). A code of 137 without
    /// the kernel's word that memory was the cause is a kill by someone, not lack of memory. An exit with 0 in
    /// the middle of a call fails it at once, too (`spec/corrections-2018.md`, formats, 7).
    pub fn failure(self) -> Failure {
        match self {
            Self::Code(code) => {
                Failure::new(crate::call::FailureKind::NoResponse, 502, format!("container exit code {code}"))
            }
            Self::OutOfMemory => Failure::out_of_memory(),
            Self::Unknown => Failure::no_response(),
        }
    }
}
