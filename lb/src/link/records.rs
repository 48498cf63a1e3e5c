//! Call records and logs on their way from an agent to the store.

use kiln_api::{StoreOutcome, StoredBatches};
use kiln_shared::link::RECORDS_BYTES_MAX;
use kiln_shared::link::frame::{MessageReader, ReadError, write_message};
use kiln_shared::link::message::{RecordBatch, Stored};
use kiln_shared::link::quic::CODE_REFUSED;
use quinn::{RecvStream, SendStream};

/// Stores batches one by one, and says so. A batch that cannot be stored ends the stream, and the agent looks for
/// another balancer to take it; one that can never be stored resets it.
pub(super) async fn serve(store: &StoredBatches, reader: MessageReader<RecvStream>, mut writer: SendStream) {
    let mut reader = reader.with_bytes_max(RECORDS_BYTES_MAX);
    loop {
        let outcome = match reader.next().await {
            Ok(Some(RecordBatch { number, records })) => match store.store(records).await {
                StoreOutcome::Stored if write_message(&mut writer, &Stored { number }).await.is_ok() => {
                    continue;
                }
                outcome => outcome,
            },
            Err(error @ (ReadError::Malformed(_) | ReadError::TooLong { .. })) => {
                tracing::warn!("a batch of call records is refused: {error}");
                StoreOutcome::Refused
            }
            Ok(None) | Err(_) => return,
        };
        if outcome == StoreOutcome::Refused {
            // If the stream is gone the agent has seen that.
            drop(writer.reset(CODE_REFUSED));
        }
        return;
    }
}
