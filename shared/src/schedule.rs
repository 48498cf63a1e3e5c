//! When a schedule's ticks come, and which of them are due.
//!
//! Pure: the time is passed in, so that clocks that jump are tests. Ticks are whole seconds. What happens when clocks
//! are put forward or back is as in the Open Cron Pattern Specification (and Vixie cron): a fixed time of day that a
//! day lacks comes right after the gap and one that a day has twice comes once, while steps and wildcards follow the
//! clock on the wall, through both passes of a repeated hour.
//! Invariant: ticks are due in their order, and the next one never before the one before it.

use std::time::Duration;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use xxhash_rust::xxh3::xxh3_64;

use crate::ids::{ID_BYTES, TriggerId};

/// A tick that is due for longer than this was missed: nobody was there to fire it.
pub const ON_TIME: SignedDuration = SignedDuration::from_secs(30);
/// Most missed ticks that are made up for; older ones are dropped.
pub const MADE_UP_MAX: usize = 100;
/// Longest jitter.
pub const JITTER_MAX: Duration = Duration::from_hours(1);
/// Longest cron line, in bytes.
pub const LINE_BYTES_MAX: usize = 256;

/// What becomes of missed ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Misfire {
    /// They are dropped.
    Skip,
    /// The newest one stands for all of them.
    #[default]
    Once,
    /// Each one is fired, the newest [`MADE_UP_MAX`] at most.
    All,
}

impl Misfire {
    /// Reads the word for it; `None` if it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "skip" => Some(Self::Skip),
            "once" => Some(Self::Once),
            "all" => Some(Self::All),
            _ => None,
        }
    }

    fn made_up_max(self) -> usize {
        match self {
            Self::Skip => 0,
            Self::Once => 1,
            Self::All => MADE_UP_MAX,
        }
    }
}

/// A text that is no cron line, or one whose ticks never come.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadCronLine(String);

/// A cron line in its time zone, with what shifts its ticks.
#[derive(Debug, Clone)]
pub struct Schedule {
    cron: Cron,
    zone: TimeZone,
    jitter: Duration,
    misfire: Misfire,
}

/// What is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// The ticks to fire, oldest first; may be empty if all were missed.
    pub ticks: Vec<Timestamp>,
    /// The newest tick that is due: with it, all before it are dealt with.
    pub newest: Timestamp,
}

impl Schedule {
    /// The ticks of `line`: five fields, or six with seconds in front, or a word such as `@hourly`.
    ///
    /// # Errors
    /// What is wrong with the line, in a sentence.
    pub fn new(line: &str, zone: TimeZone, jitter: Duration, misfire: Misfire) -> Result<Self, BadCronLine> {
        if line.len() > LINE_BYTES_MAX {
            return Err(BadCronLine(format!("it is longer than {LINE_BYTES_MAX} bytes")));
        }
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let cron = parser.parse(line).map_err(|error| BadCronLine(error.to_string()))?;
        let schedule = Self { cron, zone, jitter: jitter.min(JITTER_MAX), misfire };
        if schedule.next_after(Timestamp::UNIX_EPOCH).is_none() {
            return Err(BadCronLine("such a day never comes".to_owned()));
        }
        Ok(schedule)
    }

    /// The first tick after a moment; `None` at the end of time. Some microseconds.
    pub fn next_after(&self, moment: Timestamp) -> Option<Timestamp> {
        let from = whole_second(moment)?.to_zoned(self.zone.clone());
        let next = self.cron.find_next_occurrence(&from, false).ok()?.timestamp();
        (next > moment).then_some(next)
    }

    /// The last tick at a moment or before; `None` at the beginning of time.
    fn last_until(&self, moment: Timestamp) -> Option<Timestamp> {
        let from = whole_second(moment)?.to_zoned(self.zone.clone());
        let last = self.cron.find_previous_occurrence(&from, true).ok()?.timestamp();
        (last <= moment).then_some(last)
    }

    /// When the first tick after `last` is due.
    pub fn next_due(&self, id: TriggerId, last: Timestamp) -> Option<Timestamp> {
        let tick = self.next_after(last)?;
        Some(self.due_at(id, tick, self.next_after(tick)))
    }

    /// When a tick is due: later by a part of the jitter that is the same wherever it is asked for, and before the
    /// next tick comes.
    fn due_at(&self, id: TriggerId, tick: Timestamp, next: Option<Timestamp>) -> Timestamp {
        let room = next.map_or(self.jitter, |next| next.duration_since(tick).unsigned_abs());
        // The end is left out, so that no tick is due together with the next one.
        let Some(share) = seed(id, tick).checked_rem(self.jitter.min(room).as_millis() as u64) else {
            return tick;
        };
        tick.saturating_add(Duration::from_millis(share)).unwrap_or(tick)
    }

    /// What is due at `now` of the ticks after `last`; `None` if nothing is. However long ago `last` is, the cost is
    /// that of the ticks that are given and of those within [`ON_TIME`] and the jitter.
    pub fn due(&self, id: TriggerId, last: Timestamp, now: Timestamp) -> Option<Due> {
        let (mut ticks, mut newest, mut made_up) = (Vec::new(), None, 0);
        let mut next = self.next_after(now);
        let mut tick = self.last_until(now);
        while let Some(at) = tick.filter(|at| *at > last) {
            let due_at = self.due_at(id, at, next);
            if due_at <= now {
                newest.get_or_insert(at);
                if now.duration_since(due_at) > ON_TIME {
                    if made_up >= self.misfire.made_up_max() {
                        break;
                    }
                    made_up += 1;
                }
                ticks.push(at);
            }
            next = Some(at);
            tick =
                at.checked_sub(SignedDuration::from_secs(1)).ok().and_then(|before| self.last_until(before));
        }
        ticks.reverse();
        newest.map(|newest| Due { ticks, newest })
    }
}

fn whole_second(moment: Timestamp) -> Option<Timestamp> {
    Timestamp::from_second(moment.as_millisecond().div_euclid(1000)).ok()
}

fn seed(id: TriggerId, tick: Timestamp) -> u64 {
    let mut bytes = [0; ID_BYTES + 8];
    bytes[..ID_BYTES].copy_from_slice(id.as_bytes());
    bytes[ID_BYTES..].copy_from_slice(&tick.as_second().to_le_bytes());
    xxh3_64(&bytes)
}

#[cfg(test)]
mod tests;
