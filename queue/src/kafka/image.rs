//! Writing an image of the queue into the topic, so that nobody has to read it from its beginning, and what is older
//! than the topic's retention is there again.

use kiln_shared::queue::QueueError;

use super::Kafka;
use super::load::{ImageHead, MessageHead};
use super::record::{self, Kind, PART_BYTES_MAX};
use super::replica::{Answer, Begun, Replica};

/// An image older than this is written again, by the queue's time: far less than Kafka usually keeps records for
/// (7 days).
const IMAGE_MILLIS_MAX: i64 = 12 * 60 * 60 * 1_000;

/// True if it is time for an image: `image_bytes` of log are worth one, or twice the size of the last.
pub(super) fn is_due(replica: &Replica, image_bytes: u64, now_millis: i64) -> bool {
    let machine = &replica.machine;
    let last_bytes = replica.base().map_or(0, |base| base.bytes);
    let is_large = replica.log_bytes() > image_bytes.max(2 * last_bytes);
    let since = replica.base().map_or(replica.first_millis(), |base| Some(base.at_millis));
    let is_old = since.is_some_and(|since| now_millis - since > IMAGE_MILLIS_MAX);
    is_large || is_old && !machine.is_empty()
}

/// Writes one, unless somebody does; then has the server delete what is before the last but one.
pub(super) async fn write(kafka: &Kafka) -> Result<(), QueueError> {
    let Answer::Begun(Some(before)) = kafka.write(Kind::Begin, 0, 0, Vec::new()).await? else {
        return Ok(());
    };
    let begin = before.begin;
    let mut pieces = 0;
    let mut bytes = Vec::new();
    for frame in frames(*before) {
        bytes.extend_from_slice(&frame);
        while bytes.len() >= PART_BYTES_MAX {
            let rest = bytes.split_off(PART_BYTES_MAX);
            kafka.write(Kind::Piece, begin, pieces, std::mem::replace(&mut bytes, rest)).await?;
            pieces += 1;
        }
    }
    kafka.write(Kind::Piece, begin, pieces, bytes).await?;
    kafka.write(Kind::End, begin, pieces + 1, Vec::new()).await?;
    let previous = kafka.follower.with(|replica| replica.base().map_or(0, |base| base.previous));
    if previous > 0
        && let Err(error) = kafka.log.forget(previous).await
    {
        tracing::debug!(%error, "the server keeps the topic's old records");
    }
    Ok(())
}

/// A queue as bytes, a message at a time.
pub(super) fn frames(begun: Begun) -> impl Iterator<Item = Vec<u8>> {
    let Begun { origins, image, .. } = begun;
    let (head, messages) = image.apart();
    let head: ImageHead = (head, origins);
    let head = record::frame(&head, &[]);
    std::iter::once(head).chain(messages.map(|(piece, envelope, payload)| {
        let head: MessageHead = (piece, envelope.len(), payload.len());
        record::frame(&head, &[envelope.as_bytes(), &payload])
    }))
}
