//! What one open queue keeps in memory, whatever its backend.

use std::sync::atomic::{AtomicI64, Ordering};
#[cfg(any(feature = "sql", feature = "redis"))]
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kiln_shared::queue::WakeSource;
use tokio::sync::Notify;

use super::operation::Effect;
#[cfg(feature = "sql")]
use super::room::{Room, RoomCount};
use crate::Options;
use crate::clock::QueueTime;
#[cfg(any(feature = "sql", feature = "redis"))]
use crate::fair::Turns;
#[cfg(feature = "sql")]
use crate::fair::Window;

/// Leases and deadlines that ended are looked for at most this often by those who reserve.
#[cfg(any(feature = "sql", feature = "redis"))]
const SWEEP_EVERY_MILLIS: i64 = 250;

/// Shared by the queue's operations and what runs beside them.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) time: QueueTime,
    pub(crate) wake: WakeSource,
    /// Tells the tender that it is to look earlier than it meant to.
    pub(crate) sooner: Notify,
    messages_max: Option<u64>,
    #[cfg(any(feature = "sql", feature = "redis"))]
    turns: Mutex<Turns>,
    #[cfg(feature = "sql")]
    window: Mutex<Window>,
    #[cfg(feature = "sql")]
    room: RoomCount,
    #[cfg(any(feature = "sql", feature = "redis"))]
    swept_at: AtomicI64,
    /// When the tender looks next, in milliseconds; the largest while it looks.
    look_at: AtomicI64,
}

impl Core {
    pub(crate) fn new(options: Options) -> Self {
        Self {
            time: QueueTime::new(options.clock),
            wake: WakeSource::default(),
            sooner: Notify::new(),
            messages_max: options.messages_max,
            #[cfg(any(feature = "sql", feature = "redis"))]
            turns: Mutex::default(),
            #[cfg(feature = "sql")]
            window: Mutex::default(),
            #[cfg(feature = "sql")]
            room: RoomCount::default(),
            #[cfg(any(feature = "sql", feature = "redis"))]
            swept_at: AtomicI64::new(i64::MIN),
            look_at: AtomicI64::new(i64::MAX),
        }
    }

    #[cfg(any(feature = "sql", feature = "redis"))]
    pub(crate) fn with_turns<T>(&self, work: impl FnOnce(&mut Turns) -> T) -> T {
        work(&mut self.turns.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Which lanes the next reserve looks at.
    #[cfg(feature = "sql")]
    pub(crate) fn window(&self) -> Window {
        self.window.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has the next reserve look at these.
    #[cfg(feature = "sql")]
    pub(crate) fn look_from(&self, window: Window) {
        *self.window.lock().unwrap_or_else(PoisonError::into_inner) = window;
    }

    /// True, once in a while: it is time to look for what ended.
    #[cfg(any(feature = "sql", feature = "redis"))]
    pub(crate) fn is_time_to_sweep(&self, now_millis: i64) -> bool {
        let swept_at = self.swept_at.load(Ordering::Relaxed);
        // A clock that was set back must not stop it.
        let is_time = now_millis.saturating_sub(swept_at) >= SWEEP_EVERY_MILLIS || now_millis < swept_at;
        if is_time {
            self.swept_at.store(now_millis, Ordering::Relaxed);
        }
        is_time
    }

    /// Most messages that may wait or run.
    #[cfg(any(feature = "redis", feature = "kafka"))]
    pub(crate) fn messages_max(&self) -> Option<u64> {
        self.messages_max
    }

    /// Asks for room for so many messages.
    #[cfg(feature = "sql")]
    pub(crate) fn room_for(&self, messages: u64) -> Room {
        self.messages_max.map_or(Room::Enough, |messages_max| self.room.ask(messages, messages_max))
    }

    /// Takes over a count of messages made just now.
    #[cfg(feature = "sql")]
    pub(crate) fn counted(&self, messages: u64) {
        self.room.counted(messages);
    }

    /// Tells those who wait what a committed operation changed.
    pub(crate) fn tell(&self, effect: Effect) {
        match effect {
            Effect::Nothing => {}
            Effect::Due => self.wake.wake(),
            Effect::Later(due_at) => {
                if due_at < self.look_at.fetch_min(due_at, Ordering::Relaxed) {
                    self.sooner.notify_one();
                }
            }
        }
    }

    /// The tender looks, and may or may not find what is stored meanwhile: whatever is told from now on counts.
    pub(crate) fn looks(&self) {
        self.look_at.store(i64::MAX, Ordering::Relaxed);
    }

    /// The tender looks then, or when something told of is due, whatever comes first.
    pub(crate) fn looks_by(&self, millis: i64) {
        self.look_at.fetch_min(millis, Ordering::Relaxed);
    }

    /// How long until the tender looks; [`Self::sooner`] tells when it gets shorter.
    pub(crate) fn until_look(&self) -> Duration {
        let millis = self.look_at.load(Ordering::Relaxed).saturating_sub(self.time.now_millis());
        Duration::from_millis(millis.max(0).unsigned_abs())
    }
}
