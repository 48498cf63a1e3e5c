//! When silence means what.

use std::time::Duration;

/// When silence means what. Nodes of this process, and those that were never heard, are never silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LivenessPolicy {
    /// How often an agent says something.
    pub beat: Duration,
    /// Beats in a row that may be missed.
    pub misses: u32,
    /// What a beat may take longer than the one before it, on the way and in the queues at both ends.
    pub slack: Duration,
    /// A node that was not heard for this long has lost its containers, as far as calls are concerned.
    pub down_after: Duration,
}

impl LivenessPolicy {
    /// Three beats of this length may be missed, with a quarter of one for delivery; a minute is for long.
    pub fn of_beat(beat: Duration) -> Self {
        Self { beat, misses: 3, slack: beat / 4, down_after: Duration::from_mins(1) }
    }

    /// A node that was not heard for this long gets no calls.
    pub fn suspect_after(&self) -> Duration {
        self.beat * self.misses + self.slack
    }
}

impl Default for LivenessPolicy {
    /// Beats of 200 ms: a node that falls silent is out of placement after 650 ms.
    fn default() -> Self {
        Self::of_beat(Duration::from_millis(200))
    }
}
