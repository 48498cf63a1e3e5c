//! Call records that wait for a balancer to fetch them.
//!
//! At least once: a batch is forgotten when its number comes back, and given again if nobody has said so for a while.

use std::collections::VecDeque;
use std::time::Duration;

use kiln_shared::link::RecordBatch;
use kiln_shared::record::Record;
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;

/// Records in one batch at most.
const BATCH_MAX: usize = 1000;
/// How long a batch is gathered after its first record.
const GATHER: Duration = Duration::from_millis(25);
/// A batch that nobody acknowledged for this long is given to the next who asks.
const LEASE: Duration = Duration::from_secs(15);
/// Most batches that are handed out at the same time; then no more are until one was acknowledged or its lease ended.
const OUTSTANDING_MAX: usize = 16;

#[derive(Debug)]
struct Outstanding {
    batch: RecordBatch,
    handed_at: Instant,
}

#[derive(Debug)]
struct State {
    records: mpsc::Receiver<Record>,
    gathered: Vec<Record>,
    outstanding: VecDeque<Outstanding>,
    next_number: u64,
}

/// The records of one agent.
#[derive(Debug)]
pub(super) struct Outbox {
    state: Mutex<State>,
}

impl Outbox {
    pub(super) fn new(records: mpsc::Receiver<Record>) -> Self {
        // An acknowledgement that was meant for an earlier life must not be taken for one of this.
        let next_number = jiff::Timestamp::now().as_microsecond().unsigned_abs().max(1);
        let state = State { records, gathered: Vec::new(), outstanding: VecDeque::new(), next_number };
        Self { state: Mutex::new(state) }
    }

    /// Forgets the batch of number `taken` and waits at most `wait` for the next one. Dropping the future loses no
    /// record.
    pub(super) async fn next(&self, taken: u64, wait: Duration) -> Option<RecordBatch> {
        let deadline = Instant::now() + wait;
        let mut state = tokio::time::timeout_at(deadline, self.state.lock()).await.ok()?;
        state.outstanding.retain(|outstanding| outstanding.batch.number != taken);
        if let Some(again) = state.again() {
            return Some(again);
        }
        let room = state.outstanding.len() < OUTSTANDING_MAX;
        if !room {
            return None;
        }
        if tokio::time::timeout_at(deadline, state.gather()).await.is_err() && state.gathered.is_empty() {
            return None;
        }
        state.hand()
    }

    /// Waits until every record was fetched and acknowledged.
    pub(super) async fn emptied(&self) {
        loop {
            {
                let state = self.state.lock().await;
                if state.outstanding.is_empty() && state.gathered.is_empty() && state.records.is_empty() {
                    return;
                }
            }
            tokio::time::sleep(GATHER).await;
        }
    }
}

impl State {
    fn again(&mut self) -> Option<RecordBatch> {
        let now = Instant::now();
        let outstanding = self.outstanding.iter_mut().find(|batch| batch.handed_at + LEASE <= now)?;
        outstanding.handed_at = now;
        Some(outstanding.batch.clone())
    }

    /// Cancel-safe: what was gathered stays.
    async fn gather(&mut self) {
        if self.gathered.is_empty() && self.records.recv_many(&mut self.gathered, BATCH_MAX).await == 0 {
            // The agent is closed and all of its records are fetched.
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(GATHER).await;
        while self.gathered.len() < BATCH_MAX
            && let Ok(record) = self.records.try_recv()
        {
            self.gathered.push(record);
        }
    }

    fn hand(&mut self) -> Option<RecordBatch> {
        if self.gathered.is_empty() {
            return None;
        }
        let batch = RecordBatch { number: self.next_number, records: std::mem::take(&mut self.gathered) };
        self.next_number += 1;
        self.outstanding.push_back(Outstanding { batch: batch.clone(), handed_at: Instant::now() });
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use kiln_shared::ids::{AppId, CallId, FunctionId};
    use kiln_shared::record::{LogChunk, RecordSink};

    use super::*;

    const WAIT: Duration = Duration::from_secs(3);

    fn record(text: &str) -> Record {
        Record::Log(LogChunk {
            call_id: CallId::generate(),
            app_id: AppId::generate(),
            function_id: FunctionId::generate(),
            text: text.to_owned(),
        })
    }

    fn text(record: &Record) -> &str {
        match record {
            Record::Log(chunk) => &chunk.text,
            Record::Call(_) => "a call",
        }
    }

    fn texts(batch: &RecordBatch) -> Vec<&str> {
        batch.records.iter().map(text).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_given_once_and_forgotten_when_it_was_taken() {
        let (sink, records) = RecordSink::bounded(8);
        let outbox = Outbox::new(records);
        sink.send(record("a"));
        sink.send(record("b"));
        let first = outbox.next(0, WAIT).await.expect("a batch");
        assert_eq!(texts(&first), ["a", "b"]);
        assert_eq!(outbox.next(first.number, WAIT).await, None);
        tokio::time::advance(LEASE * 2).await;
        assert_eq!(outbox.next(0, WAIT).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_that_nobody_acknowledged_is_given_again() {
        let (sink, records) = RecordSink::bounded(8);
        let outbox = Outbox::new(records);
        sink.send(record("a"));
        let first = outbox.next(0, WAIT).await.expect("a batch");
        sink.send(record("b"));
        let second = outbox.next(0, WAIT).await.expect("a batch");
        assert_eq!(texts(&second), ["b"]);
        tokio::time::advance(LEASE).await;
        assert_eq!(outbox.next(second.number, WAIT).await, Some(first));
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_goes_away_while_a_batch_is_gathered_loses_nothing() {
        let (sink, records) = RecordSink::bounded(8);
        let outbox = Outbox::new(records);
        sink.send(record("a"));
        let gone = tokio::time::timeout(GATHER / 2, outbox.next(0, WAIT)).await;
        assert!(gone.is_err());
        assert_eq!(texts(&outbox.next(0, WAIT).await.expect("a batch")), ["a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_handed_out_is_bounded() {
        let (sink, records) = RecordSink::bounded(64);
        let outbox = Outbox::new(records);
        let mut numbers = Vec::new();
        for _ in 0..OUTSTANDING_MAX {
            sink.send(record("x"));
            numbers.push(outbox.next(0, WAIT).await.expect("a batch").number);
        }
        sink.send(record("y"));
        assert_eq!(outbox.next(0, Duration::ZERO).await, None);
        assert_eq!(texts(&outbox.next(numbers[0], WAIT).await.expect("a batch")), ["y"]);
    }
}
