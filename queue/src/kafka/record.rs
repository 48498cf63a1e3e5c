//! What the topic's records are: a header of fixed length, and what follows it.
//!
//! An operation larger than a record may be (Kafka's usual limit is 1 MiB) is several records, the parts of one
//! content in their order.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use kiln_shared::ids::{AppId, CallId, FunctionId};
use kiln_shared::queue::{NewMessage, Priority, Purge, Receipt, Redrive, Reserve, RetryPolicy, Settlement};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::engine::{Broken, Operation};

/// The form of records. Other versions of Kiln may have others.
const FORM: u8 = 1;
/// Length of the header: form, kind, five numbers of 8 bytes, two of 4.
const HEADER_BYTES: usize = 2 + 5 * 8 + 2 * 4;
/// Most bytes of a record's content.
pub(super) const PART_BYTES_MAX: usize = 256 << 10;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An operation, or a part of one.
    Operation,
    /// An image of the queue, as it is after this record, is going to be written.
    Begin,
    /// A part of an image.
    Piece,
    /// An image is complete.
    End,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Operation, Self::Begin, Self::Piece, Self::End];
}

/// What is known of a record before its content is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// The process that wrote it.
    pub(super) origin: u64,
    /// Which of its writes, from 1; a later one has a larger number. A record that is there twice has one number.
    pub(super) number: u64,
    /// The writer's time, milliseconds since 1970.
    pub(super) now_millis: i64,
    /// Where the latest complete image that the writer knew begins: no record before it is needed. Negative: there
    /// is none.
    pub(super) base: i64,
    /// Of pieces and ends: where their image begins.
    pub(super) about: i64,
    /// Which part of its write, or which piece of its image, from 0.
    pub(super) part: u32,
    /// How many parts the write has; of an end: how many pieces the image has.
    pub(super) parts: u32,
}

/// A record as bytes.
pub(super) fn encode(header: &Header, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + content.len());
    bytes.put_u8(FORM);
    bytes.put_u8(header.kind as u8);
    bytes.put_u64(header.origin);
    bytes.put_u64(header.number);
    bytes.put_i64(header.now_millis);
    bytes.put_i64(header.base);
    bytes.put_i64(header.about);
    bytes.put_u32(header.part);
    bytes.put_u32(header.parts);
    bytes.put_slice(content);
    bytes
}

/// A record from bytes.
pub(super) fn decode(record: &[u8]) -> Result<(Header, &[u8]), Broken> {
    let Some((mut header, content)) = record.split_at_checked(HEADER_BYTES) else {
        return Err(Broken("a record is not Kiln's".to_owned()));
    };
    let form = header.get_u8();
    if form != FORM {
        return Err(Broken(format!(
            "a record has form {form}, not {FORM}: another version of Kiln wrote it"
        )));
    }
    let kind = header.get_u8();
    let kind = *Kind::ALL
        .get(usize::from(kind))
        .ok_or_else(|| Broken(format!("a record of kind {kind} is not Kiln's")))?;
    let header = Header {
        kind,
        origin: header.get_u64(),
        number: header.get_u64(),
        now_millis: header.get_i64(),
        base: header.get_i64(),
        about: header.get_i64(),
        part: header.get_u32(),
        parts: header.get_u32(),
    };
    Ok((header, content))
}

/// A head as JSON and what it tells the lengths of, in one piece with their length before it.
pub(super) fn frame(head: &impl Serialize, bodies: &[&[u8]]) -> Vec<u8> {
    let head = serde_json::to_vec(head).expect("heads are JSON");
    let body_bytes: usize = bodies.iter().map(|body| body.len()).sum();
    let mut bytes = Vec::with_capacity(8 + head.len() + body_bytes);
    bytes.put_u32(head.len() as u32);
    bytes.put_u32(body_bytes as u32);
    bytes.put_slice(&head);
    for body in bodies {
        bytes.put_slice(body);
    }
    bytes
}

/// A frame that was read: its head, its bodies, and what follows it.
pub(super) type Frame<'a, T> = (T, &'a [u8], &'a [u8]);

/// The first frame of some bytes. None: there is no whole one.
pub(super) fn unframe<T: DeserializeOwned>(bytes: &[u8]) -> Result<Option<Frame<'_, T>>, Broken> {
    let Some((mut lengths, rest)) = bytes.split_at_checked(8) else { return Ok(None) };
    let (head, body) = (lengths.get_u32() as usize, lengths.get_u32() as usize);
    let Some((frame, rest)) = rest.split_at_checked(head + body) else { return Ok(None) };
    let (head, body) = frame.split_at(head);
    let head = serde_json::from_slice(head).map_err(|error| Broken(error.to_string()))?;
    Ok(Some((head, body, rest)))
}

/// An operation as it is written, without what messages carry.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Command {
    Enqueue(Vec<NewHead>),
    Reserve(Reserve),
    Renew(Vec<Receipt>, Duration),
    Settle(Vec<Settlement>),
    Redrive(Redrive),
    Cancel(CallId),
    Purge(Purge),
    Sweep,
}

/// A new message, its envelope and payload by their lengths.
#[derive(Debug, Serialize, Deserialize)]
struct NewHead {
    id: CallId,
    function_id: FunctionId,
    app_id: AppId,
    priority: Priority,
    delay: Duration,
    deadline: Option<Duration>,
    idempotency_key: Option<String>,
    retry: RetryPolicy,
    tells_an_end: bool,
    envelope_bytes: usize,
    payload_bytes: usize,
}

/// What an operation is written with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Given {
    pub(super) seed: u64,
    pub(super) messages_max: Option<u64>,
}

/// The content of an operation's records.
///
/// # Panics
/// If the operation only reads, which is not written.
pub(super) fn content(operation: &Operation, given: Given) -> Vec<u8> {
    let mut bodies: Vec<&[u8]> = Vec::new();
    let command = match operation {
        Operation::Enqueue(messages) => {
            for message in messages {
                bodies.extend([message.envelope.get().as_bytes(), &message.payload[..]]);
            }
            Command::Enqueue(messages.iter().map(NewHead::of).collect())
        }
        Operation::Reserve(reserve) => Command::Reserve(reserve.clone()),
        Operation::Renew(receipts, lease) => Command::Renew(receipts.clone(), *lease),
        Operation::Settle(settlements) => Command::Settle(settlements.clone()),
        Operation::Redrive(redrive) => Command::Redrive(*redrive),
        Operation::Cancel(id) => Command::Cancel(*id),
        Operation::Purge(purge) => Command::Purge(*purge),
        Operation::Sweep => Command::Sweep,
        Operation::Inspect(_) | Operation::List(_) | Operation::Depth => {
            unreachable!("what only reads is not written")
        }
    };
    frame(&(command, given), &bodies)
}

/// The operation of a content.
pub(super) fn operation(content: &[u8]) -> Result<(Operation, Given), Broken> {
    let ((command, given), mut bodies, _) =
        unframe::<(Command, Given)>(content)?.ok_or_else(|| Broken("an operation is cut".to_owned()))?;
    let operation = match command {
        Command::Enqueue(heads) => {
            let messages = heads.into_iter().map(|head| head.message(&mut bodies));
            Operation::Enqueue(messages.collect::<Result<_, _>>()?)
        }
        Command::Reserve(reserve) => Operation::Reserve(reserve),
        Command::Renew(receipts, lease) => Operation::Renew(receipts, lease),
        Command::Settle(settlements) => Operation::Settle(settlements),
        Command::Redrive(redrive) => Operation::Redrive(redrive),
        Command::Cancel(id) => Operation::Cancel(id),
        Command::Purge(purge) => Operation::Purge(purge),
        Command::Sweep => Operation::Sweep,
    };
    Ok((operation, given))
}

impl NewHead {
    fn of(message: &NewMessage) -> Self {
        Self {
            id: message.id,
            function_id: message.function_id,
            app_id: message.app_id,
            priority: message.priority,
            delay: message.delay,
            deadline: message.deadline,
            idempotency_key: message.idempotency_key.clone(),
            retry: message.retry,
            tells_an_end: message.tells_an_end,
            envelope_bytes: message.envelope.get().len(),
            payload_bytes: message.payload.len(),
        }
    }

    /// With the first of the bodies, which it takes.
    fn message(self, bodies: &mut &[u8]) -> Result<NewMessage, Broken> {
        let envelope = String::from_utf8(take(bodies, self.envelope_bytes)?.to_vec());
        let envelope = envelope.map_err(|error| Broken(error.to_string()))?;
        Ok(NewMessage {
            id: self.id,
            function_id: self.function_id,
            app_id: self.app_id,
            priority: self.priority,
            delay: self.delay,
            deadline: self.deadline,
            idempotency_key: self.idempotency_key,
            retry: self.retry,
            tells_an_end: self.tells_an_end,
            envelope: RawValue::from_string(envelope).map_err(|error| Broken(error.to_string()))?,
            payload: Bytes::copy_from_slice(take(bodies, self.payload_bytes)?),
        })
    }
}

/// The first bytes of some, which are then without them.
pub(super) fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8], Broken> {
    let (first, rest) = bytes.split_at_checked(count).ok_or_else(|| Broken("a message is cut".to_owned()))?;
    *bytes = rest;
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        fn header()(
            kind in 0..Kind::ALL.len(), numbers in any::<(u64, u64, i64, i64, i64, u32, u32)>()
        ) -> Header {
            let (origin, number, now_millis, base, about, part, parts) = numbers;
            Header { kind: Kind::ALL[kind], origin, number, now_millis, base, about, part, parts }
        }
    }

    proptest! {
        #[test]
        fn a_record_is_read_as_it_was_written(header in header(), content in any::<Vec<u8>>()) {
            let record = encode(&header, &content);
            prop_assert_eq!(decode(&record).unwrap(), (header, &content[..]));
            prop_assert!(decode(&record[..HEADER_BYTES - 1]).is_err());
        }

        #[test]
        fn messages_are_read_as_they_were_written(
            bodies in prop::collection::vec((any::<Vec<u8>>(), "[a-z€]{0,9}", any::<Option<u16>>()), 0..5)
        ) {
            let messages = bodies.iter().map(|(payload, text, deadline)| NewMessage {
                envelope: serde_json::value::to_raw_value(text).unwrap(),
                deadline: deadline.map(|seconds| Duration::from_secs(seconds.into())),
                idempotency_key: Some(text.clone()).filter(|key| !key.is_empty()),
                ..NewMessage::new(CallId::generate(), FunctionId::generate(), AppId::generate(), payload.clone())
            });
            let messages: Vec<NewMessage> = messages.collect();
            let given = Given { seed: 7, messages_max: Some(9) };
            let written = content(&Operation::Enqueue(messages.clone()), given);
            let (Operation::Enqueue(read), read_given) = operation(&written).unwrap() else { panic!() };
            prop_assert_eq!(format!("{read:?}"), format!("{messages:?}"));
            prop_assert_eq!(read_given, given);
            prop_assert!(operation(&written[..written.len() - 1]).is_err());
        }

        #[test]
        fn what_is_no_record_is_refused(bytes in any::<Vec<u8>>()) {
            prop_assume!(bytes.first() != Some(&FORM));
            prop_assert!(decode(&bytes).is_err());
            // Lengths that are nonsense are no frame, or no JSON.
            prop_assert!(!matches!(unframe::<Vec<u64>>(&bytes), Ok(Some((list, ..))) if !list.is_empty()));
        }
    }
}
