//! Queued work on the link: a stream for each question of an agent, with one answer.
//!
//! Messages are JSON as everywhere on the link; payloads, envelopes and answers' bodies follow them as they are, one after
//! the other, with their lengths in the message.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::frame::{MessageReader, ReadError, write_message};
use crate::function::{Function, FunctionSpec};
use crate::ids::{AppId, FunctionId};
use crate::queue::{
    ANSWER_BYTES_MAX, ENVELOPE_BYTES_MAX, Finished, Held, PAYLOAD_BYTES_MAX, Priority, QueueError, Receipt,
    Reserve, Reserved, RetryPolicy, Settled, Work,
};

/// Longest question or answer in bytes, without what follows it.
pub const WORK_BYTES_MAX: usize = 16 << 20;

/// What an agent asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkAsk {
    /// For work; the agent ends its side of the stream when it wants the wait to end.
    Take {
        /// What it takes. Its name is the one that it has proved.
        reserve: Reserve,
        /// How long the balancer may wait for something.
        wait: Duration,
    },
    /// For longer leases.
    Renew {
        /// The leases.
        receipts: Vec<Receipt>,
        /// Their new length.
        lease: Duration,
    },
    /// That the ends of so much work be taken; [`Ended`]s follow.
    Finish {
        /// The ends, in order.
        ended: Vec<Ended>,
    },
}

/// How work ended, and the length of the kept answer's body, which follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    finished: Finished,
    body_bytes: usize,
}

/// What a balancer answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkAnswer {
    /// Messages, whose envelopes and payloads follow in order, and the functions to run them with.
    Work {
        /// Each once.
        functions: Vec<FunctionSpec>,
        /// The messages.
        messages: Vec<MessageHead>,
    },
    /// Which leases are held.
    Held(Vec<Held>),
    /// What became of the messages.
    Settled(Vec<Settled>),
    /// The queue says no.
    Failed(QueueError),
}

/// A message without envelope and payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageHead {
    receipt: Receipt,
    function_id: FunctionId,
    app_id: AppId,
    priority: Priority,
    attempt: u32,
    retry: RetryPolicy,
    created_at: Timestamp,
    envelope_bytes: usize,
    payload_bytes: usize,
}

/// Asks that ends of work be taken.
///
/// # Errors
/// The stream broke.
pub async fn write_finish<Q: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    finished: &[Finished],
    opening: impl FnOnce(WorkAsk) -> Q,
) -> io::Result<()> {
    let body = |finished: &Finished| finished.answer.as_ref().map(|answer| answer.body.clone());
    let ended = finished.iter().map(|finished| Ended {
        finished: finished.clone(),
        body_bytes: body(finished).map_or(0, |body| body.len()),
    });
    write_message(stream, &opening(WorkAsk::Finish { ended: ended.collect() })).await?;
    for body in finished.iter().filter_map(body) {
        stream.write_all(&body).await?;
    }
    Ok(())
}

/// Reads the bodies that follow [`WorkAsk::Finish`].
///
/// # Errors
/// The stream broke, or a body is longer than allowed.
pub async fn read_finished<R: AsyncRead + Unpin>(
    ended: Vec<Ended>,
    reader: &mut MessageReader<R>,
) -> Result<Vec<Finished>, ReadError> {
    let mut all = Vec::with_capacity(ended.len());
    for Ended { mut finished, body_bytes } in ended {
        let body = reader.bytes(body_bytes, ANSWER_BYTES_MAX).await?;
        if let Some(answer) = &mut finished.answer {
            answer.body = body;
        }
        all.push(finished);
    }
    Ok(all)
}

/// Answers with work.
///
/// # Errors
/// The stream broke.
pub async fn write_work(stream: &mut (impl AsyncWrite + Unpin), work: &[Work]) -> io::Result<()> {
    let mut functions: Vec<&FunctionSpec> = work.iter().map(|work| &work.function.spec).collect();
    functions.sort_unstable_by_key(|spec| spec.id);
    functions.dedup_by_key(|spec| spec.id);
    let head = |work: &Work| MessageHead {
        receipt: work.message.receipt,
        function_id: work.message.function_id,
        app_id: work.message.app_id,
        priority: work.message.priority,
        attempt: work.message.attempt,
        retry: work.message.retry,
        created_at: work.message.created_at,
        envelope_bytes: work.message.envelope.get().len(),
        payload_bytes: work.message.payload.len(),
    };
    let answer = WorkAnswer::Work {
        functions: functions.into_iter().cloned().collect(),
        messages: work.iter().map(head).collect(),
    };
    write_message(stream, &answer).await?;
    for Work { message, .. } in work {
        stream.write_all(message.envelope.get().as_bytes()).await?;
        stream.write_all(&message.payload).await?;
    }
    Ok(())
}

/// Reads what follows [`WorkAnswer::Work`], to the end of the stream: whoever leaves it earlier has not taken the work.
///
/// # Errors
/// The stream broke, or what follows is not what was said.
pub async fn read_work<R: AsyncRead + Unpin>(
    functions: Vec<FunctionSpec>,
    messages: Vec<MessageHead>,
    reader: &mut MessageReader<R>,
) -> Result<Vec<Work>, ReadError> {
    let functions: HashMap<FunctionId, Arc<Function>> =
        functions.into_iter().map(|spec| (spec.id, Arc::new(Function::new(spec)))).collect();
    let mut work = Vec::with_capacity(messages.len());
    for head in messages {
        let envelope = reader.bytes(head.envelope_bytes, ENVELOPE_BYTES_MAX).await?;
        let envelope: Box<RawValue> = serde_json::from_slice(&envelope)?;
        let payload = reader.bytes(head.payload_bytes, PAYLOAD_BYTES_MAX).await?;
        let Some(function) = functions.get(&head.function_id).cloned() else {
            return Err(ReadError::Malformed(serde::de::Error::custom("work without its function")));
        };
        work.push(Work { message: reserved(&head, envelope, payload), function });
    }
    match reader.next::<IgnoredAny>().await? {
        None => Ok(work),
        Some(IgnoredAny) => Err(ReadError::Malformed(serde::de::Error::custom("more than the work"))),
    }
}

fn reserved(head: &MessageHead, envelope: Box<RawValue>, payload: Bytes) -> Reserved {
    Reserved {
        receipt: head.receipt,
        function_id: head.function_id,
        app_id: head.app_id,
        priority: head.priority,
        attempt: head.attempt,
        retry: head.retry,
        created_at: head.created_at,
        envelope,
        payload,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::CallId;
    use crate::queue::{KeptAnswer, Outcome};

    fn work(function: &Arc<Function>, payload: &'static [u8]) -> Work {
        let message = Reserved {
            receipt: Receipt { id: CallId::generate(), lease: 3 },
            function_id: function.spec.id,
            app_id: function.spec.app_id,
            priority: Priority::MAX,
            attempt: 2,
            retry: RetryPolicy::default(),
            created_at: Timestamp::UNIX_EPOCH,
            envelope: RawValue::from_string(r#"{"a":1}"#.to_owned()).expect("JSON"),
            payload: Bytes::from_static(payload),
        };
        Work { message, function: Arc::clone(function) }
    }

    fn function() -> Arc<Function> {
        let spec = FunctionSpec::with_defaults(FunctionId::generate(), AppId::generate(), "i");
        Arc::new(Function::new(spec))
    }

    #[tokio::test]
    async fn work_comes_over_with_its_function_envelope_and_payload() {
        let (one, other) = (function(), function());
        let sent = [work(&one, b"\0\xff"), work(&other, b""), work(&one, b"third")];
        let (mut writer, reader) = tokio::io::duplex(7);
        let write = async {
            write_work(&mut writer, &sent).await.expect("writes");
            drop(writer);
        };
        let read = async {
            let mut reader = MessageReader::new(reader, WORK_BYTES_MAX);
            let Some(WorkAnswer::Work { functions, messages }) = reader.next().await.expect("reads") else {
                panic!("no work")
            };
            assert_eq!(functions.len(), 2);
            read_work(functions, messages, &mut reader).await.expect("reads")
        };
        let ((), read) = tokio::join!(write, read);
        for (sent, read) in sent.iter().zip(&read) {
            assert_eq!(sent.function, read.function);
            assert_eq!(format!("{:?}", sent.message), format!("{:?}", read.message));
        }
        assert_eq!(read.len(), sent.len());
    }

    #[tokio::test]
    async fn ends_come_over_with_the_answers_bodies() {
        let answer = KeptAnswer {
            status: 200,
            content_type: Some("text/plain".to_owned()),
            body: Bytes::from_static(b"\0ok"),
            is_cut: false,
        };
        let end = |answer| Finished {
            receipt: Receipt { id: CallId::generate(), lease: 1 },
            function_id: FunctionId::generate(),
            attempt: 1,
            outcome: Outcome::Done,
            answer,
        };
        let sent = [end(None), end(Some(answer))];
        let mut bytes = Vec::new();
        write_finish(&mut bytes, &sent, |ask| ask).await.expect("writes");
        let mut reader = MessageReader::new(&*bytes, WORK_BYTES_MAX);
        let Some(WorkAsk::Finish { ended }) = reader.next().await.expect("reads") else { panic!("no ends") };
        assert_eq!(read_finished(ended, &mut reader).await.expect("reads"), sent);
    }

    #[tokio::test]
    async fn a_body_that_is_longer_than_allowed_is_not_read() {
        let mut reader = MessageReader::new(&b"abc"[..], 9);
        assert!(matches!(reader.bytes(4, 3).await, Err(ReadError::TooLong { bytes: 4, bytes_max: 3 })));
        assert!(matches!(reader.bytes(4, 9).await, Err(ReadError::Cut)));
    }
}
