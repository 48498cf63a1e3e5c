//! One task that writes for all: what waits while a batch is under way is the next batch.
//!
//! It numbers what it writes, so that a record that was written twice, as nobody answered the first time, counts
//! once. So it writes one batch after the other.

use std::sync::Arc;
use std::time::Duration;

use kiln_shared::queue::QueueError;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::follower::{Asker, Follower};
use super::log::{Log, LogError};
use super::record::{self, Header, Kind, PART_BYTES_MAX};
use crate::engine::Core;

/// Most bytes of one batch; Kafka's usual limit is 1 MiB (`max.message.bytes`).
const BATCH_BYTES_MAX: usize = 900 << 10;
/// Most bytes of writes that are taken up together: beyond, others wait.
const TAKEN_BYTES_MAX: usize = 64 << 20;
/// A batch that was not written after this time is given up.
const WRITE_MAX: Duration = Duration::from_secs(3);
/// Pause before a batch is tried again.
const WRITE_PAUSE: Duration = Duration::from_millis(50);

/// Something to write.
pub(super) struct Write {
    pub(super) kind: Kind,
    /// Of pieces and ends: where their image begins.
    pub(super) about: i64,
    /// Of pieces: which one. Of ends: how many there are.
    pub(super) piece: u32,
    pub(super) content: Vec<u8>,
    pub(super) asker: Asker,
}

/// Writes until `stop`.
pub(super) struct Writer {
    pub(super) log: Arc<Log>,
    pub(super) follower: Arc<Follower>,
    pub(super) core: Arc<Core>,
    pub(super) origin: u64,
}

impl Writer {
    pub(super) async fn run(self, mut writes: mpsc::Receiver<Write>, stop: CancellationToken) {
        let mut number = 0;
        loop {
            let first = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                // Cancel-safe.
                first = writes.recv() => first,
            };
            let Some(first) = first else { return };
            let now = self.core.time.now_millis();
            let before = number;
            let mut records = Vec::new();
            let mut bytes = 0;
            let mut next = Some(first);
            while let Some(write) = next {
                number += 1;
                bytes += write.content.len();
                self.encode(number, &write, now, &mut records);
                self.follower.expect(number, write.asker);
                next = if bytes < TAKEN_BYTES_MAX { writes.try_recv().ok() } else { None };
            }
            match self.write(&records, now).await {
                Ok(()) => self.follower.settle_accounts(before + 1..=number),
                Err(error) => _ = self.follower.give_up(before + 1..=number, &error),
            }
        }
    }

    /// The records of a write.
    fn encode(&self, number: u64, write: &Write, now_millis: i64, records: &mut Vec<Vec<u8>>) {
        let base = self.follower.with(|replica| replica.base().map_or(-1, |base| base.begin));
        let parts = write.content.len().div_ceil(PART_BYTES_MAX).max(1) as u32;
        let header = Header {
            kind: write.kind,
            origin: self.origin,
            number,
            now_millis,
            base,
            about: write.about,
            part: write.piece,
            parts,
        };
        match write.kind {
            Kind::Operation => {
                for part in 0..parts {
                    let begin = part as usize * PART_BYTES_MAX;
                    let end = write.content.len().min(begin + PART_BYTES_MAX);
                    records.push(record::encode(&Header { part, ..header }, &write.content[begin..end]));
                }
            }
            Kind::Begin | Kind::Piece => records.push(record::encode(&header, &write.content)),
            Kind::End => {
                records.push(record::encode(&Header { parts: write.piece, ..header }, &write.content));
            }
        }
    }

    /// Writes records in batches; each is applied here once it is written.
    async fn write(&self, records: &[Vec<u8>], now_millis: i64) -> Result<(), QueueError> {
        let deadline = Instant::now() + WRITE_MAX;
        let mut rest = records;
        while !rest.is_empty() {
            let (batch, after) = rest.split_at(fitting(rest));
            rest = after;
            let first = loop {
                match self.log.append(batch, now_millis).await {
                    Ok(first) => break first,
                    Err(LogError::Away(reason)) if Instant::now() < deadline => {
                        tracing::debug!(%reason, "a batch is written again");
                        sleep(WRITE_PAUSE).await;
                    }
                    Err(error) => return Err(error.into()),
                }
            };
            if !self.follower.follow_own(first, batch)? {
                self.follower.catch_up(&self.log).await?;
            }
        }
        Ok(())
    }
}

/// How many of the records make a batch; at least one.
fn fitting(records: &[Vec<u8>]) -> usize {
    let mut bytes = 0;
    let over = records.iter().position(|record| {
        bytes += record.len();
        bytes > BATCH_BYTES_MAX
    });
    over.unwrap_or(records.len()).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_as_large_as_fits() {
        let records = |sizes: &[usize]| sizes.iter().map(|size| vec![0; *size]).collect::<Vec<_>>();
        assert_eq!(fitting(&records(&[10, 20])), 2);
        assert_eq!(fitting(&records(&[BATCH_BYTES_MAX, 1])), 1);
        assert_eq!(fitting(&records(&[BATCH_BYTES_MAX + 1])), 1);
    }
}
