//! Messages and the orders in which they are looked for.
//!
//! Invariant: each message is in exactly the indexes that its state asks for, as [`Store::change`] takes it out of
//! all before and puts it back after.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use kiln_shared::ids::{CallId, FunctionId};
use kiln_shared::queue::Priority;

use crate::engine::{Row, stored};
use crate::fair::Lane;

/// A message with what it carries.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) row: Row,
    pub(super) id: CallId,
    pub(super) function_id: FunctionId,
    pub(super) priority: Priority,
    pub(super) key: Option<String>,
    /// JSON; empty once the message is done or cancelled, as is the payload.
    pub(super) envelope: String,
    pub(super) payload: Bytes,
}

impl Message {
    fn carried_bytes(&self) -> u64 {
        (self.envelope.len() + self.payload.len()) as u64
    }
}

/// Messages by their sequence numbers, and by what is asked for. Times are milliseconds.
#[derive(Debug, Default)]
pub(super) struct Store {
    messages: BTreeMap<i64, Message>,
    last_seq: i64,
    carried_bytes: u64,
    ids: HashMap<CallId, i64>,
    keys: HashMap<(FunctionId, String), i64>,
    /// What waits, by when it is due.
    waiting: BTreeMap<(Priority, FunctionId), BTreeSet<(i64, i64)>>,
    due: BTreeSet<(i64, i64)>,
    deadlines: BTreeSet<(i64, i64)>,
    /// What runs, by when its lease ends.
    running: BTreeSet<(i64, i64)>,
    dead: BTreeSet<(FunctionId, i64)>,
    /// What ended, by when: dead, and done or cancelled.
    died: BTreeSet<(i64, i64)>,
    finished: BTreeSet<(i64, i64)>,
}

impl Store {
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub(super) fn held_bytes(&self) -> u64 {
        self.carried_bytes
    }

    /// How many wait or run.
    pub(super) fn unfinished(&self) -> u64 {
        (self.due.len() + self.running.len()) as u64
    }

    pub(super) fn last_seq(&self) -> i64 {
        self.last_seq
    }

    /// Goes on numbering after this one.
    pub(super) fn number_after(&mut self, seq: i64) {
        self.last_seq = self.last_seq.max(seq);
    }

    pub(super) fn next_seq(&mut self) -> i64 {
        self.last_seq += 1;
        self.last_seq
    }

    pub(super) fn get(&self, seq: i64) -> Option<&Message> {
        self.messages.get(&seq)
    }

    pub(super) fn seq_of(&self, id: CallId) -> Option<i64> {
        self.ids.get(&id).copied()
    }

    pub(super) fn by_id(&self, id: CallId) -> Option<&Message> {
        self.get(self.seq_of(id)?)
    }

    pub(super) fn by_key(&self, function: FunctionId, key: &str) -> Option<&Message> {
        self.get(*self.keys.get(&(function, key.to_owned()))?)
    }

    /// Messages after a sequence number.
    pub(super) fn after(&self, seq: i64) -> impl Iterator<Item = &Message> {
        self.messages.range(seq.saturating_add(1)..).map(|(_, message)| message)
    }

    /// Adds a message, whose id and key are new, under its row's sequence number.
    pub(super) fn insert(&mut self, message: Message) {
        let seq = message.row.seq;
        self.ids.insert(message.id, seq);
        if let Some(key) = &message.key {
            self.keys.insert((message.function_id, key.clone()), seq);
        }
        self.number_after(seq);
        self.put_in(&message);
        self.messages.insert(seq, message);
    }

    /// Changes a message that is there.
    pub(super) fn change(&mut self, seq: i64, change: impl FnOnce(&mut Message)) {
        if let Some(mut message) = self.messages.remove(&seq) {
            self.take_out(&message);
            change(&mut message);
            self.put_in(&message);
            self.messages.insert(seq, message);
        }
    }

    /// Forgets a message with its id and key.
    pub(super) fn remove(&mut self, seq: i64) {
        if let Some(message) = self.messages.remove(&seq) {
            self.take_out(&message);
            self.ids.remove(&message.id);
            if let Some(key) = message.key {
                self.keys.remove(&(message.function_id, key));
            }
        }
    }

    fn put_in(&mut self, message: &Message) {
        let (row, seq) = (&message.row, message.row.seq);
        self.carried_bytes += message.carried_bytes();
        match row.state {
            stored::WAITING => {
                let lane = (message.priority, message.function_id);
                self.waiting.entry(lane).or_default().insert((row.due_at, seq));
                self.due.insert((row.due_at, seq));
                if let Some(deadline) = row.deadline_at {
                    self.deadlines.insert((deadline, seq));
                }
            }
            stored::RUNNING => _ = self.running.insert((row.leased_until.unwrap_or_default(), seq)),
            stored::DEAD => {
                self.dead.insert((message.function_id, seq));
                self.died.insert((row.ended_at.unwrap_or_default(), seq));
            }
            _ => _ = self.finished.insert((row.ended_at.unwrap_or_default(), seq)),
        }
    }

    fn take_out(&mut self, message: &Message) {
        let (row, seq) = (&message.row, message.row.seq);
        self.carried_bytes -= message.carried_bytes();
        match row.state {
            stored::WAITING => {
                let lane = (message.priority, message.function_id);
                if let Some(waiting) = self.waiting.get_mut(&lane) {
                    waiting.remove(&(row.due_at, seq));
                    if waiting.is_empty() {
                        self.waiting.remove(&lane);
                    }
                }
                self.due.remove(&(row.due_at, seq));
                if let Some(deadline) = row.deadline_at {
                    self.deadlines.remove(&(deadline, seq));
                }
            }
            stored::RUNNING => _ = self.running.remove(&(row.leased_until.unwrap_or_default(), seq)),
            stored::DEAD => {
                self.dead.remove(&(message.function_id, seq));
                self.died.remove(&(row.ended_at.unwrap_or_default(), seq));
            }
            _ => _ = self.finished.remove(&(row.ended_at.unwrap_or_default(), seq)),
        }
    }

    /// The lanes whose first message is due.
    pub(super) fn lanes(&self, now: i64) -> impl Iterator<Item = Lane> {
        self.waiting.iter().filter_map(move |(&(priority, function_id), waiting)| {
            let &(due_millis, _) = waiting.first()?;
            (due_millis <= now).then_some(Lane { priority, function_id, due_millis })
        })
    }

    /// The due messages of a lane in their order.
    pub(super) fn due_in(
        &self,
        priority: Priority,
        function: FunctionId,
        now: i64,
    ) -> impl Iterator<Item = i64> {
        let waiting = self.waiting.get(&(priority, function));
        waiting.into_iter().flat_map(move |waiting| waiting.range(..=(now, i64::MAX)).map(|(_, seq)| *seq))
    }

    /// What waits of each function, in lanes: (function, due now, due later, since when the first is due).
    pub(super) fn depths(&self, now: i64) -> impl Iterator<Item = (FunctionId, u64, u64, Option<i64>)> {
        self.waiting.iter().map(move |((_, function), waiting)| {
            let queued = waiting.range(..=(now, i64::MAX)).count();
            let oldest = waiting.first().map(|(due, _)| *due).filter(|due| *due <= now);
            (*function, queued as u64, (waiting.len() - queued) as u64, oldest)
        })
    }

    /// What runs, the first lease to end first.
    pub(super) fn running(&self) -> impl Iterator<Item = (i64, &Message)> {
        self.running.iter().filter_map(|(until, seq)| Some((*until, self.get(*seq)?)))
    }

    /// What waits and has a deadline, the first one first.
    pub(super) fn with_deadline(&self) -> impl Iterator<Item = (i64, &Message)> {
        self.deadlines.iter().filter_map(|(deadline, seq)| Some((*deadline, self.get(*seq)?)))
    }

    /// Dead messages of a function, oldest first.
    pub(super) fn dead_of(&self, function: FunctionId) -> impl Iterator<Item = i64> {
        self.dead.range((function, i64::MIN)..=(function, i64::MAX)).map(|(_, seq)| *seq)
    }

    /// The functions of dead messages, once for each message.
    pub(super) fn dead_functions(&self) -> impl Iterator<Item = FunctionId> {
        self.dead.iter().map(|(function, _)| *function)
    }

    pub(super) fn died_until(&self, until: i64) -> impl Iterator<Item = i64> {
        self.died.range(..=(until, i64::MAX)).map(|(_, seq)| *seq)
    }

    pub(super) fn finished_until(&self, until: i64) -> impl Iterator<Item = i64> {
        self.finished.range(..=(until, i64::MAX)).map(|(_, seq)| *seq)
    }

    pub(super) fn first_due(&self) -> Option<i64> {
        self.due.first().map(|(due, _)| *due)
    }

    /// When the first message is due that is not yet.
    pub(super) fn next_due(&self, now: i64) -> Option<i64> {
        self.due.range((now.saturating_add(1), i64::MIN)..).next().map(|(due, _)| *due)
    }

    pub(super) fn first_lease_end(&self) -> Option<i64> {
        self.running.first().map(|(until, _)| *until)
    }

    pub(super) fn first_deadline(&self) -> Option<i64> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }
}
