//! From the agents' records to rows: batches, bounds, and an end that loses nothing.
//!
//! Owns the receiving end of [`kiln_shared::record::RecordSink`]. Works beside the calls: it wakes a few
//! times a second, not once per record, and when the store cannot keep up the sink drops.

use std::collections::HashMap;
use std::mem;
use std::time::Duration;

use kiln_shared::ids::CallId;
use kiln_shared::record::{LogChunk, Record};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::store::{Kept, Retention};
use crate::{Catalog, StoreError};

/// Records in one transaction at most.
const BATCH_MAX: usize = 500;
/// A record is stored this long after the first of its batch at the latest.
const BATCH_WAIT: Duration = Duration::from_millis(50);
/// How often to look whether a batch is full meanwhile.
const BATCH_LOOK: Duration = Duration::from_millis(25);
/// How often a batch is tried that the store did not take.
const TRIES_MAX: u32 = 4;
/// Pause after a failed try; doubles with each.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Batches that may wait to be stored.
const BATCHES_WAITING_MAX: usize = 64;

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreOutcome {
    /// It is stored.
    Stored,
    /// It is not, and may be later or elsewhere.
    NotNow,
    /// The store works and does not take this batch; trying again is of no use.
    Refused,
}

/// Records that wait elsewhere until they are stored. Dropped, it tells its sender that they are not.
#[derive(Debug)]
pub struct WaitingBatch {
    records: Vec<Record>,
    outcome: oneshot::Sender<StoreOutcome>,
}

impl WaitingBatch {
    /// The records.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Tells the sender that the records are stored.
    pub fn stored(self) {
        self.tell(StoreOutcome::Stored);
    }

    /// Tells the sender that the records can never be stored.
    pub fn refused(self) {
        self.tell(StoreOutcome::Refused);
    }

    fn tell(self, outcome: StoreOutcome) {
        if self.outcome.send(outcome).is_err() {
            tracing::trace!(
                "the sender is gone and sends the batch to another balancer; it is stored once all the same"
            );
        }
    }
}

/// The way to the store for batches whose sender keeps them until they are stored. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StoredBatches {
    batches: mpsc::Sender<WaitingBatch>,
}

impl StoredBatches {
    /// The way to a store, and what comes out of it. [`RecordWriter::new`] makes the one to a catalog's database.
    pub fn bounded() -> (Self, mpsc::Receiver<WaitingBatch>) {
        let (batches, waiting) = mpsc::channel(BATCHES_WAITING_MAX);
        (Self { batches }, waiting)
    }

    /// Hands the records over and waits for what becomes of them.
    pub async fn store(&self, records: Vec<Record>) -> StoreOutcome {
        let (outcome, told) = oneshot::channel();
        if self.batches.send(WaitingBatch { records, outcome }).await.is_err() {
            return StoreOutcome::NotNow;
        }
        told.await.unwrap_or(StoreOutcome::NotNow)
    }
}

/// Stores what arrives, within bounds.
#[derive(Debug)]
pub struct RecordWriter {
    catalog: Catalog,
    retention: Retention,
    budget: LogBudget,
    batches: mpsc::Receiver<WaitingBatch>,
}

impl RecordWriter {
    /// A writer to the catalog's database, and the way to it for batches. Only one should run.
    pub fn new(catalog: Catalog, retention: Retention) -> (Self, StoredBatches) {
        let (sender, batches) = StoredBatches::bounded();
        let budget = LogBudget::new(retention.call_log_bytes_max);
        (Self { catalog, retention, budget, batches }, sender)
    }

    /// Stores records until all ways to it are gone, or until `stop`, when what was sent so far is still stored.
    pub async fn run(mut self, mut records: mpsc::Receiver<Record>, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let (mut records_come, mut batches_come, mut stopped) = (true, true, false);
        while records_come || batches_come {
            tokio::select! {
                // Cancel-safe: nothing is taken from a channel unless it completes.
                count = records.recv_many(&mut batch, BATCH_MAX), if records_come => if count == 0 {
                    records_come = false;
                    continue;
                },
                next = self.batches.recv(), if batches_come => {
                    match next {
                        Some(batch) => self.store_batch(batch).await,
                        None => batches_come = false,
                    }
                    continue;
                }
                () = stop.cancelled(), if !stopped => {
                    stopped = true;
                    records.close();
                    self.batches.close();
                    continue;
                }
            }
            collect(&mut records, batch.len(), &stop).await;
            while batch.len() < BATCH_MAX {
                let Ok(record) = records.try_recv() else { break };
                batch.push(record);
            }
            // At the end nobody waits for a store that does not answer.
            let tries_max = if records.is_closed() { 1 } else { TRIES_MAX };
            self.store(&mut batch, tries_max).await;
        }
    }

    /// Stores a batch whose sender has it still, and says what became of it: by the end of its channel, if the store is
    /// away.
    async fn store_batch(&mut self, mut batch: WaitingBatch) {
        if batch.outcome.is_closed() {
            // Its sender waits no more and sends it again, here or elsewhere.
            return;
        }
        self.budget.admit_all(&mut batch.records);
        let Err(error) = self.append(&batch.records).await else { return batch.stored() };
        // It comes again, whole.
        self.budget.take_back(&batch.records);
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            records = batch.records.len(),
            "call records are not stored yet; their agent keeps them"
        );
        if !matches!(error, StoreError::Unreachable(_)) {
            batch.refused();
        }
    }

    /// Stores and empties a batch, or drops and counts it after some tries.
    async fn store(&mut self, batch: &mut Vec<Record>, tries_max: u32) {
        self.budget.admit_all(batch);
        let mut pause = RETRY_PAUSE;
        for attempt in 1..=tries_max {
            match self.append(batch).await {
                Ok(()) => break,
                Err(error) if attempt == tries_max => {
                    metrics::counter!("kiln_records_dropped_total").increment(batch.len() as u64);
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        records = batch.len(),
                        "call records and logs dropped: the store does not take them"
                    );
                }
                Err(_) => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
            }
        }
        batch.clear();
    }

    async fn append(&self, batch: &[Record]) -> Result<(), StoreError> {
        let store = self.catalog.store();
        let kept = store.append(batch).await?;
        if exceeds(kept, self.retention)
            && let Err(error) = store.trim(self.retention).await
        {
            // The batch is stored; the next one tries again.
            tracing::warn!(error = &error as &dyn std::error::Error, "old call records could not be removed");
        }
        Ok(())
    }
}

/// Waits until a batch is there or its time is over, with `taken` records at hand. The channel holds what
/// arrives, so that senders need not wake this task for each record.
async fn collect(records: &mut mpsc::Receiver<Record>, taken: usize, stop: &CancellationToken) {
    for _ in 0..BATCH_WAIT.as_millis() / BATCH_LOOK.as_millis() {
        if taken + records.len() >= BATCH_MAX || records.is_closed() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(BATCH_LOOK) => {}
            () = stop.cancelled() => records.close(),
        }
    }
}

/// True a tenth above the bounds, so that removing is rare and each time worth it.
fn exceeds(kept: Kept, retention: Retention) -> bool {
    let over = |count: u64, max: u64| count > max + max / 10;
    over(kept.calls, retention.calls_max) || over(kept.log_bytes, retention.log_bytes_max)
}

/// How much of each call's log was let through. Agents bound logs already; this holds if one does not.
///
/// Remembers the calls of late, at least the last [`LogBudget::CALLS`] that wrote.
#[derive(Debug)]
struct LogBudget {
    call_bytes_max: usize,
    recent: HashMap<CallId, usize>,
    older: HashMap<CallId, usize>,
}

impl LogBudget {
    const CALLS: usize = 4096;

    fn new(call_bytes_max: usize) -> Self {
        Self { call_bytes_max, recent: HashMap::new(), older: HashMap::new() }
    }

    /// Cuts the logs among the records to what their calls may still write.
    fn admit_all(&mut self, records: &mut Vec<Record>) {
        records.retain_mut(|record| match record {
            Record::Call(_) => true,
            Record::Log(chunk) => self.admit(chunk),
        });
    }

    /// Forgets that these records, which were admitted, were let through.
    fn take_back(&mut self, records: &[Record]) {
        for record in records {
            let Record::Log(LogChunk { call_id, text, .. }) = record else { continue };
            let Some(passed) = self.recent.get_mut(call_id).or_else(|| self.older.get_mut(call_id)) else {
                continue;
            };
            *passed = passed.saturating_sub(text.len());
        }
    }

    /// Cuts the piece to what its call may still write; false if that is nothing.
    fn admit(&mut self, chunk: &mut LogChunk) -> bool {
        let passed = match self.recent.get(&chunk.call_id) {
            Some(bytes) => *bytes,
            None => self.older.remove(&chunk.call_id).unwrap_or(0),
        };
        let end = chunk.text.floor_char_boundary(self.call_bytes_max.saturating_sub(passed));
        chunk.text.truncate(end);
        if self.recent.len() >= Self::CALLS && !self.recent.contains_key(&chunk.call_id) {
            self.older = mem::take(&mut self.recent);
        }
        self.recent.insert(chunk.call_id, passed + chunk.text.len());
        !chunk.text.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use kiln_shared::ids::{AppId, FunctionId};

    use super::*;

    fn chunk(call_id: CallId, text: &str) -> LogChunk {
        LogChunk {
            call_id,
            app_id: AppId::generate(),
            function_id: FunctionId::generate(),
            part: 0,
            text: text.to_owned(),
        }
    }

    #[test]
    fn a_log_is_cut_at_its_bound_between_characters() {
        let mut budget = LogBudget::new(6);
        let call = CallId::generate();
        let mut pieces = ["abcd", "éé", "x"].map(|text| chunk(call, text));
        let admitted: Vec<bool> = pieces.iter_mut().map(|piece| budget.admit(piece)).collect();
        assert_eq!(admitted, [true, true, false]);
        assert_eq!(pieces.map(|piece| piece.text), ["abcd", "é", ""]);
        assert!(budget.admit(&mut chunk(CallId::generate(), "other")));
    }

    #[test]
    fn the_budget_remembers_a_bounded_number_of_calls() {
        let mut budget = LogBudget::new(4);
        let first = CallId::generate();
        assert!(budget.admit(&mut chunk(first, "abcd")));
        for _ in 0..LogBudget::CALLS - 1 {
            assert!(budget.admit(&mut chunk(CallId::generate(), "x")));
        }
        assert!(!budget.admit(&mut chunk(first, "more")));
        for _ in 0..3 * LogBudget::CALLS {
            assert!(budget.admit(&mut chunk(CallId::generate(), "x")));
        }
        assert!(budget.recent.len() + budget.older.len() <= 2 * LogBudget::CALLS);
    }
}
