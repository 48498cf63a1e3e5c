//! Call records that wait for a balancer to store them.
//!
//! At least once: a batch is forgotten when a balancer has stored it, and goes to the next balancer if it has not. Only
//! one that balancers refuse again and again is dropped. One task makes the batches; what it does not take yet waits in
//! the sink's own bounded channel.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_shared::link::message::RecordBatch;
use kiln_shared::record::Record;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Records in one batch at most.
const BATCH_MAX: usize = 1000;
/// Bytes of text in one batch after which it takes no more. As JSON a byte becomes six at most, so that with one more piece
/// it is still far below what a balancer reads (`RECORDS_BYTES_MAX`).
const BATCH_BYTES_MAX: usize = 4 << 20;
/// How often a batch is refused by balancers whose store works before it is dropped.
const REFUSALS_MAX: u32 = 3;
/// How long a batch is gathered after its first record.
const GATHER: Duration = Duration::from_millis(25);
/// Most batches that are made and not stored yet; then no more are made.
const BATCHES_MAX: usize = 16;

#[derive(Debug)]
struct Packed {
    batch: RecordBatch,
    /// How often it was refused.
    refusals: u32,
}

#[derive(Debug, Default)]
struct Batches {
    ready: VecDeque<Packed>,
    /// How many are with balancers.
    handed: usize,
}

#[derive(Debug, Default)]
struct Shared {
    batches: Mutex<Batches>,
    /// A batch is ready.
    ready: Notify,
    /// A batch was stored, or dropped.
    stored: Notify,
}

/// The records of one agent. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Outbox {
    shared: Arc<Shared>,
    /// How many records wait to be made a batch?
    waiting: mpsc::Sender<oneshot::Sender<usize>>,
}

impl Outbox {
    /// Makes batches of what arrives in `records` until `stop`.
    pub fn start(records: mpsc::Receiver<Record>, tasks: &TaskTracker, stop: &CancellationToken) -> Self {
        let shared = Arc::new(Shared::default());
        let (waiting, questions) = mpsc::channel(1);
        // A batch of an earlier life must not be taken for one of this.
        let next_number = jiff::Timestamp::now().as_microsecond().unsigned_abs().max(1);
        let packer = Packer { shared: Arc::clone(&shared), records, questions, next_number };
        tasks.spawn(stop.clone().run_until_cancelled_owned(packer.run()));
        Self { shared, waiting }
    }

    /// Waits for a batch. It is the caller's until [`Batch::stored`]; dropped before, it is given to the next who asks.
    /// Dropping the future loses nothing.
    pub(super) async fn next(&self) -> Batch {
        loop {
            let ready = self.shared.ready.notified();
            {
                let mut batches = self.shared.batches();
                if let Some(packed) = batches.ready.pop_front() {
                    batches.handed += 1;
                    if !batches.ready.is_empty() {
                        self.shared.ready.notify_one();
                    }
                    return Batch { shared: Arc::clone(&self.shared), packed: Some(packed) };
                }
            }
            ready.await;
        }
    }

    /// Waits until every record is stored.
    pub async fn emptied(&self) {
        loop {
            let (answer, answered) = oneshot::channel();
            let asked = self.waiting.send(answer).await.is_ok();
            // Without the packer nothing waits to be packed.
            let waiting = if asked { answered.await.unwrap_or(0) } else { 0 };
            let stored = self.shared.stored.notified();
            {
                let batches = self.shared.batches();
                if waiting + batches.ready.len() + batches.handed == 0 {
                    return;
                }
            }
            // Whatever waits becomes a batch that is stored; the time is for one that was stored just now.
            drop(tokio::time::timeout(GATHER, stored).await);
        }
    }
}

/// A batch on its way to a balancer.
#[derive(Debug)]
pub(super) struct Batch {
    shared: Arc<Shared>,
    /// `None` once it may be forgotten.
    packed: Option<Packed>,
}

impl Batch {
    pub(super) fn records(&self) -> &RecordBatch {
        &self.packed.as_ref().expect("it is there until it is stored or refused").batch
    }

    /// It is stored and may be forgotten.
    pub(super) fn stored(mut self) {
        self.packed = None;
    }

    /// A balancer cannot take it, though its store works. Another one may; when enough have said so it is dropped and
    /// counted, since all others wait behind it.
    pub(super) fn refused(mut self) {
        let Some(packed) = &mut self.packed else { return };
        packed.refusals += 1;
        if packed.refusals < REFUSALS_MAX {
            return;
        }
        let records = packed.batch.records.len();
        tracing::error!(records, "call records and logs dropped: balancers refuse them");
        metrics::counter!("kiln_records_dropped_total").increment(records as u64);
        self.packed = None;
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let mut batches = self.shared.batches();
        batches.handed -= 1;
        match self.packed.take() {
            Some(packed) => {
                batches.ready.push_front(packed);
                self.shared.ready.notify_one();
            }
            None => self.shared.stored.notify_waiters(),
        }
    }
}

impl Shared {
    fn batches(&self) -> MutexGuard<'_, Batches> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_room(&self) -> bool {
        let batches = self.batches();
        batches.ready.len() + batches.handed < BATCHES_MAX
    }
}

/// Makes batches.
#[derive(Debug)]
struct Packer {
    shared: Arc<Shared>,
    records: mpsc::Receiver<Record>,
    questions: mpsc::Receiver<oneshot::Sender<usize>>,
    next_number: u64,
}

impl Packer {
    async fn run(mut self) {
        loop {
            let stored = self.shared.stored.notified();
            let has_room = self.shared.has_room();
            // All are cancel-safe: nothing is taken from a channel unless the branch is the one that runs.
            let first = tokio::select! {
                Some(question) = self.questions.recv() => {
                    if question.send(self.records.len()).is_err() {
                        tracing::trace!("nobody waits for the number of records any more");
                    }
                    continue;
                }
                () = stored, if !has_room => continue,
                first = self.records.recv(), if has_room => match first {
                    Some(first) => first,
                    None => return,
                },
            };
            tokio::time::sleep(GATHER).await;
            let records = self.gather(first);
            let packed = Packed { batch: RecordBatch { number: self.next_number, records }, refusals: 0 };
            self.next_number += 1;
            self.shared.batches().ready.push_back(packed);
            self.shared.ready.notify_one();
        }
    }

    /// A record and those that wait behind it, as many as fit.
    fn gather(&mut self, first: Record) -> Vec<Record> {
        let mut bytes = text_bytes(&first);
        let mut gathered = vec![first];
        while gathered.len() < BATCH_MAX
            && bytes < BATCH_BYTES_MAX
            && let Ok(record) = self.records.try_recv()
        {
            bytes += text_bytes(&record);
            gathered.push(record);
        }
        gathered
    }
}

/// Bytes of a record's text, which has no bound of its own here.
fn text_bytes(record: &Record) -> usize {
    match record {
        Record::Log(chunk) => chunk.text.len(),
        Record::Call(call) => call.error.as_ref().map_or(0, String::len),
    }
}

#[cfg(test)]
mod tests {
    use kiln_shared::ids::{AppId, CallId, FunctionId};
    use kiln_shared::record::{LogChunk, RecordSink};

    use super::*;

    fn record(text: &str) -> Record {
        Record::Log(LogChunk {
            call_id: CallId::generate(),
            app_id: AppId::generate(),
            function_id: FunctionId::generate(),
            part: 0,
            text: text.to_owned(),
        })
    }

    fn texts(batch: &Batch) -> Vec<&str> {
        let text = |record| match record {
            &Record::Log(LogChunk { ref text, .. }) => &**text,
            Record::Call(_) => "a call",
        };
        batch.records().records.iter().map(text).collect()
    }

    fn outbox() -> (RecordSink, Outbox) {
        let (sink, records) = RecordSink::bounded(64);
        (sink, Outbox::start(records, &TaskTracker::new(), &CancellationToken::new()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_given_once_and_forgotten_when_it_is_stored() {
        let (sink, outbox) = outbox();
        sink.send(record("a"));
        sink.send(record("b"));
        let first = outbox.next().await;
        assert_eq!(texts(&first), ["a", "b"]);
        first.stored();
        let nothing = tokio::time::timeout(Duration::from_mins(1), outbox.next()).await;
        assert!(nothing.is_err(), "{nothing:?}");
        outbox.emptied().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_that_was_not_stored_goes_to_the_next_who_asks() {
        let (sink, outbox) = outbox();
        sink.send(record("a"));
        let lost = outbox.next().await;
        // One who waits already is told.
        let (next, ()) = tokio::join!(outbox.next(), async { drop(lost) });
        assert_eq!(texts(&next), ["a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_goes_away_while_a_batch_is_gathered_loses_nothing() {
        let (sink, outbox) = outbox();
        sink.send(record("a"));
        assert!(tokio::time::timeout(GATHER / 2, outbox.next()).await.is_err());
        assert_eq!(texts(&outbox.next().await), ["a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn batches_that_are_not_stored_are_bounded() {
        let (sink, outbox) = outbox();
        let mut handed = Vec::new();
        for _ in 0..BATCHES_MAX {
            sink.send(record("x"));
            handed.push(outbox.next().await);
        }
        sink.send(record("y"));
        let nothing = tokio::time::timeout(Duration::from_mins(1), outbox.next()).await;
        assert!(nothing.is_err(), "{nothing:?}");
        handed.pop().expect("one").stored();
        assert_eq!(texts(&outbox.next().await), ["y"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_outbox_is_empty_when_everything_is_stored() {
        let (sink, outbox) = outbox();
        outbox.emptied().await;
        sink.send(record("a"));
        let full = tokio::time::timeout(Duration::from_mins(1), outbox.emptied()).await;
        assert!(full.is_err());
        let (batch, emptied) = (outbox.next().await, outbox.emptied());
        tokio::join!(emptied, async { batch.stored() });
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_holds_a_bounded_number_of_bytes() {
        let (sink, outbox) = outbox();
        let piece = "x".repeat(BATCH_BYTES_MAX / 4);
        for _ in 0..9 {
            sink.send(record(&piece));
        }
        for expected in [4, 4, 1] {
            let batch = outbox.next().await;
            assert_eq!(batch.records().records.len(), expected);
            batch.stored();
        }
        outbox.emptied().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_that_is_refused_again_and_again_is_dropped() {
        let (sink, outbox) = outbox();
        sink.send(record("bad"));
        for _ in 0..REFUSALS_MAX {
            let bad = outbox.next().await;
            assert_eq!(texts(&bad), ["bad"]);
            sink.send(record("good"));
            bad.refused();
        }
        assert_eq!(texts(&outbox.next().await), ["good"; REFUSALS_MAX as usize]);
    }
}
