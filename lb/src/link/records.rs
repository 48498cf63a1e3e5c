//! Call records and logs on their way from an agent to the store.

use kiln_api::StoredBatches;
use kiln_shared::link::RECORDS_BYTES_MAX;
use kiln_shared::link::frame::{MessageReader, write_message};
use kiln_shared::link::message::{RecordBatch, Stored};
use quinn::{RecvStream, SendStream};

/// Stores batches one by one, and says so. A batch that cannot be stored ends the stream, and the agent looks for
/// another balancer to take it.
pub(super) async fn serve(store: &StoredBatches, reader: MessageReader<RecvStream>, mut writer: SendStream) {
    let mut reader = reader.with_bytes_max(RECORDS_BYTES_MAX);
    while let Ok(Some(RecordBatch { number, records })) = reader.next().await {
        if !store.store(records).await || write_message(&mut writer, &Stored { number }).await.is_err() {
            return;
        }
    }
}
