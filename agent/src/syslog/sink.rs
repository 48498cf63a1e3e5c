//! The owner of one sink: connects, writes, spools while it cannot, and sends again what may not have arrived.
//!
//! One order holds everywhere: the spool's messages are older than the queue's. Pieces that were written straight from the
//! queue are in the window alone, and only while the spool has nothing unread; before anything newer is spooled, they are.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use kiln_shared::syslog::Target;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::connection::{Connection, Kernel, Reading, Writing, connect};
use super::queue::{Piece, Queue};
use super::spool::{AppendError, Position, Spool};
use super::status::Status;
use super::window::Window;
use crate::link::Backoff;

/// How often a sink is looked after: what may be let go, spooled, forced to the disk.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often the disk is asked to keep what was spooled.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// A connection is believed when it lasted as long.
const UP_AFTER: Duration = Duration::from_millis(500);
/// A sink that takes nothing for this long is down, though its connection is open.
const STALLED_AFTER: Duration = Duration::from_secs(5);
/// How long an agent that stops goes on sending.
const DRAIN_MAX: Duration = Duration::from_secs(3);
/// How long it waits for a sink to close the connection, which says that it has read everything.
const LAST_WORD_MAX: Duration = Duration::from_secs(2);
/// Nobody used a sink for this long, and it has everything: it is forgotten.
const FORGET_AFTER: Duration = Duration::from_mins(1);
/// Most pieces that are spooled in one go.
const SPILL_PIECES_MAX: usize = 64;

/// How a connection ended.
enum End {
    /// By itself.
    Lost(io::Error),
    /// Because the agent stops.
    Stopped,
    /// Because nobody needs the sink.
    Forgotten,
}

/// Done when the agent has stopped for [`DRAIN_MAX`].
type Stopping = Pin<Box<dyn Future<Output = ()> + Send>>;

/// See the module.
pub(super) struct Sink {
    target: Target,
    queue: Arc<Queue>,
    shared: Arc<Shared>,
    stop: CancellationToken,
    status: Status,
    folder: Option<PathBuf>,
    spool: Option<Spool>,
    window: Window,
    /// How far the spool is done with, which it was not told yet.
    done: Option<Position>,
    looked: Instant,
    next_look: Instant,
    next_sync: Instant,
    used: Instant,
}

impl Sink {
    /// A sink with the spool in `folder`, if it has one.
    pub(super) fn new(
        target: Target,
        queue: Arc<Queue>,
        shared: Arc<Shared>,
        folder: Option<PathBuf>,
    ) -> Self {
        let now = Instant::now();
        Self {
            status: Status::new(&target),
            stop: shared.stop.clone(),
            target,
            queue,
            shared,
            folder,
            spool: None,
            window: Window::default(),
            done: None,
            looked: now,
            next_look: now,
            next_sync: now,
            used: now,
        }
    }

    /// Ships until the agent stops or nobody needs the sink.
    pub(super) async fn run(mut self) {
        self.open_spool().await;
        let stop = self.stop.clone();
        let mut stopping: Stopping = Box::pin(async move {
            stop.cancelled().await;
            sleep(DRAIN_MAX).await;
        });
        let mut backoff = Backoff::new();
        let mut pause = Duration::ZERO;
        let mut connections = 0_u64;
        loop {
            let connection = match self.away(pause).await {
                Ok(connection) => connection,
                Err(End::Lost(error)) => {
                    self.status.down(&error);
                    pause = backoff.pause();
                    continue;
                }
                Err(End::Stopped) => break,
                Err(End::Forgotten) => return self.forget().await,
            };
            connections += 1;
            if connections > 1 {
                self.status.connected_again();
            }
            let Connection { mut reading, mut writing, kernel } = connection;
            let began = Instant::now();
            match self.connected(&mut reading, &mut writing, &kernel, &mut stopping).await {
                End::Lost(error) => {
                    self.status.down(&error);
                    self.lost();
                    backoff.held(began.elapsed());
                    pause = backoff.pause();
                }
                End::Stopped => {
                    self.say_goodbye(reading, writing).await;
                    break;
                }
                End::Forgotten => return self.forget().await,
            }
        }
        self.keep().await;
    }

    /// Waits, then connects; spools meanwhile.
    async fn away(&mut self, pause: Duration) -> Result<Connection, End> {
        let (target, shared) = (self.target.clone(), Arc::clone(&self.shared));
        let mut attempt = Box::pin(async move {
            sleep(pause).await;
            connect(&target, &shared.authorities).await
        });
        loop {
            tokio::select! {
                biased; // whatever else is to do, a stop is not delayed
                () = self.stop.cancelled() => return Err(End::Stopped),
                // Polled to its end.
                connected = &mut attempt => return connected.map_err(End::Lost),
                // Cancel-safe: a time.
                () = sleep_until(self.next_look) => {
                    self.spill().await;
                    self.look(None).await;
                    if self.is_forgotten() {
                        return Err(End::Forgotten);
                    }
                }
            }
        }
    }

    /// Writes until the connection ends.
    async fn connected(
        &mut self,
        reading: &mut Reading,
        writing: &mut Writing,
        kernel: &Kernel,
        stopping: &mut Stopping,
    ) -> End {
        let began = Instant::now();
        self.looked = began;
        loop {
            let now = Instant::now();
            if now >= self.next_look {
                if now - began >= UP_AFTER {
                    self.status.up();
                }
                self.look(Some(kernel.unacknowledged())).await;
                if self.is_forgotten() {
                    return End::Forgotten;
                }
            }
            if self.queue.is_filling() {
                self.spill().await;
            }
            if self.stop.is_cancelled() && self.has_unread() {
                // It does not matter when the rest of the spool is sent.
                return End::Stopped;
            }
            let (piece, position) = match self.next_piece().await {
                Ok(Some(next)) => next,
                Err(error) => return End::Lost(error),
                Ok(None) => {
                    tokio::select! {
                        biased; // a connection that is closed is not written to
                        closed = reading.closed() => return End::Lost(closed_by_sink(closed)),
                        // All are cancel-safe: they tell of something that stays so.
                        () = self.stop.cancelled() => return End::Stopped,
                        () = self.queue.filled() => {}
                        () = sleep_until(self.next_look) => {}
                    }
                    continue;
                }
            };
            self.used = now;
            self.window.writing(piece.clone(), position);
            // What is sent in part counts, as it does among what is sent again.
            self.status.sent(piece.messages);
            if let Err(end) = self.write(&piece, reading, writing, kernel, stopping).await {
                return end;
            }
            let done = if writing.is_stream() { self.window.shrink() } else { self.window.arrived() };
            self.done = done.or(self.done);
        }
    }

    /// Writes one piece, however long that takes.
    async fn write(
        &mut self,
        piece: &Piece,
        reading: &mut Reading,
        writing: &mut Writing,
        kernel: &Kernel,
        stopping: &mut Stopping,
    ) -> Result<(), End> {
        let began = Instant::now();
        let mut write = std::pin::pin!(writing.write(piece));
        loop {
            tokio::select! {
                biased; // what can be written is
                // Never dropped half-way but with its connection.
                written = &mut write => return written.map_err(End::Lost),
                // Cancel-safe, as they say.
                closed = reading.closed() => return Err(End::Lost(closed_by_sink(closed))),
                () = &mut *stopping => return Err(End::Stopped),
                () = sleep_until(self.next_look) => {
                    // What of the piece is not in the kernel is not acknowledged either.
                    self.look(Some(kernel.unacknowledged().saturating_add(piece.bytes.len()))).await;
                    if self.queue.is_filling() {
                        self.spill().await;
                    }
                    if began.elapsed() >= STALLED_AFTER {
                        self.status.down(&"its connection is open and it takes nothing");
                    }
                }
            }
        }
    }

    /// The oldest piece: the spool's before the queue's.
    async fn next_piece(&mut self) -> io::Result<Option<(Piece, Option<Position>)>> {
        if self.has_unread() {
            let next = self.with_spool(|spool| (spool.next(), spool.take_torn())).await;
            if let Some((next, torn)) = next {
                self.status.torn(torn);
                let next =
                    next.map_err(|error| io::Error::other(format!("cannot read the spool: {error}")))?;
                if let Some((piece, position)) = next {
                    return Ok(Some((piece, Some(position))));
                }
            }
        }
        Ok(self.queue.pop().map(|piece| (piece, None)))
    }

    /// What the sink may lack comes before everything else again.
    fn lost(&mut self) {
        let unsure = self.window.lost();
        self.status.resent(unsure.messages);
        self.queue.put_back(unsure.pieces);
        if let Some(spool) = &mut self.spool {
            spool.rewind();
            if let Some(done) = self.done {
                spool.skip_to(done);
            }
        }
    }

    /// Moves what waits into the spool, as far as that takes it.
    async fn spill(&mut self) {
        if self.window.first_unspooled().is_none() && self.queue.bytes() == 0 {
            return;
        }
        let (mut window, queue) = (std::mem::take(&mut self.window), Arc::clone(&self.queue));
        let spilled = self
            .with_spool(move |spool| {
                let (spooled, problem) = spill(spool, &mut window, &queue);
                (window, spooled, problem)
            })
            .await;
        if let Some((window, spooled, problem)) = spilled {
            self.window = window;
            self.status.spooled(spooled);
            if let Some(problem) = problem {
                self.status.spool_fails(&problem);
            }
        }
    }

    /// Looks after everything but the connection. `unacknowledged` bytes are in the kernel, if there is one.
    async fn look(&mut self, unacknowledged: Option<usize>) {
        let now = Instant::now();
        if let Some(unacknowledged) = unacknowledged {
            let done = self.window.look(unacknowledged, now - self.looked);
            self.done = done.or(self.done);
        }
        (self.looked, self.next_look) = (now, now + LOOK_EVERY);
        let sync = now >= self.next_sync;
        if sync {
            self.next_sync = now + SYNC_EVERY;
        }
        let done = self.done.take();
        if self.spool.as_ref().is_some_and(|spool| done.is_some() || (sync && spool.is_unsynced())) {
            self.settle(done).await;
        }
        let spool_bytes = self.spool.as_ref().map_or(0, Spool::bytes);
        self.status.look(self.queue.take_dropped(), self.queue.bytes(), spool_bytes);
    }

    /// Tells the spool what it is done with, and forces it to the disk.
    async fn settle(&mut self, done: Option<Position>) {
        let settled = self.with_spool(move |spool| {
            if let Some(done) = done {
                spool.commit(done)?;
            }
            spool.sync()
        });
        if let Some(Err(error)) = settled.await {
            self.status.spool_fails(&AppendError::Io(error));
        }
    }

    fn has_unread(&self) -> bool {
        self.spool.as_ref().is_some_and(Spool::has_unread)
    }

    /// True if the sink has everything, nobody has used it for long, and nobody can find it any more.
    fn is_forgotten(&mut self) -> bool {
        let idle = self.window.is_empty() && self.queue.bytes() == 0 && !self.has_unread();
        idle && self.used.elapsed() >= FORGET_AFTER && self.shared.forget(&self.target, &self.queue)
    }

    async fn open_spool(&mut self) {
        let Some(folder) = self.folder.clone() else { return };
        let (shared, url) = (Arc::clone(&self.shared), self.target.to_string());
        let opened = tokio::task::spawn_blocking(move || {
            let spool = Spool::open(&folder, &shared.room, shared.config.fsync)?;
            std::fs::write(folder.join(super::URL_FILE), url)?;
            Ok::<_, io::Error>(spool)
        });
        match opened.await {
            Ok(Ok(spool)) => self.spool = Some(spool),
            Ok(Err(error)) => self.status.spool_fails(&AppendError::Io(error)),
            Err(error) => self.status.spool_fails(&error),
        }
    }

    /// Does something with the spool where blocking is allowed. None if there is no spool. Not cancel-safe.
    async fn with_spool<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Spool) -> T + Send + 'static,
    ) -> Option<T> {
        let mut spool = self.spool.take()?;
        let worked = tokio::task::spawn_blocking(move || {
            let result = work(&mut spool);
            (spool, result)
        });
        match worked.await {
            Ok((spool, result)) => {
                self.spool = Some(spool);
                Some(result)
            }
            Err(error) => {
                self.status.spool_fails(&error);
                None
            }
        }
    }

    /// Tells the sink that nothing more comes; that it closes its end in turn proves that it has read everything.
    async fn say_goodbye(&mut self, mut reading: Reading, mut writing: Writing) {
        let goodbye = async {
            writing.end().await?;
            reading.closed().await
        };
        if let Ok(Ok(())) = timeout(LAST_WORD_MAX, goodbye).await {
            self.done = self.window.arrived().or(self.done);
        }
    }

    /// Keeps for the next life of the agent what the sink may lack.
    async fn keep(&mut self) {
        self.lost();
        loop {
            let before = self.queue.bytes();
            self.spill().await;
            if self.queue.bytes() == 0 || self.queue.bytes() == before {
                break;
            }
        }
        let done = self.done.take();
        self.settle(done).await;
        let mut dropped = self.queue.take_dropped();
        while let Some(piece) = self.queue.pop() {
            dropped += piece.messages;
        }
        self.status.look(dropped, 0, self.spool.as_ref().map_or(0, Spool::bytes));
    }

    /// Leaves nothing of a sink that nobody needs.
    async fn forget(mut self) {
        drop(self.spool.take());
        if let Some(folder) = self.folder.take() {
            let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(folder)).await;
            if let Ok(Err(error)) = removed {
                tracing::debug!(sink = %self.target, %error, "the folder of a syslog spool stays");
            }
        }
    }
}

fn closed_by_sink(closed: io::Result<()>) -> io::Error {
    let by_itself = || io::Error::new(io::ErrorKind::UnexpectedEof, "the sink closed the connection");
    closed.err().unwrap_or_else(by_itself)
}

/// Appends what is written and perhaps lost, then what waits, until all is in the spool or it takes no more. Returns how
/// many messages it took.
fn spill(spool: &mut Spool, window: &mut Window, queue: &Queue) -> (u64, Option<AppendError>) {
    let mut spooled = 0;
    while let Some(piece) = window.first_unspooled() {
        match spool.append(piece) {
            Ok(position) => {
                spooled += piece.messages;
                window.first_spooled(position);
                // It was written; only a lost connection makes it be read.
                spool.skip_to(position);
            }
            Err(error) => return (spooled, Some(error)),
        }
    }
    for _ in 0..SPILL_PIECES_MAX {
        let Some(piece) = queue.pop() else { break };
        match spool.append(&piece) {
            Ok(_) => spooled += piece.messages,
            Err(error) => {
                queue.put_back(vec![piece]);
                return (spooled, Some(error));
            }
        }
    }
    (spooled, None)
}
