//! From the topic to the queue: the latest complete image, and what was written since.

use super::follower::CatchUpError;
use super::log::{Log, LogError, Wait};
use super::record::{self, Header, Kind};
use super::replica::{Origin, Replica};
use crate::engine::Broken;
use crate::machine::{Head, Machine, Piece};

/// Why the queue cannot be known.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Broken(#[from] Broken),
    /// Records are deleted that no image holds.
    #[error(
        "the records before {first} are deleted, and what they told is nowhere else; have the topic's retention be longer \
         (retention.ms=-1), and to begin with an empty queue delete the topic"
    )]
    Incomplete { first: i64 },
}

impl From<CatchUpError> for LoadError {
    fn from(error: CatchUpError) -> Self {
        match error {
            CatchUpError::Log(error) => Self::Log(error),
            CatchUpError::Broken(broken) => Self::Broken(broken),
        }
    }
}

/// Reads the queue as it is now.
pub(super) async fn load(log: &Log, own: u64) -> Result<Replica, LoadError> {
    let first = log.first().await?;
    let mut replica = match latest_base(log, first).await? {
        Some(begin) => image(log, own, begin).await?,
        None => Replica::new(own, first),
    };
    loop {
        let read = log.read(replica.position(), Wait::No).await?;
        for (offset, record) in &read.records {
            if *offset >= replica.position() {
                replica.apply(*offset, record)?;
            }
        }
        if replica.position() >= read.end {
            return Ok(replica);
        }
    }
}

/// Where the latest complete image begins. None: there is none, and none is needed.
async fn latest_base(log: &Log, first: i64) -> Result<Option<i64>, LoadError> {
    let end = log.read(first, Wait::No).await?.end;
    if end == first {
        if first > 0 {
            tracing::warn!(queue = log.name(), "all records of the topic are deleted: the queue is empty");
        }
        return Ok(None);
    }
    let last = log.read(end - 1, Wait::No).await?;
    let mut base = -1;
    for (_, record) in &last.records {
        base = base.max(record::decode(record)?.0.base);
    }
    if base < first && first > 0 {
        // The last writer knew of an older one: look at what the others knew.
        let mut position = first;
        while position < end {
            let read = log.read(position, Wait::No).await?;
            let Some((offset, _)) = read.records.last() else { break };
            position = offset + 1;
            for (_, record) in &read.records {
                base = base.max(record::decode(record)?.0.base);
            }
        }
        if base < first {
            return Err(LoadError::Incomplete { first });
        }
    }
    Ok((base >= 0).then_some(base))
}

/// The queue of the image that begins with that record.
async fn image(log: &Log, own: u64, begin: i64) -> Result<Replica, LoadError> {
    let mut reading = Reading::default();
    let mut position = begin;
    let mut header = None;
    loop {
        let read = log.read(position, Wait::No).await?;
        let Some((last, _)) = read.records.last() else {
            return Err(Broken(format!("the image that begins at {begin} has no end")).into());
        };
        position = last + 1;
        for (offset, record) in &read.records {
            let (known, content) = record::decode(record)?;
            match known.kind {
                Kind::Begin if *offset == begin => header = Some(known),
                Kind::Piece if known.about == begin => reading.add(&known, content)?,
                Kind::End if known.about == begin => {
                    let header = header
                        .ok_or_else(|| Broken(format!("record {begin} begins no image, but ends one")))?;
                    let (machine, origins) = reading.finish()?;
                    return Ok(Replica::of_image(own, (begin, header), machine, origins));
                }
                _ => {}
            }
        }
    }
}

/// The first frame of an image.
pub(super) type ImageHead = (Head, Vec<(u64, Origin)>);
/// The head of a message in an image, with the lengths of its envelope and payload.
pub(super) type MessageHead = (Piece, usize, usize);

/// An image that is being read.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pieces: u32,
    /// What is not yet a whole frame.
    bytes: Vec<u8>,
    known: Option<(Machine, Vec<(u64, Origin)>)>,
}

impl Reading {
    /// Adds a piece; one that was written twice once.
    pub(super) fn add(&mut self, header: &Header, content: &[u8]) -> Result<(), Broken> {
        if header.part != self.pieces {
            return Ok(());
        }
        self.pieces += 1;
        self.bytes.extend_from_slice(content);
        let mut rest = &self.bytes[..];
        if self.known.is_none()
            && let Some(((head, origins), _, after)) = record::unframe::<ImageHead>(rest)?
        {
            self.known = Some((Machine::from_head(head), origins));
            rest = after;
        }
        if let Some((machine, _)) = &mut self.known {
            while let Some(((piece, envelope, payload), mut bodies, after)) =
                record::unframe::<MessageHead>(rest)?
            {
                let envelope = String::from_utf8(record::take(&mut bodies, envelope)?.to_vec());
                let envelope = envelope.map_err(|error| Broken(error.to_string()))?;
                let payload = record::take(&mut bodies, payload)?.to_vec();
                machine.restore(piece, envelope, payload.into())?;
                rest = after;
            }
        }
        let read = self.bytes.len() - rest.len();
        self.bytes.drain(..read);
        Ok(())
    }

    /// The queue, and who wrote to it.
    pub(super) fn finish(self) -> Result<(Machine, Vec<(u64, Origin)>), Broken> {
        self.known.filter(|_| self.bytes.is_empty()).ok_or_else(|| Broken("an image is cut".to_owned()))
    }
}
