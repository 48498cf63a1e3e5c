//! The rules of a connection: which streams there are, what each may send, what is to be written.
//!
//! Does no I/O and reads no clock: bytes that came are put in, bytes to be written are taken out of the outbox. Who
//! waits for something leaves a waker.
//!
//! Invariant: what is kept of the peer's bytes is at most [`CREDIT_BYTES`] for each of at most [`STREAMS_MAX`] streams.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::task::{Context, Poll, Waker};

use bytes::{Buf as _, Bytes, BytesMut};

use super::frame::{HEAD_BYTES, Head, Kind, PAYLOAD_BYTES_MAX};
use super::outbox::Outbox;
use super::stream::Inbox;
use super::{
    CREDIT_BYTES, Closed, OUT_BYTES_MAX, PREFACE, REASON_BYTES_MAX, STREAMS_MAX, StreamError, VERSION,
    Violation,
};

/// Bytes before the first frame.
const PREFACE_BYTES: usize = PREFACE.len() + 1;

/// Which end of the connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Opens streams.
    Client,
    /// Takes them.
    Server,
}

/// One stream, as this side sees it.
#[derive(Debug)]
struct Stream {
    inbox: Inbox,
    /// All has come.
    received_end: bool,
    /// Bytes that may still come.
    receivable_bytes: u32,
    /// Bytes that were taken since credit was last granted.
    taken_bytes: u32,
    /// Bytes that may still be sent.
    sendable_bytes: u32,
    /// Something was sent, so that what follows waits its turn.
    begun: bool,
    /// Place of its first byte in all that is written.
    begins_at: u64,
    /// Nothing more will come.
    ended: Option<StreamError>,
    /// Waits for bytes.
    reader: Option<Waker>,
    /// Waits to write, or for the peer to give up.
    owner: Option<Waker>,
}

impl Stream {
    fn new(begins_at: u64) -> Self {
        Self {
            inbox: Inbox::default(),
            received_end: false,
            receivable_bytes: CREDIT_BYTES,
            taken_bytes: 0,
            sendable_bytes: CREDIT_BYTES,
            begun: false,
            begins_at,
            ended: None,
            reader: None,
            owner: None,
        }
    }

    fn wake(&mut self) {
        for waker in [self.reader.take(), self.owner.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

/// Keeps a waker of the task that waits last.
fn wait(place: &mut Option<Waker>, context: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(context.waker()),
        None => *place = Some(context.waker().clone()),
    }
}

/// Hashes stream ids: they rise by one, so they are spread already.
#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, id: u32) {
        // Low bits choose the place in the table, the highest ones tell entries apart.
        self.0 = u64::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// One end of a connection.
#[derive(Debug)]
pub(super) struct Connection {
    side: Side,
    streams: HashMap<u32, Stream, BuildHasherDefault<IdHasher>>,
    /// The last stream that was opened or taken.
    last_id: u32,
    /// Streams that the peer opened and nobody took up yet.
    incoming: VecDeque<u32>,
    /// Bytes to be written.
    pub(super) out: Outbox,
    /// Streams whose sender waits until less waits to be written.
    crowded: VecDeque<u32>,
    preface_read: bool,
    /// No further stream is opened or taken.
    leaving: bool,
    /// Why the peer takes no more, in its words.
    told: Option<String>,
    closed: Option<Closed>,
    driver: Option<Waker>,
}

impl Connection {
    pub(super) fn new(side: Side) -> Self {
        let mut out = Outbox::default();
        out.push(&PREFACE);
        out.push(&[VERSION]);
        Self {
            side,
            streams: HashMap::default(),
            last_id: 0,
            incoming: VecDeque::new(),
            out,
            crowded: VecDeque::new(),
            preface_read: false,
            leaving: false,
            told: None,
            closed: None,
            driver: None,
        }
    }

    // What streams ask for.

    /// True if a stream can be opened now.
    pub(super) fn has_room(&self) -> bool {
        self.is_open()
            && self.streams.len() < STREAMS_MAX
            && self.out.len() < OUT_BYTES_MAX
            && self.last_id < u32::MAX
    }

    /// True while streams are opened or taken.
    pub(super) fn is_open(&self) -> bool {
        !self.leaving && self.closed.is_none()
    }

    /// Opens a stream, for which there must be [room](Self::has_room), with the beginning of `chunk`, which is not empty,
    /// and takes off that what is sent.
    pub(super) fn open(&mut self, chunk: &mut Bytes, end: bool) -> u32 {
        debug_assert!(self.has_room() && !chunk.is_empty());
        self.last_id += 1;
        let id = self.last_id;
        let mut stream = Stream::new(self.out.position());
        Self::send(&mut self.out, id, &mut stream, chunk, end);
        self.streams.insert(id, stream);
        self.wake_driver();
        id
    }

    /// Sends `chunk`, and the end behind it if so wanted. Ready when all of it is on its way.
    pub(super) fn poll_send(
        &mut self,
        id: u32,
        chunk: &mut Bytes,
        end: bool,
        context: &Context<'_>,
    ) -> Poll<Result<(), StreamError>> {
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Ready(Err(self.end_of_unknown())) };
        if let Some(error) = &stream.ended {
            return Poll::Ready(Err(error.clone()));
        }
        while !chunk.is_empty() || end {
            let crowded = stream.begun && self.out.len() >= OUT_BYTES_MAX;
            if crowded || (stream.sendable_bytes == 0 && !chunk.is_empty()) {
                wait(&mut stream.owner, context);
                if crowded && !self.crowded.contains(&id) {
                    self.crowded.push_back(id);
                }
                self.wake_driver();
                return Poll::Pending;
            }
            if Self::send(&mut self.out, id, stream, chunk, end) {
                if self.side == Side::Server {
                    // The answer's end is the stream's.
                    self.streams.remove(&id);
                }
                break;
            }
        }
        self.wake_driver();
        Poll::Ready(Ok(()))
    }

    /// Sends one frame. True if it was the last.
    fn send(out: &mut Outbox, id: u32, stream: &mut Stream, chunk: &mut Bytes, end: bool) -> bool {
        let payload_bytes = chunk.len().min(PAYLOAD_BYTES_MAX).min(stream.sendable_bytes as usize);
        let is_last = end && payload_bytes == chunk.len();
        let kind = if is_last { Kind::End } else { Kind::Data };
        out.push(&Head { kind, stream: id, payload_bytes }.encode());
        if payload_bytes == chunk.len() {
            out.push_piece(std::mem::take(chunk));
        } else {
            out.push_piece(chunk.split_to(payload_bytes));
        }
        stream.sendable_bytes -= payload_bytes as u32;
        stream.begun = true;
        is_last
    }

    /// The next piece of what the peer sent; `None` at its end.
    pub(super) fn poll_receive(
        &mut self,
        id: u32,
        context: &Context<'_>,
    ) -> Poll<Option<Result<Bytes, StreamError>>> {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Poll::Ready(Some(Err(self.end_of_unknown())));
        };
        if let Some(piece) = stream.inbox.pop() {
            stream.taken_bytes += piece.len() as u32;
            if stream.taken_bytes >= CREDIT_BYTES / 2 && !stream.received_end && stream.ended.is_none() {
                let grant = std::mem::take(&mut stream.taken_bytes);
                stream.receivable_bytes += grant;
                self.out
                    .push(&Head { kind: Kind::Credit, stream: id, payload_bytes: size_of::<u32>() }.encode());
                self.out.push(&grant.to_be_bytes());
                self.wake_driver();
            }
            return Poll::Ready(Some(Ok(piece)));
        }
        if stream.received_end {
            return Poll::Ready(None);
        }
        if let Some(error) = &stream.ended {
            return Poll::Ready(Some(Err(error.clone())));
        }
        wait(&mut stream.reader, context);
        Poll::Pending
    }

    /// True if all that the peer will ever send of the stream has come.
    pub(super) fn has_all(&self, id: u32) -> bool {
        self.streams.get(&id).is_some_and(|stream| stream.received_end)
    }

    /// Ready once the peer has given up the stream or is gone.
    pub(super) fn poll_gone(&mut self, id: u32, context: &Context<'_>) -> Poll<()> {
        match self.streams.get_mut(&id) {
            Some(stream) if stream.ended.is_none() => {
                wait(&mut stream.owner, context);
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }

    /// Ends the stream for this side; the peer is told if it has not ended.
    pub(super) fn drop_stream(&mut self, id: u32) {
        let Some(stream) = self.streams.remove(&id) else { return };
        let ended = match self.side {
            Side::Client => stream.received_end,
            // It would be gone.
            Side::Server => false,
        };
        if !ended && stream.ended.is_none() && self.closed.is_none() {
            self.out.push(&Head { kind: Kind::Reset, stream: id, payload_bytes: 0 }.encode());
        }
        // A connection without streams may be one that ends.
        self.wake_driver();
    }

    fn end_of_unknown(&self) -> StreamError {
        self.closed.clone().map_or(StreamError::Reset, StreamError::Lost)
    }

    // What the driver asks for.

    /// Keeps the waker of the driver's task.
    pub(super) fn set_driver(&mut self, context: &Context<'_>) {
        wait(&mut self.driver, context);
    }

    pub(super) fn wake_driver(&self) {
        if let Some(driver) = &self.driver {
            driver.wake_by_ref();
        }
    }

    /// Wakes who waited for less to be written.
    pub(super) fn wake_crowded(&mut self) {
        if self.out.len() >= OUT_BYTES_MAX {
            return;
        }
        while let Some(id) = self.crowded.pop_front() {
            if let Some(waker) = self.streams.get_mut(&id).and_then(|stream| stream.owner.take()) {
                waker.wake();
            }
        }
    }

    /// The next stream that the peer opened and still wants.
    pub(super) fn next_incoming(&mut self) -> Option<u32> {
        while let Some(id) = self.incoming.pop_front() {
            if self.streams.contains_key(&id) {
                return Some(id);
            }
        }
        None
    }

    /// True if more may be read. A client reads always: what it then has to write is bounded by what it opened.
    pub(super) fn may_read(&self) -> bool {
        self.side == Side::Client || self.out.len() < OUT_BYTES_MAX
    }

    /// True if the connection has nothing to do and gets nothing new.
    pub(super) fn is_done(&self) -> bool {
        self.leaving && self.is_quiet() && self.out.is_empty()
    }

    /// True if there is no stream.
    pub(super) fn is_quiet(&self) -> bool {
        self.streams.is_empty()
    }

    /// Takes or opens no more streams; a server says so to its client.
    pub(super) fn leave(&mut self) {
        if self.is_open() {
            self.leaving = true;
            if self.side == Side::Server {
                self.push_go_away("");
            }
            self.wake_driver();
        }
    }

    fn push_go_away(&mut self, reason: &str) {
        let reason = &reason.as_bytes()[..reason.len().min(REASON_BYTES_MAX)];
        let last = if self.side == Side::Server { self.last_id } else { 0 };
        self.out.push(&Head { kind: Kind::GoAway, stream: last, payload_bytes: reason.len() }.encode());
        self.out.push(reason);
    }

    /// Ends everything. After a violation the outbox holds what the peer is told, else nothing.
    pub(super) fn close(&mut self, mut how: Closed) {
        if self.closed.is_some() {
            return;
        }
        if let (Closed::ByPeer | Closed::Failed(_), Some(told)) = (&how, self.told.take()) {
            how = Closed::Told(told);
        }
        let refused = matches!(how, Closed::Violation(Violation::Preface | Violation::Version { .. }));
        for stream in self.streams.values_mut() {
            // A peer that does not even speak this has read no call. After any other violation it is told of that, behind
            // what waits to be written.
            let untouched = refused
                || (!matches!(how, Closed::Violation(_)) && stream.begins_at >= self.out.written_bytes());
            // What has come whole stays; what a server still has to say is lost in any case.
            let is_whole = stream.received_end && self.side == Side::Client;
            if !is_whole && stream.ended.is_none() {
                let error = if untouched { StreamError::NotTaken } else { StreamError::Lost };
                stream.ended = Some(error(how.clone()));
            }
            stream.wake();
        }
        self.incoming.clear();
        if let Closed::Violation(violation) = &how {
            self.push_go_away(&violation.to_string());
        } else {
            self.out.clear();
        }
        self.closed = Some(how);
    }

    /// Reads what came; whole frames are taken off `input`.
    ///
    /// # Errors
    /// A broken rule. The connection must be closed then.
    pub(super) fn receive(&mut self, input: &mut BytesMut) -> Result<(), Violation> {
        if !self.preface_read {
            let begun = input.len().min(PREFACE.len());
            if input[..begun] != PREFACE[..begun] {
                return Err(Violation::Preface);
            }
            let Some(&theirs) = input.get(PREFACE.len()) else { return Ok(()) };
            if theirs != VERSION {
                return Err(Violation::Version { theirs });
            }
            input.advance(PREFACE_BYTES);
            self.preface_read = true;
        }
        while let Some(head) = Head::decode(input)? {
            if input.len() < HEAD_BYTES + head.payload_bytes {
                break;
            }
            input.advance(HEAD_BYTES);
            self.receive_frame(head, input)?;
        }
        Ok(())
    }

    /// Reads a frame whose payload is at the front of `input`, and takes that off.
    fn receive_frame(&mut self, head: Head, input: &mut BytesMut) -> Result<(), Violation> {
        let Head { kind, stream: id, payload_bytes } = head;
        if kind == Kind::GoAway {
            let reason = String::from_utf8_lossy(&input[..payload_bytes]).replace(char::is_control, " ");
            input.advance(payload_bytes);
            self.told_to_leave(id, reason);
            return Ok(());
        }
        if id > self.last_id {
            let opens = self.side == Side::Server && matches!(kind, Kind::Data | Kind::End);
            if self.side == Side::Server && self.leaving {
                // It was told, or will be.
                input.advance(payload_bytes);
                return Ok(());
            }
            if !opens || id != self.last_id + 1 {
                return Err(Violation::Stream { stream: id });
            }
            if self.streams.len() >= STREAMS_MAX {
                return Err(Violation::Streams);
            }
            self.last_id = id;
            self.streams.insert(id, Stream::new(0));
            self.incoming.push_back(id);
        }
        let Some(stream) = self.streams.get_mut(&id) else {
            // It has ended here; the peer did not know yet.
            input.advance(payload_bytes);
            return Ok(());
        };
        match kind {
            Kind::Data | Kind::End => {
                if stream.received_end {
                    return Err(Violation::Ended { stream: id });
                }
                stream.receivable_bytes = stream
                    .receivable_bytes
                    .checked_sub(payload_bytes as u32)
                    .ok_or(Violation::Credit { stream: id })?;
                stream.inbox.push(&input[..payload_bytes]);
                input.advance(payload_bytes);
                stream.received_end = kind == Kind::End;
                if let Some(reader) = stream.reader.take() {
                    reader.wake();
                }
            }
            Kind::Credit => {
                let grant = input.get_u32();
                let sum = stream.sendable_bytes.checked_add(grant).filter(|sum| *sum <= CREDIT_BYTES);
                stream.sendable_bytes = sum.ok_or(Violation::Grant { stream: id })?;
                if let Some(owner) = stream.owner.take() {
                    owner.wake();
                }
            }
            Kind::Reset => {
                if !stream.received_end || self.side == Side::Server {
                    stream.ended = Some(StreamError::Reset);
                }
                stream.wake();
                if self.side == Side::Server {
                    // The client counts it no longer.
                    self.streams.remove(&id);
                }
            }
            Kind::GoAway => unreachable!("was read above"),
        }
        Ok(())
    }

    fn told_to_leave(&mut self, last: u32, reason: String) {
        self.leaving = true;
        let how = if reason.is_empty() { Closed::Draining } else { Closed::Told(reason.clone()) };
        if self.side == Side::Client {
            for (_, stream) in self.streams.iter_mut().filter(|(id, _)| **id > last) {
                stream.ended.get_or_insert(StreamError::NotTaken(how.clone()));
                stream.wake();
            }
        }
        if !reason.is_empty() {
            self.told = Some(reason);
        }
    }
}
