//! A sink's disk spool: segment files that are appended to, read in order, and deleted when their sink has them.
//!
//! Blocks; its owner calls it where that is allowed. After a crash it begins where it was told last that the sink has
//! everything before ([`Spool::commit`]); what was torn at an end is passed over and counted. What is in the spool is
//! older than whatever its owner holds in memory.

mod record;

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::xxh3_64;

use self::record::{HEAD_BYTES, Head};
use super::queue::Piece;

/// A segment that is as long gets no more records.
const SEGMENT_BYTES: u64 = 4 << 20;
/// The file that tells how far the sink has everything.
const CURSOR: &str = "cursor";
/// One sink may take this part of the room of all.
const SHARE: u64 = 2;

/// A place between two records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Position {
    pub(super) segment: u64,
    pub(super) offset: u64,
}

/// When what is appended is forced to the disk. A crash of the process loses nothing in either case, one of the machine
/// what was not forced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Fsync {
    /// Never: when the kernel sees fit.
    Never,
    /// Once a second.
    #[default]
    Second,
    /// With every append.
    Always,
}

/// Room that all spools of an agent share.
#[derive(Debug)]
pub(super) struct Room {
    bytes_max: u64,
    used: AtomicU64,
}

impl Room {
    pub(super) fn new(bytes_max: u64) -> Arc<Self> {
        Arc::new(Self { bytes_max, used: AtomicU64::new(0) })
    }

    fn take(&self, bytes: u64) -> bool {
        let take = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.bytes_max);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Why a piece is not in the spool.
#[derive(Debug, thiserror::Error)]
pub(super) enum AppendError {
    /// There is no room for it.
    #[error("the spool has no room; see --syslog-spool-mib")]
    Full,
    /// The file system says no.
    #[error("cannot write the spool: {0}")]
    Io(#[from] io::Error),
}

#[derive(Debug)]
struct Segment {
    number: u64,
    bytes: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Spool {
    folder: PathBuf,
    room: Arc<Room>,
    fsync: Fsync,
    /// Oldest first. Only the last one is appended to, and only while `writer` is there.
    segments: VecDeque<Segment>,
    writer: Option<File>,
    reader: Option<(u64, File)>,
    read: Position,
    committed: Position,
    next_segment: u64,
    unsynced: bool,
    /// Times that the end of a segment was found torn.
    torn: u64,
}

impl Spool {
    /// Opens the spool in a folder, made if it is missing, with what is left in it.
    ///
    /// # Errors
    /// The folder cannot be made, or something in it not be read.
    pub(super) fn open(folder: &Path, room: &Arc<Room>, fsync: Fsync) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let mut segments = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if let Some(number) = number_of(&entry.path()) {
                segments.push(Segment { number, bytes: entry.metadata()?.len() });
            }
        }
        segments.sort_unstable_by_key(|segment| segment.number);
        // What is there is there, whatever the bound is now.
        room.used.fetch_add(segments.iter().map(|segment| segment.bytes).sum(), Ordering::Relaxed);
        let first = Position { segment: segments.first().map_or(1, |segment| segment.number), offset: 0 };
        let committed = read_cursor(folder).filter(|cursor| cursor.segment == first.segment).unwrap_or(first);
        Ok(Self {
            folder: folder.to_owned(),
            room: Arc::clone(room),
            fsync,
            next_segment: segments.last().map_or(1, |segment| segment.number + 1),
            segments: segments.into(),
            writer: None,
            reader: None,
            read: committed,
            committed,
            unsynced: false,
            torn: 0,
        })
    }

    /// Bytes on the disk.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// True if there is something that was not read since the last [`Self::rewind`].
    pub(super) fn has_unread(&self) -> bool {
        self.segments
            .back()
            .is_some_and(|last| (self.read.segment, self.read.offset) < (last.number, last.bytes))
    }

    /// True if something waits for [`Self::sync`].
    pub(super) fn is_unsynced(&self) -> bool {
        self.unsynced
    }

    /// Ends of segments that were found torn since this was asked last.
    pub(super) fn take_torn(&mut self) -> u64 {
        std::mem::take(&mut self.torn)
    }

    /// Appends a piece, whole or not at all. Returns the place behind it.
    ///
    /// # Errors
    /// See [`AppendError`]; nothing has changed.
    pub(super) fn append(&mut self, piece: &Piece) -> Result<Position, AppendError> {
        let bytes = (HEAD_BYTES + piece.bytes.len()) as u64;
        if self.bytes() + bytes > self.room.bytes_max / SHARE || !self.room.take(bytes) {
            return Err(AppendError::Full);
        }
        let appended = self.write(piece, bytes);
        if appended.is_err() {
            self.room.give_back(bytes);
        }
        Ok(appended?)
    }

    fn write(&mut self, piece: &Piece, bytes: u64) -> io::Result<Position> {
        if self.segments.back().is_some_and(|last| last.bytes >= SEGMENT_BYTES) {
            self.sync()?;
            self.writer = None;
        }
        if self.writer.is_none() {
            let number = self.next_segment;
            let path = self.path(number);
            let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)?;
            self.next_segment += 1;
            if self.segments.is_empty() {
                let begin = Position { segment: number, offset: 0 };
                (self.read, self.committed) = (begin, begin);
            }
            self.segments.push_back(Segment { number, bytes: 0 });
            self.writer = Some(file);
        }
        let file = self.writer.as_mut().expect("it was just opened");
        let last = self.segments.back_mut().expect("the one that is written");
        let record = [&Head::of(piece).to_bytes()[..], &piece.bytes].concat();
        let fsync = self.fsync;
        let written = file.write_all(&record).and_then(|()| match fsync {
            Fsync::Always => file.sync_data(),
            Fsync::Never | Fsync::Second => Ok(()),
        });
        if let Err(error) = written {
            // Half a record may be there; if it cannot be cut off, readers pass over it, and this segment gets no more.
            if file.set_len(last.bytes).is_err() {
                self.writer = None;
            }
            return Err(error);
        }
        last.bytes += bytes;
        let position = Position { segment: last.number, offset: last.bytes };
        self.unsynced = fsync == Fsync::Second;
        Ok(position)
    }

    /// The oldest piece that was not read, and the place behind it.
    ///
    /// # Errors
    /// A segment cannot be opened or read.
    pub(super) fn next(&mut self) -> io::Result<Option<(Piece, Position)>> {
        while self.has_unread() {
            let Position { segment, offset } = self.read;
            let end =
                self.segments.iter().find(|found| found.number == segment).map_or(0, |found| found.bytes);
            if offset < end {
                if let Some(piece) = self.record(self.read)? {
                    self.read.offset += (HEAD_BYTES + piece.bytes.len()) as u64;
                    return Ok(Some((piece, self.read)));
                }
                self.torn += 1;
            }
            // It ends here. The next one, if this is not the last.
            match self.segments.iter().find(|found| found.number > segment) {
                Some(next) => self.read = Position { segment: next.number, offset: 0 },
                None => self.read.offset = end,
            }
        }
        Ok(None)
    }

    /// The record at a place; none if what is there is no whole one.
    fn record(&mut self, at: Position) -> io::Result<Option<Piece>> {
        let file = match &mut self.reader {
            Some((number, file)) if *number == at.segment => file,
            reader => &mut reader.insert((at.segment, File::open(self.folder.join(name(at.segment)))?)).1,
        };
        let mut head = [0; HEAD_BYTES];
        if !read_exact_at(file, &mut head, at.offset)? {
            return Ok(None);
        }
        let Some(head) = Head::read(head) else { return Ok(None) };
        let mut frames = vec![0; head.frames_bytes];
        let whole = read_exact_at(file, &mut frames, at.offset + HEAD_BYTES as u64)?;
        Ok(if whole { head.piece(frames) } else { None })
    }

    /// What is before `position` need not be read again in this connection.
    pub(super) fn skip_to(&mut self, position: Position) {
        self.read = self.read.max(position);
    }

    /// Reading begins again where the sink may lack something.
    pub(super) fn rewind(&mut self) {
        self.read = self.committed;
    }

    /// The sink has everything before `position`: segments that are done with are deleted, the rest is remembered.
    ///
    /// # Errors
    /// It cannot be remembered. After a crash more is sent again.
    pub(super) fn commit(&mut self, position: Position) -> io::Result<()> {
        self.committed = self.committed.max(position);
        self.read = self.read.max(self.committed);
        while let Some(first) = self.segments.front() {
            let is_last = self.segments.len() == 1;
            let done = self.committed.segment > first.number
                || (is_last && self.committed == Position { segment: first.number, offset: first.bytes });
            if !done {
                break;
            }
            if is_last {
                self.writer = None;
                self.unsynced = false;
            }
            self.reader.take_if(|(number, _)| *number == first.number);
            fs::remove_file(self.path(first.number))?;
            self.room.give_back(first.bytes);
            self.segments.pop_front();
        }
        if self.segments.is_empty() { Ok(()) } else { write_cursor(&self.folder, self.committed) }
    }

    /// Forces what was appended to the disk.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.unsynced)
            && let Some(file) = &self.writer
        {
            file.sync_data()?;
        }
        Ok(())
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(name(number))
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.room.give_back(self.bytes());
    }
}

fn name(number: u64) -> String {
    format!("{number:016x}.seg")
}

fn number_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_suffix(".seg")?;
    u64::from_str_radix(name, 16).ok()
}

/// False if the file ends before.
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<bool> {
    match file.read_exact_at(buffer, offset) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// The cursor: segment, offset, and a checksum of both, each eight bytes.
fn write_cursor(folder: &Path, position: Position) -> io::Result<()> {
    let mut bytes = [position.segment.to_le_bytes(), position.offset.to_le_bytes()].concat();
    bytes.extend_from_slice(&xxh3_64(&bytes).to_le_bytes());
    let new = folder.join("cursor.new");
    fs::write(&new, bytes)?;
    fs::rename(new, folder.join(CURSOR))
}

fn read_cursor(folder: &Path) -> Option<Position> {
    let mut bytes = [0; 24];
    File::open(folder.join(CURSOR)).ok()?.read_exact(&mut bytes).ok()?;
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    (word(16) == xxh3_64(&bytes[..16])).then(|| Position { segment: word(0), offset: word(8) })
}

#[cfg(test)]
mod tests;
