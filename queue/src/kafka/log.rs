//! The topic on its servers: records are appended, and read from an offset on.
//!
//! Owns the connections. Every question is answered within a time, or a new connection is made for the next one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::DateTime;
use rskafka::BackoffConfig;
use rskafka::client::error::{Error, ProtocolError};
use rskafka::client::partition::{Compression, OffsetAt, PartitionClient, UnknownTopicHandling};
use rskafka::client::{Client, ClientBuilder};
use rskafka::record::Record;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::place::Place;

/// Longest wait for connections, in all.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// The same when the queue is opened, with what is asked of the servers before the topic is.
const OPEN_MAX: Duration = Duration::from_secs(10);
/// Longest wait for an answer: a batch on a slow network to slow disks.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long a server keeps a question for records that there are not yet.
const NEWS_MAX: Duration = Duration::from_millis(500);
/// The same of a question for records that there are. Not zero, for which some servers answer nothing at all.
const PROMPT_MAX: Duration = Duration::from_millis(1);
/// Bytes of one answer; more if one batch is larger.
const READ_BYTES_MAX: i32 = 16 << 20;
/// Largest message of the protocol that is read, in bytes: an answer, and a batch of some other writer.
const MESSAGE_BYTES_MAX: usize = 128 << 20;
/// One attempt: what is worth another is tried again by those who ask, with what they know.
const ONCE: BackoffConfig = BackoffConfig {
    init_backoff: Duration::from_millis(20),
    max_backoff: Duration::from_millis(100),
    base: 2.0,
    deadline: Some(Duration::ZERO),
};

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum LogError {
    /// Nobody answers, or not in time.
    #[error("{0}")]
    Away(String),
    /// They let nobody in, or not this one.
    #[error("{0}")]
    Refused(String),
    /// There is no such topic, and it cannot be made.
    #[error(
        "topic {topic} is not there and cannot be made: {reason}; make it with kafka-topics.sh --create --topic {topic} \
         --partitions 1 --config retention.ms=-1"
    )]
    NotMade { topic: String, reason: String },
    /// There is no such topic.
    #[error("topic {0} is not there")]
    NoTopic(String),
    /// There are no records at this offset: they are deleted, or were never written.
    #[error("the server has no record {0}, which it acknowledged")]
    OutOfRange(i64),
    /// A record is larger than the topic allows.
    #[error("topic {topic} takes no records of {bytes} bytes; set its max.message.bytes to 1048576 or more")]
    TooLarge { topic: String, bytes: usize },
}

/// Whether to wait for records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// What there is now.
    No,
    /// If there is none, until there is, for half a second.
    ForNews,
}

/// Some records.
#[derive(Debug)]
pub(super) struct Read {
    /// With their offsets.
    pub(super) records: Vec<(i64, Vec<u8>)>,
    /// The offset after the last that there was.
    pub(super) end: i64,
}

/// An open topic of one partition.
#[derive(Debug)]
pub(super) struct Log {
    place: Arc<Place>,
    /// For what is answered at once.
    prompt: Line,
    /// For questions that a server keeps, which others would wait behind.
    patient: Line,
}

impl Log {
    pub(super) fn new(place: Arc<Place>) -> Self {
        let line = || Line { place: Arc::clone(&place), client: Mutex::default() };
        Self { prompt: line(), patient: line(), place }
    }

    /// Its scheme, servers and topic.
    pub(super) fn name(&self) -> &str {
        &self.place.name
    }

    /// Appends records, with the time in milliseconds since 1970; the offset of the first.
    pub(super) async fn append(&self, records: &[Vec<u8>], now_millis: i64) -> Result<i64, LogError> {
        let written = self.prompt.ask(ANSWER_MAX, async |client| {
            let records = records.iter().map(|record| kafka_record(record, now_millis)).collect();
            client.produce(records, Compression::NoCompression).await
        });
        let offsets = written.await.map_err(|error| match error {
            Fault::Server(ProtocolError::MessageTooLarge | ProtocolError::RecordListTooLarge) => {
                let bytes = records.iter().map(Vec::len).max().unwrap_or_default();
                LogError::TooLarge { topic: self.place.topic.clone(), bytes }
            }
            fault => self.error(fault, 0),
        })?;
        offsets.first().copied().ok_or_else(|| LogError::Away("nothing was written".to_owned()))
    }

    /// Records from an offset on: some, if there are any.
    pub(super) async fn read(&self, from: i64, wait: Wait) -> Result<Read, LogError> {
        let read = match wait {
            Wait::No => self.ask_for(from, &self.prompt, PROMPT_MAX).await?,
            Wait::ForNews => self.ask_for(from, &self.patient, NEWS_MAX).await?,
        };
        if !read.records.is_empty() || read.end <= from {
            return Ok(read);
        }
        // They are there: a server may have to fetch them from far.
        let read = self.ask_for(from, &self.prompt, NEWS_MAX).await?;
        if read.records.is_empty() && read.end > from {
            return Err(LogError::Away(format!("it does not give record {from}, which is there")));
        }
        Ok(read)
    }

    async fn ask_for(&self, from: i64, line: &Line, wait: Duration) -> Result<Read, LogError> {
        let read = line.ask(ANSWER_MAX + wait, async |client| {
            client.fetch_records(from, 1..READ_BYTES_MAX, wait.as_millis() as i32).await
        });
        let (records, end) = read.await.map_err(|fault| self.error(fault, from))?;
        // Not every server says so itself.
        if end < from {
            return Err(LogError::OutOfRange(from));
        }
        let records = records.into_iter().map(|read| (read.offset, read.record.value.unwrap_or_default()));
        Ok(Read { records: records.collect(), end })
    }

    /// The offset of the first record that is still there.
    pub(super) async fn first(&self) -> Result<i64, LogError> {
        let first =
            self.prompt.ask(ANSWER_MAX, async |client| client.get_offset(OffsetAt::Earliest).await).await;
        first.map_err(|fault| self.error(fault, 0))
    }

    /// Has the server delete the records before an offset.
    pub(super) async fn forget(&self, before: i64) -> Result<(), LogError> {
        // A connection of its own: there are servers that break it off.
        let line = Line { place: Arc::clone(&self.place), client: Mutex::default() };
        let wait = ANSWER_MAX.as_millis() as i32;
        let forgotten = line.ask(ANSWER_MAX, async |client| client.delete_records(before, wait).await).await;
        forgotten.map_err(|fault| self.error(fault, before))
    }

    fn error(&self, fault: Fault, offset: i64) -> LogError {
        match fault {
            Fault::Late => LogError::Away(format!("no answer within {ANSWER_MAX:?}")),
            Fault::Server(ProtocolError::OffsetOutOfRange) => LogError::OutOfRange(offset),
            Fault::Server(ProtocolError::UnknownTopicOrPartition) => {
                LogError::NoTopic(self.place.topic.clone())
            }
            Fault::Server(
                error @ (ProtocolError::TopicAuthorizationFailed
                | ProtocolError::ClusterAuthorizationFailed
                | ProtocolError::SaslAuthenticationFailed),
            ) => LogError::Refused(error.to_string()),
            Fault::Server(error) => LogError::Away(error.to_string()),
            Fault::NotMade(reason) => LogError::NotMade { topic: self.place.topic.clone(), reason },
            Fault::Other(text) if text.contains("Sasl") && !is_broken_off(&text) => LogError::Refused(text),
            Fault::Other(text) => LogError::Away(text),
        }
    }
}

/// Opens the place's servers, looks for the topic and makes it if it is not there.
pub(super) async fn prepare(place: &Place) -> Result<(), LogError> {
    let log = Log::new(Arc::new(place.clone()));
    let prepared = timeout(OPEN_MAX, async {
        let client = connect(place).await?;
        let is_there = async || {
            let topics = client.list_topics().await.map_err(Fault::of)?;
            Ok::<_, Fault>(topics.into_iter().find(|topic| topic.name == place.topic))
        };
        if let Some(topic) = is_there().await? {
            return Ok(topic.partitions.len());
        }
        let controller = client.controller_client().map_err(Fault::of)?;
        let wait = CONNECT_MAX.as_millis() as i32;
        match controller.create_topic(&place.topic, 1, place.replicas, wait).await.map_err(Fault::of) {
            // Somebody else made it meanwhile.
            Ok(()) | Err(Fault::Server(ProtocolError::TopicAlreadyExists)) => Ok(1),
            Err(Fault::Server(error)) => Err(Fault::NotMade(error.to_string())),
            Err(fault) => Err(fault),
        }
    });
    match prepared.await.unwrap_or(Err(Fault::Late)) {
        Ok(1) => Ok(()),
        Ok(partitions) => Err(LogError::Refused(format!(
            "topic {} has {partitions} partitions, and a queue needs exactly 1",
            place.topic
        ))),
        // A broker does so that dies, and one that wants something else.
        Err(Fault::Other(text)) if is_broken_off(&text) => Err(LogError::Away(
            "it closes the connection; if it keeps to that, it wants another user and password, or TLS, which Kiln does \
             not speak to Kafka"
                .to_owned(),
        )),
        Err(fault) => Err(log.error(fault, 0)),
    }
}

async fn connect(place: &Place) -> Result<Client, Fault> {
    let mut builder = ClientBuilder::new(place.servers.clone())
        .client_id("kiln")
        .max_message_size(MESSAGE_BYTES_MAX)
        .backoff_config(ONCE);
    if let Some(login) = &place.login {
        builder = builder.sasl_config(login.clone());
    }
    builder.build().await.map_err(Fault::of)
}

/// Why a question was not answered.
enum Fault {
    Late,
    Server(ProtocolError),
    NotMade(String),
    Other(String),
}

impl Fault {
    fn of(error: Error) -> Self {
        match error {
            Error::ServerError { protocol_error, .. } => Self::Server(protocol_error),
            // What was tried again is told with how often; the last cause is behind it.
            error => {
                let text = error.to_string();
                Self::Other(text.rsplit("Source: ").next().unwrap_or(&text).to_owned())
            }
        }
    }
}

/// A connection to whichever server leads the partition, made when it is needed.
#[derive(Debug)]
struct Line {
    place: Arc<Place>,
    client: Mutex<Option<Arc<PartitionClient>>>,
}

impl Line {
    /// Asks, waiting no longer than that for an answer. After any failure the next question connects anew.
    async fn ask<T>(
        &self,
        wait: Duration,
        question: impl AsyncFnOnce(&PartitionClient) -> Result<T, Error>,
    ) -> Result<T, Fault> {
        let client = self.client().await?;
        let asked = timeout(wait, question(&client)).await;
        let answer = asked.map_err(|_late| Fault::Late).and_then(|answer| answer.map_err(Fault::of));
        if answer.is_err() {
            let mut kept = self.client.lock().await;
            if kept.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, &client)) {
                *kept = None;
            }
        }
        answer
    }

    async fn client(&self) -> Result<Arc<PartitionClient>, Fault> {
        // Held while connecting: others wait for the same connection.
        let mut kept = self.client.lock().await;
        if let Some(client) = &*kept {
            return Ok(Arc::clone(client));
        }
        let made = timeout(CONNECT_MAX, async {
            let client = connect(&self.place).await?;
            client
                .partition_client(&self.place.topic, 0, UnknownTopicHandling::Error)
                .await
                .map_err(Fault::of)
        });
        let client = Arc::new(made.await.unwrap_or(Err(Fault::Late))?);
        *kept = Some(Arc::clone(&client));
        Ok(client)
    }
}

/// True if the server ended the connection instead of answering, as rskafka tells it.
fn is_broken_off(text: &str) -> bool {
    ["early eof", "IO Error", "Connection reset", "Broken pipe"].iter().any(|sign| text.contains(sign))
        && !text.contains("refused")
}

fn kafka_record(value: &[u8], now_millis: i64) -> Record {
    Record {
        key: None,
        value: Some(value.to_vec()),
        headers: BTreeMap::new(),
        timestamp: DateTime::from_timestamp_millis(now_millis).unwrap_or_default(),
    }
}
