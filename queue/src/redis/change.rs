//! Changes to messages that are still as they were when the change was decided.

use kiln_shared::ids::CallId;
use kiln_shared::queue::QueueError;
use redis::Cmd;

use super::server::optional;
use super::{Redis, script};
use crate::engine::{Broken, Effect, stored};

/// A change of one message.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) id: CallId,
    /// The stored state in which it must be.
    pub(super) state: i64,
    pub(super) lease: Lease,
    pub(super) to: To,
}

/// In which lease the message must be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Lease {
    /// Any.
    Any,
    /// This one.
    Is(i64),
    /// This one, and it has ended.
    Ended(i64),
}

/// What becomes of the message. Times are milliseconds.
#[derive(Debug)]
pub(super) enum To {
    /// It runs on, its lease until then.
    Hold(i64),
    Done,
    Cancelled,
    Dead {
        error: String,
    },
    Again {
        due_at: i64,
        attempts: i64,
        error: String,
    },
    /// As it was before it was reserved.
    Back,
    /// Dead before, it waits from then on.
    Revived(i64),
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Changed {
    /// It was made.
    Made,
    /// There is no such message.
    Unknown,
    /// The message is in another state or lease.
    Otherwise { state: i64, lease: u64 },
}

impl Change {
    fn write(&self, command: &mut Cmd) {
        command.arg(self.id.as_str()).arg(self.state);
        let (lease, ended) = match self.lease {
            Lease::Any => (None, ""),
            Lease::Is(lease) => (Some(lease), ""),
            Lease::Ended(lease) => (Some(lease), "ended"),
        };
        optional(command, lease);
        command.arg(ended);
        let (action, time, attempts, error) = match &self.to {
            To::Hold(until) => ("hold", Some(*until), None, ""),
            To::Done => ("end", None, None, ""),
            To::Cancelled => ("cancel", None, None, ""),
            To::Dead { error } => ("bury", None, None, error.as_str()),
            To::Again { due_at, attempts, error } => {
                ("again", Some(*due_at), Some(*attempts), error.as_str())
            }
            To::Back => ("back", None, None, ""),
            To::Revived(due_at) => ("revive", Some(*due_at), None, ""),
        };
        command.arg(action);
        optional(command, time);
        optional(command, attempts);
        command.arg(error);
    }

    /// What it means, once made, to those who wait for messages.
    fn effect(&self, now: i64) -> Effect {
        match self.to {
            To::Again { due_at, .. } => Effect::of_waiting(due_at, now),
            To::Back | To::Revived(_) => Effect::Due,
            _ => Effect::Nothing,
        }
    }
}

impl Redis {
    /// Makes changes, all at one moment, and wakes who waits for what they bring.
    pub(super) async fn change(&self, changes: &[Change], now: i64) -> Result<Vec<Changed>, QueueError> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let answers: Vec<String> = self
            .server
            .run(&script::CHANGE, |command| {
                self.server.publisher(command.arg(now));
                for change in changes {
                    change.write(command);
                }
            })
            .await?;
        let outcomes = answers.iter().map(|answer| changed(answer)).collect::<Result<Vec<_>, _>>()?;
        let made = changes.iter().zip(&outcomes).filter(|(_, outcome)| **outcome == Changed::Made);
        self.core.tell(made.fold(Effect::Nothing, |effect, (change, _)| effect.and(change.effect(now))));
        Ok(outcomes)
    }

    /// One change of a message whose lease does not matter.
    pub(super) async fn change_one(
        &self,
        id: CallId,
        state: i64,
        to: To,
        now: i64,
    ) -> Result<Changed, QueueError> {
        let outcomes = self.change(&[Change { id, state, lease: Lease::Any, to }], now).await?;
        Ok(outcomes.first().copied().unwrap_or(Changed::Unknown))
    }
}

fn changed(answer: &str) -> Result<Changed, Broken> {
    match answer {
        "ok" => Ok(Changed::Made),
        "" => Ok(Changed::Unknown),
        other => other
            .split_once(' ')
            .and_then(|(state, lease)| {
                Some(Changed::Otherwise { state: state.parse().ok()?, lease: lease.parse().ok()? })
            })
            .ok_or_else(|| Broken(format!("{other:?} is no state and lease"))),
    }
}

impl Changed {
    /// True if the message is done, and was so in this lease.
    pub(super) fn is_done_in(self, wanted: u64) -> bool {
        matches!(self, Self::Otherwise { state: stored::DONE, lease } if lease == wanted)
    }
}
