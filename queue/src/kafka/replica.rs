//! The queue as it is after a record of the topic: what each process with the topic open computes for itself.
//!
//! Pure: records go in, answers come out. Whoever applies the same records has the same queue.
//!
//! What always holds:
//! - A record counts once, although a writer that got no answer writes it again: the numbers of a process's records
//!   only grow.
//! - What was begun and not finished when an image begins counts for nothing, so that an image needs none of it.

use std::collections::HashMap;

use kiln_shared::queue::QueueError;
use serde::{Deserialize, Serialize};

use super::record::{self, Header, Kind};
use crate::engine::{Broken, Effect, Reply};
use crate::machine::{Image, Machine, Terms};

/// An image that takes longer than this, by the queue's time, has been given up.
const IMAGE_MILLIS_MAX: i64 = 10 * 60 * 1_000;
/// Processes that wrote nothing for this long are forgotten when an image begins. None of their records can still be
/// under way.
const ORIGIN_MILLIS_MAX: i64 = 60 * 60 * 1_000;
/// Counted for each record beside its content, in bytes.
const RECORD_BYTES: u64 = 100;
/// Most bytes of parts whose last one has not come: an operation's, and some.
const PARTIAL_BYTES_MAX: usize = 128 << 20;

/// What a record was answered with.
#[derive(Debug)]
pub(super) enum Answer {
    /// The operation's.
    Operation(Result<(Reply, Effect), QueueError>),
    /// An image may be written: this one. None: another one is being written.
    Begun(Option<Box<Begun>>),
    /// A piece or the end of an image is there.
    Noted,
    /// It counted for nothing: it is to be written again.
    Void,
}

/// A queue as it was when its image began.
#[derive(Debug)]
pub(super) struct Begun {
    /// The offset of the record with which it began.
    pub(super) begin: i64,
    pub(super) origins: Vec<(u64, Origin)>,
    pub(super) image: Image,
}

/// What was answered to whom.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) origin: u64,
    pub(super) number: u64,
    pub(super) answer: Answer,
}

/// What is known of a process that writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    /// Its latest write that counted.
    number: u64,
    at_millis: i64,
}

/// The parts so far of a write.
#[derive(Debug)]
struct Partial {
    number: u64,
    parts: u32,
    content: Vec<u8>,
}

/// An image that is being written.
#[derive(Debug)]
struct Writing {
    begin: i64,
    since_millis: i64,
    pieces: u32,
    /// Of its pieces.
    bytes: u64,
    /// Of the log, when it began.
    bytes_before: u64,
}

/// The queue after all records before an offset.
#[derive(Debug)]
pub(super) struct Replica {
    pub(super) machine: Machine,
    /// This process; images are made for it alone.
    own: u64,
    position: i64,
    origins: HashMap<u64, Origin>,
    partials: HashMap<u64, Partial>,
    writing: Option<Writing>,
    base: Option<Base>,
    /// Written since the base began, or since the beginning of the topic, images apart.
    log_bytes: u64,
    /// When the first record was written that was applied here.
    first_millis: Option<i64>,
}

/// Where the latest complete image begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Base {
    pub(super) begin: i64,
    pub(super) at_millis: i64,
    /// Where the one before began; 0 if there was none.
    pub(super) previous: i64,
    /// Its size.
    pub(super) bytes: u64,
}

impl Replica {
    /// An empty queue; the topic's records begin at `position`.
    pub(super) fn new(own: u64, position: i64) -> Self {
        Self {
            machine: Machine::default(),
            own,
            position,
            origins: HashMap::new(),
            partials: HashMap::new(),
            writing: None,
            base: None,
            log_bytes: 0,
            first_millis: None,
        }
    }

    /// The queue of an image that began with the record `begin`, written at that time.
    pub(super) fn of_image(
        own: u64,
        begin: (i64, Header),
        machine: Machine,
        origins: Vec<(u64, Origin)>,
    ) -> Self {
        let (begin, header) = begin;
        let since_millis = header.now_millis.max(machine.latest_millis());
        let writing = Some(Writing { begin, since_millis, pieces: 0, bytes: 0, bytes_before: 0 });
        let origins = origins.into_iter().collect();
        Self { machine, origins, writing, ..Self::new(own, begin + 1) }
    }

    /// This process, as its records name it.
    pub(super) fn own(&self) -> u64 {
        self.own
    }

    /// When the first record was written that was applied here.
    pub(super) fn first_millis(&self) -> Option<i64> {
        self.first_millis
    }

    /// The offset of the first record that was not applied.
    pub(super) fn position(&self) -> i64 {
        self.position
    }

    /// Where the latest complete image begins.
    pub(super) fn base(&self) -> Option<Base> {
        self.base
    }

    /// Bytes that somebody who opens the topic now would read beside images.
    pub(super) fn log_bytes(&self) -> u64 {
        self.log_bytes
    }

    /// Applies the record at an offset that is not before the position.
    ///
    /// # Errors
    /// It is none that this version of Kiln writes; nothing changed.
    pub(super) fn apply(&mut self, offset: i64, bytes: &[u8]) -> Result<Option<Applied>, Broken> {
        let (header, content) = record::decode(bytes)?;
        let answer = self.answer(offset, &header, content)?;
        self.first_millis.get_or_insert(header.now_millis);
        self.position = offset + 1;
        if header.kind != Kind::Piece {
            self.log_bytes += bytes.len() as u64 + RECORD_BYTES;
        }
        Ok(answer.map(|answer| Applied { origin: header.origin, number: header.number, answer }))
    }

    /// None: there is none yet, or it was given before.
    fn answer(&mut self, offset: i64, header: &Header, content: &[u8]) -> Result<Option<Answer>, Broken> {
        if self.origins.get(&header.origin).is_some_and(|origin| header.number <= origin.number) {
            return Ok(None);
        }
        let answer = match header.kind {
            Kind::Operation if header.parts == 1 => self.operate(header, content)?,
            Kind::Operation => match self.assemble(header, content) {
                Assembled::Whole(content) => self.operate(header, &content)?,
                Assembled::Waits => return Ok(None),
                Assembled::Void => Answer::Void,
            },
            Kind::Begin => Answer::Begun(self.begin(offset, header)),
            Kind::Piece => {
                if let Some(writing) = &mut self.writing
                    && writing.begin == header.about
                    && writing.pieces == header.part
                {
                    writing.pieces += 1;
                    writing.bytes += content.len() as u64;
                }
                Answer::Noted
            }
            Kind::End => {
                self.end(header);
                Answer::Noted
            }
        };
        let at_millis = self.machine.latest_millis();
        self.origins.insert(header.origin, Origin { number: header.number, at_millis });
        Ok(Some(answer))
    }

    fn operate(&mut self, header: &Header, content: &[u8]) -> Result<Answer, Broken> {
        let (operation, given) = record::operation(content)?;
        let terms =
            Terms { now_millis: header.now_millis, seed: given.seed, messages_max: given.messages_max };
        Ok(Answer::Operation(self.machine.apply(operation, terms)))
    }

    fn assemble(&mut self, header: &Header, content: &[u8]) -> Assembled {
        let partial = self.partials.get_mut(&header.origin).filter(|partial| partial.number == header.number);
        let is_last = header.part + 1 == header.parts;
        let partial = match partial {
            Some(partial) => partial,
            None if header.part == 0 => {
                let partial = Partial { number: header.number, parts: 0, content: Vec::new() };
                self.partials.entry(header.origin).insert_entry(partial).into_mut()
            }
            None if is_last => return Assembled::Void,
            None => return Assembled::Waits,
        };
        if header.part == partial.parts {
            partial.parts += 1;
            partial.content.extend_from_slice(content);
        }
        if partial.parts == header.parts || partial.content.len() > PARTIAL_BYTES_MAX {
            let whole = self.partials.remove(&header.origin).filter(|partial| partial.parts == header.parts);
            return whole.map_or(Assembled::Waits, |partial| Assembled::Whole(partial.content));
        }
        // One written again is there already, and the last is not here before all.
        Assembled::Waits
    }

    fn begin(&mut self, offset: i64, header: &Header) -> Option<Box<Begun>> {
        let now = self.machine.latest_millis().max(header.now_millis);
        if self.writing.as_ref().is_some_and(|writing| now - writing.since_millis < IMAGE_MILLIS_MAX) {
            return None;
        }
        self.partials.clear();
        self.origins.retain(|_, origin| now - origin.at_millis < ORIGIN_MILLIS_MAX);
        // The image holds the one who writes it as well.
        self.origins.insert(header.origin, Origin { number: header.number, at_millis: now });
        self.writing = Some(Writing {
            begin: offset,
            since_millis: now,
            pieces: 0,
            bytes: 0,
            bytes_before: self.log_bytes,
        });
        (header.origin == self.own).then(|| {
            let origins = self.origins.iter().map(|(origin, known)| (*origin, *known)).collect();
            Box::new(Begun { begin: offset, origins, image: self.machine.image() })
        })
    }

    fn end(&mut self, header: &Header) {
        let is_complete =
            |writing: &mut Writing| writing.begin == header.about && writing.pieces == header.parts;
        if let Some(writing) = self.writing.take_if(is_complete) {
            let previous = self.base.map_or(0, |base| base.begin);
            let (begin, bytes) = (writing.begin, writing.bytes);
            self.base = Some(Base { begin, at_millis: writing.since_millis, previous, bytes });
            self.log_bytes = self.log_bytes.saturating_sub(writing.bytes_before);
        }
    }
}

/// What a part makes of its write.
enum Assembled {
    /// It is complete.
    Whole(Vec<u8>),
    /// Others are missing.
    Waits,
    /// It was the last and the first ones do not count.
    Void,
}
