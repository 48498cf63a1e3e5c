//! The messages that a node has: which, since when from whom, and how they ended. Pure bookkeeping, no I/O.
//!
//! A message is held until its end is told to whoever gave it, so that its lease is renewed for as long. It goes back
//! to its own source while that is tapped, else to any: balancers that share one queue are all right for it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use kiln_shared::ids::CallId;
use kiln_shared::queue::{Finished, Receipt};
use tokio_util::sync::CancellationToken;

use super::budget;

/// Names a source of work.
pub(super) type SourceName = Arc<str>;

#[derive(Debug)]
struct Message {
    receipt: Receipt,
    source: SourceName,
    memory_mib: u64,
    stage: Stage,
    give_up: CancellationToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    Running,
    Finished,
}

/// All that a node has.
#[derive(Debug, Default)]
pub(super) struct HeldMessages {
    messages: HashMap<CallId, Message>,
    finished: VecDeque<Finished>,
    tapped: HashMap<SourceName, usize>,
}

impl HeldMessages {
    /// What the budget must know.
    pub(super) fn sum(&self) -> budget::Held {
        let mut sum = budget::Held { messages: self.messages.len(), ..budget::Held::default() };
        for message in self.messages.values() {
            match message.stage {
                Stage::Waiting => sum.waiting += 1,
                Stage::Running => sum.memory_mib += message.memory_mib,
                Stage::Finished => {}
            }
        }
        sum
    }

    /// Takes a message in. Returns false, and changes nothing, if it is here under another lease: its run goes on, and
    /// whoever has the older lease learns that it is lost.
    pub(super) fn take(
        &mut self,
        receipt: Receipt,
        source: SourceName,
        memory_mib: u64,
        give_up: CancellationToken,
    ) -> bool {
        if self.messages.contains_key(&receipt.id) {
            return false;
        }
        let message = Message { receipt, source, memory_mib, stage: Stage::Waiting, give_up };
        self.messages.insert(receipt.id, message);
        true
    }

    /// A message has its container.
    pub(super) fn begun(&mut self, id: CallId) {
        if let Some(message) = self.messages.get_mut(&id) {
            message.stage = Stage::Running;
        }
    }

    /// A message has ended; that is to be told.
    pub(super) fn finished(&mut self, finished: Finished) {
        if let Some(message) = self.messages.get_mut(&finished.receipt.id) {
            message.stage = Stage::Finished;
            self.finished.push_back(finished);
        }
    }

    /// A source is tapped from now on.
    pub(super) fn tap(&mut self, source: &SourceName) {
        *self.tapped.entry(Arc::clone(source)).or_default() += 1;
    }

    /// One tap of a source is closed.
    pub(super) fn untap(&mut self, source: &SourceName) {
        if let Some(taps) = self.tapped.get_mut(source) {
            *taps -= 1;
            if *taps == 0 {
                self.tapped.remove(source);
            }
        }
    }

    fn is_for(&self, id: CallId, source: &SourceName) -> bool {
        let Some(message) = self.messages.get(&id) else { return false };
        message.source == *source || !self.tapped.contains_key(&message.source)
    }

    /// Leases that this source is to renew.
    pub(super) fn to_renew(&self, source: &SourceName) -> Vec<Receipt> {
        let receipts = self.messages.values().map(|message| message.receipt);
        receipts.filter(|receipt| self.is_for(receipt.id, source)).collect()
    }

    /// The lease of a message is lost: if it has not begun, it never does.
    pub(super) fn lost(&mut self, receipt: Receipt) {
        if let Some(message) = self.messages.get(&receipt.id)
            && message.receipt == receipt
        {
            message.give_up.cancel();
        }
    }

    /// Ends that are to be told to this source, at most `most`. They are the caller's until [`Self::told`] or
    /// [`Self::untold`].
    pub(super) fn next_to_tell(&mut self, source: &SourceName, most: usize) -> Vec<Finished> {
        let mut told = Vec::new();
        let mut kept = VecDeque::with_capacity(self.finished.len());
        while let Some(finished) = self.finished.pop_front() {
            if told.len() < most && self.is_for(finished.receipt.id, source) {
                told.push(finished);
            } else {
                kept.push_back(finished);
            }
        }
        self.finished = kept;
        told
    }

    /// The end of these messages is known where they came from.
    pub(super) fn told(&mut self, receipts: impl IntoIterator<Item = Receipt>) {
        for receipt in receipts {
            self.messages.remove(&receipt.id);
        }
    }

    /// It could not be told.
    pub(super) fn untold(&mut self, finished: Vec<Finished>) {
        for finished in finished.into_iter().rev() {
            self.finished.push_front(finished);
        }
    }

    /// No message that waits for a container is to begin.
    pub(super) fn give_up_waiting(&self) {
        for message in self.messages.values() {
            message.give_up.cancel();
        }
    }

    /// True if nothing is held.
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use kiln_shared::ids::FunctionId;
    use kiln_shared::queue::Outcome;

    use super::*;

    fn receipt() -> Receipt {
        Receipt { id: CallId::generate(), lease: 1 }
    }

    fn end(receipt: Receipt) -> Finished {
        Finished {
            receipt,
            function_id: FunctionId::generate(),
            attempt: 1,
            is_last: false,
            outcome: Outcome::Done,
            answer: None,
        }
    }

    fn source(name: &str) -> SourceName {
        Arc::from(name)
    }

    #[test]
    fn a_message_is_held_until_its_end_is_told() {
        let (a, one) = (source("a"), receipt());
        let mut held = HeldMessages::default();
        held.tap(&a);
        assert!(held.take(one, Arc::clone(&a), 100, CancellationToken::new()));
        assert!(!held.take(one, Arc::clone(&a), 100, CancellationToken::new()));
        assert_eq!(held.sum(), budget::Held { messages: 1, waiting: 1, memory_mib: 0 });
        held.begun(one.id);
        assert_eq!(held.sum(), budget::Held { messages: 1, waiting: 0, memory_mib: 100 });
        held.finished(end(one));
        assert_eq!(held.to_renew(&a), [one]);
        let telling = held.next_to_tell(&a, 9);
        assert!(held.next_to_tell(&a, 9).is_empty(), "one teller at a time");
        held.untold(telling);
        assert_eq!(held.next_to_tell(&a, 9)[0].receipt, one);
        held.told([one]);
        assert!(held.is_empty());
    }

    #[test]
    fn the_end_of_a_message_goes_to_its_own_source_while_that_is_tapped() {
        let (a, b, one) = (source("a"), source("b"), receipt());
        let mut held = HeldMessages::default();
        held.tap(&a);
        held.tap(&b);
        held.take(one, Arc::clone(&a), 0, CancellationToken::new());
        held.finished(end(one));
        assert!(held.next_to_tell(&b, 9).is_empty());
        assert!(held.to_renew(&b).is_empty());
        held.untap(&a);
        assert_eq!(held.to_renew(&b), [one]);
        assert_eq!(held.next_to_tell(&b, 9).len(), 1);
    }

    #[test]
    fn a_lost_lease_gives_up_what_has_not_begun_unless_it_is_another_lease() {
        let (a, one, give_up) = (source("a"), receipt(), CancellationToken::new());
        let mut held = HeldMessages::default();
        held.take(one, a, 0, give_up.clone());
        held.lost(Receipt { lease: 7, ..one });
        assert!(!give_up.is_cancelled());
        held.lost(one);
        assert!(give_up.is_cancelled());
    }
}
