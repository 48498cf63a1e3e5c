//! Ways of carrying a call from a balancer's worker to an agent, side by side: what a call costs on both ends.
//!
//! One thread calls ([`client`]), another process answers ([`server`]) with the call's own body; each has a core. Every
//! way carries the same heads, written and read by the same code. QUIC is a prototype that lives here alone ([`quic`]).

pub mod call;
pub mod client;
pub mod loss;
pub mod measure;
pub mod quic;
pub mod server;
pub mod table;
pub mod tls;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A way of carrying calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// HTTP/1.1, a pooled TCP connection for each call in flight.
    Pooled,
    /// The same over TLS 1.3.
    PooledTls,
    /// A QUIC stream a call.
    Quic,
    /// Kiln's frames on one TCP connection.
    Mux,
    /// The same over TLS 1.3.
    MuxTls,
}

impl Way {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pooled => "pooled h1",
            Self::PooledTls => "pooled h1, TLS",
            Self::Quic => "QUIC streams",
            Self::Mux => "own frames",
            Self::MuxTls => "own frames, TLS",
        }
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// Agents, each with a socket of its own.
    pub agents: usize,
    /// Calls in flight, over all agents.
    pub in_flight: usize,
    /// Bytes of a call's body, and of its answer's.
    pub body_bytes: usize,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The way.
    pub way: Way,
    /// The case.
    pub case: Case,
    /// What loses packets, if something did.
    pub loss: Option<String>,
    /// Answers.
    pub calls: usize,
    /// Answers per second.
    pub calls_per_second: f64,
    /// CPU time of the calling process per call, microseconds.
    pub client_us: f64,
    /// CPU time of the answering process per call, microseconds.
    pub server_us: f64,
    /// Median time from call to the end of its answer, microseconds.
    pub p50_us: f64,
    /// 99 of 100 were not slower, microseconds.
    pub p99_us: f64,
}

impl Measured {
    /// CPU time per call on both ends, microseconds.
    pub fn both_us(&self) -> f64 {
        self.client_us + self.server_us
    }
}
