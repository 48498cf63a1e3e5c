//! What becomes of messages: kept, done, tried again, dead, cancelled, revived, forgotten.

use std::time::Duration;

use bytes::Bytes;
use kiln_shared::ids::CallId;
use kiln_shared::queue::{
    Cancelled, Held, Next, Outcome, Purge, Receipt, Redrive, Settled, Settlement, abandoned, expired, failed,
};

use super::Machine;
use super::store::Message;
use crate::engine::{Effect, PURGED_MAX, millis, stored};

/// Most leases, and most deadlines, that one sweep ends.
const SWEPT_MAX: usize = 500;

impl Machine {
    /// Has leases end this long from now.
    pub(super) fn renew(&mut self, receipts: &[Receipt], lease: Duration) -> Vec<Held> {
        let until = self.latest_millis + millis(lease);
        let renew = |receipt: &Receipt| {
            let Some(message) = self.held(receipt).filter(|message| message.row.state == stored::RUNNING)
            else {
                return Held::Lost;
            };
            let seq = message.row.seq;
            self.store.change(seq, |message| message.row.leased_until = Some(until));
            Held::Held
        };
        receipts.iter().map(renew).collect()
    }

    /// Ends workers' work on messages.
    pub(super) fn settle(&mut self, settlements: &[Settlement], seed: u64) -> (Vec<Settled>, Effect) {
        let mut effect = Effect::Nothing;
        let mut chance = Chance(seed);
        let settled = settlements.iter().map(|settlement| {
            let Some(message) = self.held(&settlement.receipt) else { return Settled::Lost };
            let (seq, now) = (message.row.seq, self.latest_millis);
            match (&settlement.outcome, message.row.state) {
                (Outcome::Done, stored::RUNNING) => {
                    self.store.change(seq, |message| end(message, stored::DONE, now));
                    Settled::Done
                }
                (Outcome::Done, stored::DONE) => Settled::Done,
                (Outcome::Failed { error, retry }, stored::RUNNING) => {
                    let next = failed(&message.row.tries(), error, *retry, now, chance.next());
                    self.follow(seq, next, &mut effect)
                }
                (Outcome::Unstarted, stored::RUNNING) => {
                    effect = effect.and(Effect::of_waiting(message.row.due_at, now));
                    self.store.change(seq, |message| {
                        message.row.state = stored::WAITING;
                        message.row.attempts -= 1;
                    });
                    Settled::Again { after: Duration::ZERO }
                }
                _ => Settled::Lost,
            }
        });
        (settled.collect(), effect)
    }

    /// Ends what ended by itself: leases that nobody renewed, and waiting messages whose deadline passed.
    pub(super) fn sweep(&mut self) -> Effect {
        let now = self.latest_millis;
        let mut effect = Effect::Nothing;
        let ended = self.store.running().take_while(|(until, _)| *until <= now).take(SWEPT_MAX);
        let ended: Vec<(i64, Next)> = ended
            .map(|(_, message)| {
                let worker = message.row.worker.as_deref().unwrap_or("its worker");
                (message.row.seq, abandoned(&message.row.tries(), worker, now))
            })
            .collect();
        self.abandoned += ended.len() as u64;
        for (seq, next) in ended {
            self.follow(seq, next, &mut effect);
        }
        let late = self.store.with_deadline().take_while(|(deadline, _)| *deadline <= now).take(SWEPT_MAX);
        let late: Vec<(i64, String)> =
            late.map(|(_, message)| (message.row.seq, expired(message.row.last_error.as_deref()))).collect();
        for (seq, error) in late {
            self.store.change(seq, |message| bury(message, error, now));
        }
        effect
    }

    /// Puts dead messages back; how many.
    pub(super) fn redrive(&mut self, redrive: Redrive) -> u64 {
        let now = self.latest_millis;
        let seqs: Vec<i64> = match redrive {
            Redrive::Message(id) => {
                let message = self.store.by_id(id).filter(|message| message.row.state == stored::DEAD);
                message.into_iter().map(|message| message.row.seq).collect()
            }
            Redrive::Function { function_id, messages_max } => {
                self.store.dead_of(function_id).take(messages_max).collect()
            }
        };
        for seq in &seqs {
            self.store.change(*seq, |message| {
                let row = &mut message.row;
                row.state = stored::WAITING;
                row.due_at = now;
                row.attempts = 0;
                row.deadline_at = None;
                row.ended_at = None;
            });
        }
        seqs.len() as u64
    }

    /// Takes a waiting message out.
    pub(super) fn cancel(&mut self, id: CallId) -> Cancelled {
        let Some(message) = self.store.by_id(id) else { return Cancelled::Unknown };
        match message.row.state {
            stored::WAITING => {
                let (seq, now) = (message.row.seq, self.latest_millis);
                self.store.change(seq, |message| end(message, stored::CANCELLED, now));
                Cancelled::Cancelled
            }
            stored::RUNNING => Cancelled::Running,
            _ => Cancelled::Ended,
        }
    }

    /// Forgets ended messages; how many.
    pub(super) fn purge(&mut self, purge: Purge) -> u64 {
        let ended_until = |age| self.latest_millis - millis(age);
        let most = PURGED_MAX as usize;
        let seqs: Vec<i64> = match purge {
            Purge::Finished(age) => self.store.finished_until(ended_until(age)).take(most).collect(),
            Purge::Dead(age) => self.store.died_until(ended_until(age)).take(most).collect(),
        };
        for seq in &seqs {
            self.store.remove(*seq);
        }
        seqs.len() as u64
    }

    /// The receipt's message, if it is in that lease or has ended in it.
    fn held(&self, receipt: &Receipt) -> Option<&Message> {
        self.store.by_id(receipt.id).filter(|message| message.row.is_of(receipt))
    }

    /// After a failure.
    fn follow(&mut self, seq: i64, next: Next, effect: &mut Effect) -> Settled {
        let now = self.latest_millis;
        match next {
            Next::Again { after, error } => {
                let due_at = now + millis(after);
                *effect = effect.and(Effect::of_waiting(due_at, now));
                self.store.change(seq, |message| {
                    message.row.state = stored::WAITING;
                    message.row.due_at = due_at;
                    message.row.last_error = Some(error);
                });
                Settled::Again { after }
            }
            Next::Dead { error } => {
                self.store.change(seq, |message| bury(message, error, now));
                Settled::Dead
            }
        }
    }
}

/// Ends a message and forgets what it carries.
fn end(message: &mut Message, state: i64, now: i64) {
    message.row.state = state;
    message.row.ended_at = Some(now);
    message.envelope = String::new();
    message.payload = Bytes::new();
}

fn bury(message: &mut Message, error: String, now: i64) {
    message.row.state = stored::DEAD;
    message.row.ended_at = Some(now);
    message.row.last_error = Some(error);
}

/// Numbers from a seed (`SplitMix64`, Steele and others, OOPSLA 2014): the same for everybody.
struct Chance(u64);

impl Chance {
    /// At least 0 and below 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}
