//! Messages on their way into the queue and out of it.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    BATCH_BYTES_MAX, BATCH_MAX, DELAY_MAX, ENVELOPE_BYTES_MAX, KEY_BYTES_MAX, PAYLOAD_BYTES_MAX, QueueError,
    Receipt, RetryPolicy,
};
use crate::ids::{AppId, CallId, FunctionId};

/// 0, 1 or 2; higher ones go first (`spec/services.md`, part 2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Priority(u8);

impl Priority {
    /// The highest.
    pub const MAX: Self = Self(2);

    /// All of them, highest first.
    pub const ALL: [Self; 3] = [Self(2), Self(1), Self(0)];

    /// The priority as a number.
    pub fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for Priority {
    type Error = QueueError;

    fn try_from(number: u8) -> Result<Self, QueueError> {
        if number > Self::MAX.0 {
            return Err(QueueError::Invalid(format!("priority {number} is not 0, 1 or 2")));
        }
        Ok(Self(number))
    }
}

impl From<Priority> for u8 {
    fn from(priority: Priority) -> Self {
        priority.0
    }
}

/// A message to store.
#[derive(Debug, Clone)]
pub struct NewMessage {
    /// The call, which names the message. Enqueuing it again does nothing, so that a broken connection harms not.
    pub id: CallId,
    /// The function to call.
    pub function_id: FunctionId,
    /// Its app.
    pub app_id: AppId,
    /// Higher ones first.
    pub priority: Priority,
    /// Not to be given out before this has passed.
    pub delay: Duration,
    /// Not to be started, or started again, later than this from now: it is dead then.
    pub deadline: Option<Duration>,
    /// A second message of the same function and key is not stored.
    pub idempotency_key: Option<String>,
    /// What to do when it fails.
    pub retry: RetryPolicy,
    /// It tells how another message ended, which makes room: a full queue takes a batch of such messages all the same.
    pub tells_an_end: bool,
    /// What whoever runs it must know beside the payload, as JSON; the queue does not read it.
    pub envelope: Box<RawValue>,
    /// The call's body; the queue does not read it.
    pub payload: Bytes,
}

impl NewMessage {
    /// A message of priority 0, due at once, with the usual retries and an empty object as its envelope.
    pub fn new(id: CallId, function_id: FunctionId, app_id: AppId, payload: impl Into<Bytes>) -> Self {
        Self {
            id,
            function_id,
            app_id,
            priority: Priority::default(),
            delay: Duration::ZERO,
            deadline: None,
            idempotency_key: None,
            retry: RetryPolicy::default(),
            tells_an_end: false,
            envelope: RawValue::from_string("{}".to_owned()).expect("an empty object is JSON"),
            payload: payload.into(),
        }
    }

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
        batch.iter().try_for_each(Self::check_one)?;
        fits("batch", batch.iter().map(|message| message.payload.len()).sum(), BATCH_BYTES_MAX)
    }

    fn check_one(&self) -> Result<(), QueueError> {
        fits("payload", self.payload.len(), PAYLOAD_BYTES_MAX)?;
        fits("envelope", self.envelope.get().len(), ENVELOPE_BYTES_MAX)?;
        fits("idempotency key", self.idempotency_key.as_ref().map_or(0, String::len), KEY_BYTES_MAX)?;
        if self.idempotency_key.as_ref().is_some_and(|key| key.is_empty() || key.contains('\0')) {
            return Err(QueueError::Invalid("an idempotency key is empty or holds a NUL".to_owned()));
        }
        for (what, length) in [("delay", self.delay), ("deadline", self.deadline.unwrap_or_default())] {
            if length > DELAY_MAX {
                return Err(QueueError::Invalid(format!(
                    "{what} of {length:?} is longer than {DELAY_MAX:?}"
                )));
            }
        }
        self.retry.check()
    }
}

fn fits(what: &str, size: usize, size_max: usize) -> Result<(), QueueError> {
    if size > size_max {
        let (size, size_max) = (size as u64, size_max as u64);
        return Err(QueueError::TooLarge { what: what.to_owned(), size, size_max });
    }
    Ok(())
}

/// What became of a message that was enqueued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Enqueued {
    /// It is stored.
    New(CallId),
    /// This one was stored before, under the same id or idempotency key.
    Known(CallId),
}

impl Enqueued {
    /// The message that is stored.
    pub fn id(self) -> CallId {
        match self {
            Self::New(id) | Self::Known(id) => id,
        }
    }
}

/// A message given to a worker.
#[derive(Debug, Clone)]
pub struct Reserved {
    /// Proves that the worker has it.
    pub receipt: Receipt,
    /// The function to call.
    pub function_id: FunctionId,
    /// Its app.
    pub app_id: AppId,
    /// Its priority.
    pub priority: Priority,
    /// This attempt's number, from 1.
    pub attempt: u32,
    /// What happens when it fails.
    pub retry: RetryPolicy,
    /// When it was enqueued.
    pub created_at: Timestamp,
    /// As it was enqueued.
    pub envelope: Box<RawValue>,
    /// As it was enqueued.
    pub payload: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> NewMessage {
        NewMessage::new(CallId::generate(), FunctionId::generate(), AppId::generate(), "hello")
    }

    #[test]
    fn priorities_are_0_1_and_2() {
        assert_eq!(Priority::ALL.map(Priority::get), [2, 1, 0]);
        assert!(Priority::try_from(3).is_err());
        assert_eq!(serde_json::from_str::<Priority>("2").unwrap(), Priority::MAX);
        assert!(serde_json::from_str::<Priority>("-1").is_err());
    }

    #[test]
    fn what_is_over_a_limit_is_named() {
        assert_eq!(NewMessage::check(&[message()]), Ok(()));
        let large = NewMessage { payload: vec![0; PAYLOAD_BYTES_MAX + 1].into(), ..message() };
        let refused = NewMessage::check(&[large]).unwrap_err().to_string();
        assert_eq!(refused, "payload of 8388609 bytes is larger than 8388608 bytes");
        let late = NewMessage { deadline: Some(DELAY_MAX * 2), ..message() };
        assert!(NewMessage::check(&[late]).unwrap_err().to_string().starts_with("deadline of "));
        let empty = NewMessage { idempotency_key: Some(String::new()), ..message() };
        assert!(matches!(NewMessage::check(&[empty]), Err(QueueError::Invalid(_))));
        let many = vec![message(); BATCH_MAX + 1];
        assert_eq!(NewMessage::check(&many).unwrap_err().to_string(), "1001 messages at once; at most 1000");
        let heavy = NewMessage { payload: vec![0; PAYLOAD_BYTES_MAX].into(), ..message() };
        assert!(NewMessage::check(&vec![heavy; 5]).unwrap_err().to_string().starts_with("batch of "));
    }
}
