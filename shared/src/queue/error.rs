//! Why an operation on the queue failed.

/// An operation that was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueError {
    /// The backend does not answer, or broke off; it may work again later.
    #[error("the queue cannot be reached: {0}")]
    Unavailable(String),
    /// The queue holds as many unfinished messages as it may.
    #[error("the queue is full ({messages_max} messages); wait until some are done, or raise its limit")]
    Full {
        /// The limit.
        messages_max: u64,
    },
    /// A part of a message, or a batch, is larger than allowed.
    #[error("{what} of {size} bytes is larger than {size_max} bytes")]
    TooLarge {
        /// Which part.
        what: String,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        size_max: u64,
    },
    /// The operation asks for what no queue can do.
    #[error("{0}")]
    Invalid(String),
    /// The backend failed in a way that waiting will not mend.
    #[error("the queue failed: {0}")]
    Failed(String),
}

impl QueueError {
    /// True if the same operation may succeed later, unchanged.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Full { .. })
    }
}
