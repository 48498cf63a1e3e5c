//! What agents and balancers say on the link.
//!
//! An agent opens one stream for its state, one for its call records and one for each question; the first message of a
//! stream is its [`Opening`]. Readers take no offence at fields that they do not know: a newer peer may send more.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::work::WorkAsk;
use crate::function::{FunctionSpec, Revision};
use crate::identity::SignedCertificate;
use crate::ids::{FunctionId, NodeId};
use crate::record::Record;
use crate::report::NodeReport;

/// The version of these messages. A peer that speaks another one is refused.
pub const PROTOCOL: u32 = 1;

/// The first message of a stream that an agent opens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Opening {
    /// [`AgentMessage`]s follow; [`BalancerMessage`]s come back, the first says whether the agent is welcome.
    State(Hello),
    /// [`RecordBatch`]es follow; [`Stored`]s come back.
    Records,
    /// One [`Answer`] comes back.
    Ask(Ask),
    /// One [`WorkAnswer`](super::work::WorkAnswer) comes back.
    Work(WorkAsk),
}

/// Who an agent is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The version of the messages that it speaks, [`PROTOCOL`].
    pub protocol: u32,
    /// Its name; its certificate says the same.
    pub node: NodeId,
    /// Names this life of the agent, as in its reports.
    pub epoch: u64,
    /// Kiln's version there.
    pub version: String,
    /// Where it takes calls.
    pub calls_at: CallsAt,
    /// Where it stands, in the operator's words.
    #[serde(default)]
    pub zone: Option<String>,
    /// Its share of the functions; 128 is a usual machine's. `None` follows its memory.
    #[serde(default)]
    pub weight: Option<u32>,
    /// The time there.
    pub clock: Timestamp,
}

/// Where an agent takes calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CallsAt {
    /// At this port of the address that the link comes from.
    Port(u16),
    /// At this `host:port`.
    Address(String),
}

/// What an agent says of its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentMessage {
    /// Its state, whole at first and every few seconds, changes in between.
    Report(NodeReport),
    /// Nothing new, and it is there.
    Beat,
    /// It stops and will not be back under this epoch.
    Goodbye,
}

/// What a balancer says to an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BalancerMessage {
    /// The agent is a node of the fleet.
    Welcome,
    /// It is not, and this is why. The connection ends.
    Refused(Refused),
    /// Where all balancers are that this one knows, as `host:port`.
    Balancers(Vec<String>),
    /// The next report must be whole.
    SendWhole,
    /// Do this.
    Command(Command),
}

/// Why an agent is not let into the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Refused {
    /// It speaks another version.
    #[error(
        "it speaks version {spoken} of the link and this balancer speaks {wanted}; bring both to one version of Kiln"
    )]
    Protocol {
        /// What it speaks.
        spoken: u32,
        /// What the balancer speaks.
        wanted: u32,
    },
    /// Its certificate is another node's.
    #[error("it says that it is {said} and its certificate is {certificate}'s; join the node again")]
    Name {
        /// What it says.
        said: NodeId,
        /// What the certificate says.
        certificate: String,
    },
    /// Another agent with this name is connected.
    #[error(
        "another agent called {node} is connected from {address}; give one of them another data folder and join it again"
    )]
    SameName {
        /// The name.
        node: NodeId,
        /// Where the other one is.
        address: String,
    },
    /// It was removed.
    #[error("it was removed from the fleet; join it again under another name")]
    Removed,
    /// Its clock is far off.
    #[error("its clock is {seconds} s off this balancer's (behind if negative); set the time on both hosts")]
    Clock {
        /// How far it is ahead, in seconds.
        seconds: i64,
    },
    /// What it says of itself cannot be.
    #[error("what it reports cannot be: {what}")]
    Absurd {
        /// What.
        what: String,
    },
    /// It does not speak as this module says.
    #[error("it sent a message that cannot be read: {what}")]
    Malformed {
        /// What.
        what: String,
    },
}

impl Refused {
    /// A word for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Protocol { .. } => "protocol",
            Self::Name { .. } => "name",
            Self::SameName { .. } => "same-name",
            Self::Removed => "removed",
            Self::Clock { .. } => "clock",
            Self::Absurd { .. } => "absurd",
            Self::Malformed { .. } => "malformed",
        }
    }
}

/// What a balancer wants of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// Finish the calls that run, take no more, give up the containers. Also after a restart, until told otherwise.
    Drain,
    /// Take calls again.
    Undrain,
    /// Have this many containers of the function, idle or busy.
    Prewarm {
        /// The function.
        spec: Box<FunctionSpec>,
        /// Its revision.
        revision: Revision,
        /// How many.
        containers: u32,
    },
    /// Give up the idle containers of the function.
    Evict {
        /// The function.
        function: FunctionId,
        /// Its revision.
        revision: Revision,
    },
}

impl Command {
    /// A word for it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Undrain => "undrain",
            Self::Prewarm { .. } => "prewarm",
            Self::Evict { .. } => "evict",
        }
    }
}

/// A question of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// A new certificate for the same name: [`Answer::Certificate`].
    Renew {
        /// The request for it, in PEM.
        request_pem: String,
    },
}

/// What a balancer answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The certificate, and whom to trust from now on.
    Certificate(SignedCertificate),
    /// This balancer cannot say; another one may. The text says why.
    Cannot(String),
}

/// Call records and logs on their way to the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordBatch {
    /// Names this batch; never 0.
    pub number: u64,
    /// The records, oldest first.
    pub records: Vec<Record>,
}

/// The batch of this number is stored; the agent may forget it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Names the batch.
    pub number: u64,
}
