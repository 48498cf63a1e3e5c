//! What is asked of a queue, and what it answers.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{BATCH_MAX, FUNCTIONS_MAX, LEASE_MAX, QueueError, WORKER_BYTES_MAX};
use crate::ids::{CallId, FunctionId};

/// Proves that a worker has a message. Worth nothing once the lease has ended and somebody else has the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Receipt {
    /// The message.
    pub id: CallId,
    /// Which of the message's leases.
    pub lease: u64,
}

/// Which functions' messages a worker takes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Functions {
    /// Any.
    #[default]
    All,
    /// These alone.
    Only(Vec<FunctionId>),
    /// Any but these.
    Except(Vec<FunctionId>),
}

impl Functions {
    /// True if messages of the function are taken.
    pub fn include(&self, function: FunctionId) -> bool {
        match self {
            Self::All => true,
            Self::Only(these) => these.contains(&function),
            Self::Except(these) => !these.contains(&function),
        }
    }

    fn named(&self) -> usize {
        match self {
            Self::All => 0,
            Self::Only(these) | Self::Except(these) => these.len(),
        }
    }
}

/// Asks for messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserve {
    /// Who asks: a node's name, shown to operators.
    pub worker: String,
    /// Most messages to give, at most [`BATCH_MAX`].
    pub messages_max: usize,
    /// How long the worker has them unless it renews.
    pub lease: Duration,
    /// Functions that are warm at the worker: theirs go first within a priority...
    pub preferred: Vec<Preferred>,
    /// ...but not before a message of another function that has been due for longer than this.
    pub preferred_for: Duration,
    /// Most messages of each function that is not preferred.
    pub each_max: usize,
    /// Which functions at all.
    pub functions: Functions,
}

/// A function whose messages a worker would rather have than others'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preferred {
    /// The function.
    pub function: FunctionId,
    /// Most messages of it.
    pub messages_max: usize,
}

impl Reserve {
    /// Asks for messages of all functions alike.
    pub fn new(worker: impl Into<String>, messages_max: usize, lease: Duration) -> Self {
        Self {
            worker: worker.into(),
            messages_max,
            lease,
            preferred: Vec::new(),
            preferred_for: Duration::from_secs(1),
            each_max: messages_max,
            functions: Functions::All,
        }
    }

    /// True if any message of the function is taken.
    pub fn wants(&self, function: FunctionId) -> bool {
        self.functions.include(function) && self.most_of(function) > 0
    }

    /// Most messages of this function, if it is taken at all.
    pub fn most_of(&self, function: FunctionId) -> usize {
        let preferred = self.preferred.iter().find(|preferred| preferred.function == function);
        preferred.map_or(self.each_max, |preferred| preferred.messages_max)
    }

    /// Checks it against every limit of the queue.
    ///
    /// # Errors
    /// The first limit that is not kept.
    pub fn check(&self) -> Result<(), QueueError> {
        if self.messages_max == 0 || self.messages_max > BATCH_MAX {
            return Err(QueueError::Invalid(format!(
                "{} messages asked for; use 1 to {BATCH_MAX}",
                self.messages_max
            )));
        }
        if self.preferred.len().max(self.functions.named()) > FUNCTIONS_MAX {
            return Err(QueueError::Invalid(format!("more than {FUNCTIONS_MAX} functions are named")));
        }
        if self.worker.is_empty() || self.worker.len() > WORKER_BYTES_MAX || self.worker.contains('\0') {
            return Err(QueueError::Invalid(format!("a worker's name has 1 to {WORKER_BYTES_MAX} bytes")));
        }
        Receipt::check(&[], self.lease)
    }
}

impl Receipt {
    /// Checks what is to be renewed against every limit of the queue.
    ///
    /// # Errors
    /// The first limit that is not kept.
    pub fn check(receipts: &[Self], lease: Duration) -> Result<(), QueueError> {
        if receipts.len() > BATCH_MAX {
            return Err(QueueError::Invalid(format!(
                "{} leases at once; at most {BATCH_MAX}",
                receipts.len()
            )));
        }
        if lease < Duration::from_millis(1) || lease > LEASE_MAX {
            return Err(QueueError::Invalid(format!("a lease of {lease:?}; use 1ms to {LEASE_MAX:?}")));
        }
        Ok(())
    }
}

/// Whether a worker still has a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    /// It has, until the end of the new lease.
    Held,
    /// Its lease ended, or the message with it: nothing was changed. Work on it may stop.
    Lost,
}

/// When to try a message again that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retry {
    /// As the message's policy says.
    ByPolicy,
    /// After this time (at most [`LEASE_MAX`]), if the policy allows another attempt.
    After(Duration),
    /// Never: it is dead.
    Never,
}

/// How a worker's work on a message ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Done; it is never given out again.
    Done,
    /// Failed.
    Failed {
        /// Why, for people to read; what is over [`super::ERROR_BYTES_MAX`] is cut.
        error: String,
        /// When again.
        retry: Retry,
    },
    /// Not begun: the message goes back where it was, the attempt not counted.
    Unstarted,
}

/// The end of a worker's work on a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settlement {
    /// The message, and the proof that the worker has it.
    pub receipt: Receipt,
    /// How it ended.
    pub outcome: Outcome,
}

impl Settlement {
    /// Checks a batch against every limit of the queue.
    ///
    /// # Errors
    /// The first limit that is not kept.
    pub fn check(batch: &[Self]) -> Result<(), QueueError> {
        if batch.len() > BATCH_MAX {
            return Err(QueueError::Invalid(format!(
                "{} messages at once; at most {BATCH_MAX}",
                batch.len()
            )));
        }
        let mut ids: Vec<CallId> = batch.iter().map(|settlement| settlement.receipt.id).collect();
        ids.sort_unstable();
        if ids.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(QueueError::Invalid("a message is settled twice in one batch".to_owned()));
        }
        for settlement in batch {
            if let Outcome::Failed { retry: Retry::After(pause), .. } = settlement.outcome
                && pause > LEASE_MAX
            {
                return Err(QueueError::Invalid(format!(
                    "a pause of {pause:?} is longer than {LEASE_MAX:?}"
                )));
            }
        }
        Ok(())
    }
}

/// What became of a settled message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Settled {
    /// It is done. Also the answer when the same receipt says so again.
    Done,
    /// It will be given out again.
    Again {
        /// After this time.
        after: Duration,
    },
    /// It failed for good and is kept as dead.
    Dead,
    /// The worker had lost it before: nothing was changed.
    Lost,
}

/// Which dead messages to put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Redrive {
    /// This one.
    Message(CallId),
    /// The oldest of a function, at most so many.
    Function {
        /// The function.
        function_id: FunctionId,
        /// At most [`BATCH_MAX`].
        messages_max: usize,
    },
}

/// What became of a message that was to be cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cancelled {
    /// It waited and never starts.
    Cancelled,
    /// It runs; nothing was changed.
    Running,
    /// It had ended; nothing was changed.
    Ended,
    /// There is no such message.
    Unknown,
}

/// Which ended messages to forget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purge {
    /// Done and cancelled ones that ended longer ago than this.
    Finished(Duration),
    /// Dead ones that died longer ago than this.
    Dead(Duration),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_included_by_their_lists() {
        let (one, other) = (FunctionId::generate(), FunctionId::generate());
        assert!(Functions::All.include(one));
        assert!(Functions::Only(vec![one]).include(one) && !Functions::Only(vec![one]).include(other));
        assert!(Functions::Except(vec![one]).include(other) && !Functions::Except(vec![one]).include(one));
    }

    #[test]
    fn what_is_over_a_limit_is_refused() {
        let good = Reserve::new("node", 1, Duration::from_secs(30));
        assert_eq!(good.check(), Ok(()));
        assert!(Reserve { messages_max: 0, ..good.clone() }.check().is_err());
        assert!(Reserve { messages_max: BATCH_MAX + 1, ..good.clone() }.check().is_err());
        assert!(Reserve { lease: Duration::ZERO, ..good.clone() }.check().is_err());
        assert!(Reserve { lease: LEASE_MAX * 2, ..good.clone() }.check().is_err());
        assert!(Reserve { worker: String::new(), ..good.clone() }.check().is_err());
        let many = vec![FunctionId::generate(); FUNCTIONS_MAX + 1];
        assert!(Reserve { functions: Functions::Only(many), ..good }.check().is_err());
    }

    #[test]
    fn a_batch_settles_each_message_once() {
        let receipt = Receipt { id: CallId::generate(), lease: 1 };
        let one = Settlement { receipt, outcome: Outcome::Done };
        assert_eq!(Settlement::check(std::slice::from_ref(&one)), Ok(()));
        assert!(Settlement::check(&[one.clone(), one]).is_err());
        let retry = Retry::After(LEASE_MAX * 2);
        let late = Settlement { receipt, outcome: Outcome::Failed { error: String::new(), retry } };
        assert!(Settlement::check(&[late]).is_err());
    }
}
