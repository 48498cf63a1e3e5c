//! The messages that a node has: which, since when from whom, and how they ended. Pure bookkeeping, no I/O.
//!
//! A message is held until its end is told to whoever gave it, so that its lease is renewed for as long. It goes back
//! to its own source while that is tapped, else to any: balancers that share one queue are all right for it. One that
//! has a queue of its own says that the lease is lost; such an end is kept until its own source is back, or until
//! nobody can have use for it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use kiln_shared::ids::{CallId, FunctionId};
use kiln_shared::queue::{Finished, KeptAnswer, Outcome, Receipt, Reserved, Settled};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::budget;

/// As many bytes of answers are told together, and what the last of them has more. Less than what the queue takes at
/// once, although they grow on the way there: JSON writes a control character in six bytes.
const ANSWERS_BYTES_MAX: usize = 4 << 20;

/// Names a source of work.
pub(super) type SourceName = Arc<str>;

/// How a message's run ended.
#[derive(Debug, Clone)]
pub(super) struct End {
    pub(super) outcome: Outcome,
    pub(super) answer: Option<KeptAnswer>,
}

#[derive(Debug)]
struct Message {
    receipt: Receipt,
    function_id: FunctionId,
    attempt: u32,
    source: SourceName,
    /// By this node's clock, counted from when the lease was asked for or came.
    leased_until: Instant,
    /// Other sources, which do not know the message.
    strangers: Vec<SourceName>,
    memory_mib: u64,
    payload_bytes: u64,
    stage: Stage,
    give_up: CancellationToken,
}

#[derive(Debug)]
enum Stage {
    Waiting,
    Running,
    Finished { end: End, at: Instant },
}

impl Message {
    fn finished(&self) -> Option<Finished> {
        let Stage::Finished { end: End { outcome, answer }, .. } = &self.stage else { return None };
        Some(Finished {
            receipt: self.receipt,
            function_id: self.function_id,
            attempt: self.attempt,
            outcome: outcome.clone(),
            answer: answer.clone(),
        })
    }
}

/// All that a node has.
#[derive(Debug, Default)]
pub(super) struct HeldMessages {
    messages: HashMap<CallId, Message>,
    /// Those whose end is to be told, in the order in which they ended.
    to_tell: VecDeque<CallId>,
    tapped: HashMap<SourceName, usize>,
    /// Questions for work that are under way.
    asking: usize,
}

impl HeldMessages {
    /// What the budget must know.
    pub(super) fn sum(&self) -> budget::Held {
        let mut sum = budget::Held { messages: self.messages.len(), ..budget::Held::default() };
        for message in self.messages.values() {
            if !matches!(message.stage, Stage::Finished { .. }) {
                *sum.unfinished.entry(message.function_id).or_default() += 1;
                sum.payload_bytes += message.payload_bytes;
            }
            match message.stage {
                Stage::Waiting => *sum.waiting.entry(message.function_id).or_default() += 1,
                Stage::Running => {
                    sum.running += 1;
                    sum.memory_mib += message.memory_mib;
                }
                Stage::Finished { .. } => {}
            }
        }
        sum
    }

    /// Takes a message in. Returns false if it is here already under an older lease, which has ended: its run goes on
    /// under the new one.
    pub(super) fn take(
        &mut self,
        message: &Reserved,
        source: SourceName,
        memory_mib: u64,
        leased_until: Instant,
        give_up: CancellationToken,
    ) -> bool {
        let Reserved { receipt, function_id, attempt, .. } = *message;
        if let Some(held) = self.messages.get_mut(&receipt.id) {
            (held.receipt, held.attempt, held.source) = (receipt, attempt, source);
            held.leased_until = leased_until;
            held.strangers.clear();
            return false;
        }
        let held = Message {
            receipt,
            function_id,
            attempt,
            source,
            leased_until,
            strangers: Vec::new(),
            memory_mib,
            payload_bytes: message.payload.len() as u64,
            stage: Stage::Waiting,
            give_up,
        };
        self.messages.insert(receipt.id, held);
        true
    }

    /// A message has its container. False if its lease has ended, so that somebody else may have it: it is not to run.
    pub(super) fn begins(&mut self, id: CallId, now: Instant) -> bool {
        let Some(message) = self.messages.get_mut(&id).filter(|message| now < message.leased_until) else {
            return false;
        };
        message.stage = Stage::Running;
        true
    }

    /// The lease of a message is longer.
    pub(super) fn renewed(&mut self, receipt: Receipt, leased_until: Instant) {
        if let Some(message) = self.messages.get_mut(&receipt.id).filter(|message| message.receipt == receipt)
        {
            message.leased_until = leased_until;
        }
    }

    /// A message has ended; that is to be told.
    pub(super) fn finished(&mut self, id: CallId, end: End, now: Instant) {
        if let Some(message) = self.messages.get_mut(&id) {
            message.stage = Stage::Finished { end, at: now };
            self.to_tell.push_back(id);
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

    /// How many sources are tapped.
    pub(super) fn tapped(&self) -> usize {
        self.tapped.len()
    }

    /// A question for work is asked, until [`Self::answered`].
    pub(super) fn asking(&mut self) {
        self.asking += 1;
    }

    /// What it was answered is taken in, or it is given up.
    pub(super) fn answered(&mut self) {
        self.asking -= 1;
    }

    fn is_for(&self, id: CallId, source: &SourceName) -> bool {
        let Some(message) = self.messages.get(&id) else { return false };
        message.source == *source
            || !self.tapped.contains_key(&message.source) && !message.strangers.contains(source)
    }

    /// Leases that this source is to renew.
    pub(super) fn to_renew(&self, source: &SourceName) -> Vec<Receipt> {
        let receipts = self.messages.values().map(|message| message.receipt);
        receipts.filter(|receipt| self.is_for(receipt.id, source)).collect()
    }

    /// A source says that the lease of a message is lost. If that is its own, and it has not begun, it never does.
    pub(super) fn lost(&mut self, receipt: Receipt, source: &SourceName) {
        let Some(message) = self.messages.get_mut(&receipt.id) else { return };
        if message.receipt != receipt {
            return;
        }
        if message.source == *source {
            message.give_up.cancel();
        } else {
            message.strangers.push(Arc::clone(source));
        }
    }

    /// Ends that are to be told to this source, at most `most`, and no more once their answers are long together. They are the caller's until [`Self::told`] or
    /// [`Self::untold`].
    pub(super) fn next_to_tell(&mut self, source: &SourceName, most: usize) -> Vec<Finished> {
        let (mut next, mut bytes) = (Vec::new(), 0);
        let mut kept = VecDeque::with_capacity(self.to_tell.len());
        while let Some(id) = self.to_tell.pop_front() {
            let is_next = next.len() < most && bytes < ANSWERS_BYTES_MAX && self.is_for(id, source);
            match self.messages.get(&id).filter(|_| is_next).and_then(Message::finished) {
                Some(finished) => {
                    bytes += finished.answer.as_ref().map_or(0, |answer| answer.body.len());
                    next.push(finished);
                }
                None => kept.push_back(id),
            }
        }
        self.to_tell = kept;
        next
    }

    /// What a source says to these ends. They are forgotten, but for those that the source cannot know: they came again
    /// under another lease meanwhile, or from another source.
    pub(super) fn told(&mut self, source: &SourceName, told: &[Finished], settled: &[Settled]) {
        for (finished, settled) in told.iter().zip(settled) {
            let id = finished.receipt.id;
            let Some(message) = self.messages.get_mut(&id) else { continue };
            let is_older = message.receipt != finished.receipt;
            let is_stranger = *settled == Settled::Lost && message.source != *source;
            if is_older || is_stranger {
                if is_stranger {
                    message.strangers.push(Arc::clone(source));
                }
                self.to_tell.push_back(id);
            } else {
                self.messages.remove(&id);
            }
        }
    }

    /// They could not be told.
    pub(super) fn untold(&mut self, finished: &[Finished]) {
        for finished in finished.iter().rev() {
            self.to_tell.push_front(finished.receipt.id);
        }
    }

    /// Forgets ends that no tapped source knows, so long after their messages ended: their leases have ended, too.
    pub(super) fn forget_strange(&mut self, now: Instant, after: Duration) {
        let Self { messages, to_tell, tapped, .. } = self;
        to_tell.retain(|id| {
            let is_over = messages.get(id).is_none_or(|message| {
                let is_old =
                    matches!(message.stage, Stage::Finished { at, .. } if now.duration_since(at) >= after);
                is_old && !message.strangers.is_empty() && !tapped.contains_key(&message.source)
            });
            if is_over {
                messages.remove(id);
            }
            !is_over
        });
    }

    /// No message that waits for a container is to begin.
    pub(super) fn give_up_waiting(&self) {
        for message in self.messages.values() {
            message.give_up.cancel();
        }
    }

    /// True if nothing is held, and nothing is on its way here.
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.asking == 0
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use jiff::Timestamp;
    use kiln_shared::ids::AppId;
    use kiln_shared::queue::{NewMessage, Retry};

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    fn message(attempt: u32) -> Reserved {
        let new = NewMessage::new(CallId::generate(), FunctionId::generate(), AppId::generate(), "");
        Reserved {
            receipt: Receipt { id: new.id, lease: 1 },
            function_id: new.function_id,
            app_id: new.app_id,
            priority: new.priority,
            attempt,
            retry: new.retry,
            created_at: Timestamp::UNIX_EPOCH,
            envelope: new.envelope,
            payload: Bytes::from_static(b"body"),
        }
    }

    /// The same message, given out once more.
    fn again(message: &Reserved) -> Reserved {
        let receipt = Receipt { lease: message.receipt.lease + 1, ..message.receipt };
        Reserved { receipt, attempt: message.attempt + 1, ..message.clone() }
    }

    fn done() -> End {
        End { outcome: Outcome::Done, answer: None }
    }

    fn source(name: &str) -> SourceName {
        Arc::from(name)
    }

    fn tapped(sources: &[&SourceName]) -> HeldMessages {
        let mut held = HeldMessages::default();
        for source in sources {
            held.tap(source);
        }
        held
    }

    fn take(held: &mut HeldMessages, message: &Reserved, source: &SourceName) -> CancellationToken {
        let give_up = CancellationToken::new();
        assert!(held.take(message, Arc::clone(source), 100, Instant::now() + LONG, give_up.clone()));
        give_up
    }

    fn receipts(finished: &[Finished]) -> Vec<Receipt> {
        finished.iter().map(|finished| finished.receipt).collect()
    }

    #[test]
    fn a_message_is_held_until_its_end_is_told() {
        let (a, one, now) = (source("a"), message(1), Instant::now());
        let mut held = tapped(&[&a]);
        take(&mut held, &one, &a);
        assert_eq!(held.sum().waiting, HashMap::from([(one.function_id, 1)]));
        assert!(held.begins(one.receipt.id, Instant::now()));
        let sum = held.sum();
        assert_eq!((sum.messages, sum.running, sum.memory_mib, sum.payload_bytes), (1, 1, 100, 4));
        assert!(sum.waiting.is_empty());
        held.finished(one.receipt.id, done(), now);
        assert_eq!(held.to_renew(&a), [one.receipt]);
        let telling = held.next_to_tell(&a, 9);
        assert!(held.next_to_tell(&a, 9).is_empty(), "one teller at a time");
        held.untold(&telling);
        let telling = held.next_to_tell(&a, 9);
        assert_eq!(receipts(&telling), [one.receipt]);
        held.told(&a, &telling, &[Settled::Done]);
        assert!(held.is_empty());
    }

    #[test]
    fn the_end_of_a_message_goes_to_its_own_source_while_that_is_tapped() {
        let (a, b, one) = (source("a"), source("b"), message(1));
        let mut held = tapped(&[&a, &b]);
        take(&mut held, &one, &a);
        held.finished(one.receipt.id, done(), Instant::now());
        assert!(held.next_to_tell(&b, 9).is_empty());
        assert!(held.to_renew(&b).is_empty());
        held.untap(&a);
        assert_eq!(held.to_renew(&b), [one.receipt]);
        assert_eq!(held.next_to_tell(&b, 9).len(), 1);
    }

    #[test]
    fn a_source_that_does_not_know_a_message_leaves_its_end_to_the_one_that_does() {
        let (a, b, one, now) = (source("a"), source("b"), message(1), Instant::now());
        let mut held = tapped(&[&b]);
        let give_up = take(&mut held, &one, &a);
        held.lost(one.receipt, &b);
        assert!(!give_up.is_cancelled() && held.to_renew(&b).is_empty());
        held.finished(one.receipt.id, done(), now);
        assert!(held.next_to_tell(&b, 9).is_empty());
        held.forget_strange(now, LONG);
        held.tap(&a);
        held.forget_strange(now + LONG, LONG);
        assert_eq!(held.next_to_tell(&a, 9).len(), 1);
    }

    #[test]
    fn an_end_that_nobody_knows_is_forgotten_at_last() {
        let (a, b, one, now) = (source("a"), source("b"), message(1), Instant::now());
        let mut held = tapped(&[&b]);
        take(&mut held, &one, &a);
        held.finished(one.receipt.id, done(), now);
        let telling = held.next_to_tell(&b, 9);
        held.told(&b, &telling, &[Settled::Lost]);
        held.forget_strange(now + LONG / 2, LONG);
        assert!(!held.is_empty() && held.next_to_tell(&b, 9).is_empty());
        held.forget_strange(now + LONG, LONG);
        assert!(held.is_empty());
    }

    #[test]
    fn a_message_that_comes_again_while_it_runs_ends_under_its_new_lease() {
        let (a, b) = (source("a"), source("b"));
        let one = message(1);
        let mut held = tapped(&[&a, &b]);
        take(&mut held, &one, &a);
        assert!(held.begins(one.receipt.id, Instant::now()));
        let other = again(&one);
        assert!(!held.take(&other, Arc::clone(&b), 100, Instant::now() + LONG, CancellationToken::new()));
        assert_eq!((held.to_renew(&a), held.to_renew(&b)), (Vec::new(), vec![other.receipt]));
        let failed = Outcome::Failed { error: "no".to_owned(), retry: Retry::ByPolicy };
        held.finished(one.receipt.id, End { outcome: failed, answer: None }, Instant::now());
        let told = held.next_to_tell(&b, 9).remove(0);
        assert_eq!((told.receipt, told.attempt), (other.receipt, other.attempt));
    }

    #[test]
    fn a_message_that_comes_again_while_its_end_is_told_is_told_again() {
        let (a, one) = (source("a"), message(1));
        let mut held = tapped(&[&a]);
        take(&mut held, &one, &a);
        held.finished(one.receipt.id, done(), Instant::now());
        let telling = held.next_to_tell(&a, 9);
        let other = again(&one);
        assert!(!held.take(&other, Arc::clone(&a), 100, Instant::now() + LONG, CancellationToken::new()));
        held.told(&a, &telling, &[Settled::Lost]);
        assert_eq!(receipts(&held.next_to_tell(&a, 9)), [other.receipt]);
    }

    #[test]
    fn a_lost_lease_gives_up_what_has_not_begun_unless_it_is_another_lease() {
        let (a, one) = (source("a"), message(1));
        let mut held = tapped(&[&a]);
        let give_up = take(&mut held, &one, &a);
        held.lost(Receipt { lease: 7, ..one.receipt }, &a);
        assert!(!give_up.is_cancelled());
        held.lost(one.receipt, &a);
        assert!(give_up.is_cancelled());
    }

    #[test]
    fn what_is_on_its_way_here_is_waited_for() {
        let mut held = HeldMessages::default();
        held.asking();
        assert!(!held.is_empty());
        held.answered();
        assert!(held.is_empty());
    }

    #[test]
    fn long_answers_are_told_a_few_at_a_time() {
        let (a, mut held) = (source("a"), HeldMessages::default());
        held.tap(&a);
        let body = Bytes::from(vec![0; ANSWERS_BYTES_MAX / 2]);
        let kept = KeptAnswer { status: 200, content_type: None, body, is_cut: false };
        for _ in 0..5 {
            let message = message(1);
            take(&mut held, &message, &a);
            let end = End { outcome: Outcome::Done, answer: Some(kept.clone()) };
            held.finished(message.receipt.id, end, Instant::now());
        }
        let mut next = || held.next_to_tell(&a, 9).len();
        assert_eq!([next(), next(), next(), next()], [2, 2, 1, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_whose_lease_has_ended_does_not_begin() {
        let (a, one, other) = (source("a"), message(1), message(1));
        let mut held = tapped(&[&a]);
        take(&mut held, &one, &a);
        take(&mut held, &other, &a);
        held.renewed(other.receipt, Instant::now() + 3 * LONG);
        let late = Instant::now() + LONG;
        assert!(!held.begins(one.receipt.id, late));
        assert!(held.begins(other.receipt.id, late));
    }
}
