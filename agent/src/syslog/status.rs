//! What is told of a sink: metrics, and a line in the log when its state changes.

use std::fmt::Display;
use std::time::Duration;

use kiln_shared::syslog::Target;
use metrics::{Counter, Gauge, counter, gauge};
use tokio::time::Instant;

/// Nothing is dropped any more when nothing was for so long.
const DROPS_OVER_AFTER: Duration = Duration::from_secs(10);

/// How a sink is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nobody has heard of it yet.
    Unknown,
    /// It takes messages.
    Up,
    /// It cannot be reached, or takes nothing.
    Down,
}

/// What is told of one sink. There are no secrets in a sink's URL.
#[derive(Debug)]
pub(super) struct Status {
    target: Target,
    state: State,
    /// The spool could not be written when it was last tried.
    spool_fails: bool,
    /// When messages were dropped last, while the log has it that they are.
    dropped_at: Option<Instant>,
    up: Gauge,
    memory_bytes: Gauge,
    spool_bytes: Gauge,
    sent: Counter,
    resent: Counter,
    spooled: Counter,
    dropped: Counter,
    torn: Counter,
    reconnects: Counter,
}

impl Status {
    pub(super) fn new(target: &Target) -> Self {
        let sink = target.to_string();
        let dropped = counter!("kiln_syslog_dropped_total", "sink" => sink.clone());
        let status = Self {
            target: target.clone(),
            state: State::Unknown,
            spool_fails: false,
            dropped_at: None,
            up: gauge!("kiln_syslog_up", "sink" => sink.clone()),
            memory_bytes: gauge!("kiln_syslog_memory_bytes", "sink" => sink.clone()),
            spool_bytes: gauge!("kiln_syslog_spool_bytes", "sink" => sink.clone()),
            sent: counter!("kiln_syslog_sent_total", "sink" => sink.clone()),
            resent: counter!("kiln_syslog_resent_total", "sink" => sink.clone()),
            spooled: counter!("kiln_syslog_spooled_total", "sink" => sink.clone()),
            dropped,
            torn: counter!("kiln_syslog_spool_torn_total", "sink" => sink.clone()),
            reconnects: counter!("kiln_syslog_reconnects_total", "sink" => sink),
        };
        // So that all are there before anything happens.
        status.up.set(0);
        for counter in [&status.sent, &status.resent, &status.spooled, &status.dropped, &status.reconnects] {
            counter.absolute(0);
        }
        status
    }

    /// It takes messages.
    pub(super) fn up(&mut self) {
        if self.state != State::Up {
            tracing::info!(sink = %self.target, "the syslog sink takes messages");
            self.state = State::Up;
            self.up.set(1);
        }
    }

    /// It does not.
    pub(super) fn down(&mut self, why: &dyn Display) {
        if self.state != State::Down {
            tracing::warn!(sink = %self.target, %why, "the syslog sink takes no messages; they are kept until it does");
            self.state = State::Down;
            self.up.set(0);
        }
    }

    pub(super) fn connected_again(&self) {
        self.reconnects.increment(1);
    }

    pub(super) fn sent(&self, messages: u64) {
        self.sent.increment(messages);
    }

    pub(super) fn resent(&self, messages: u64) {
        self.resent.increment(messages);
    }

    pub(super) fn torn(&self, records: u64) {
        self.torn.increment(records);
    }

    /// So many messages are in the spool now that were not.
    pub(super) fn spooled(&mut self, messages: u64) {
        self.spooled.increment(messages);
        if messages > 0 && self.spool_fails {
            tracing::info!(sink = %self.target, "the syslog spool takes messages again");
            self.spool_fails = false;
        }
    }

    /// The spool does not take messages.
    pub(super) fn spool_fails(&mut self, why: &dyn Display) {
        if !self.spool_fails {
            tracing::warn!(sink = %self.target, %why, "messages for syslog are kept in memory alone");
            self.spool_fails = true;
        }
    }

    /// What was dropped since this was told last, and what is held now.
    pub(super) fn look(&mut self, dropped: u64, memory_bytes: usize, spool_bytes: u64) {
        self.memory_bytes.set(memory_bytes as f64);
        self.spool_bytes.set(spool_bytes as f64);
        self.dropped.increment(dropped);
        if dropped > 0 {
            if self.dropped_at.replace(Instant::now()).is_none() {
                let sink = &self.target;
                tracing::warn!(%sink, dropped, "messages for syslog are dropped: memory and spool are full");
            }
        } else if self.dropped_at.take_if(|then| then.elapsed() >= DROPS_OVER_AFTER).is_some() {
            tracing::info!(sink = %self.target, "no more messages for syslog are dropped");
        }
    }
}

impl Drop for Status {
    fn drop(&mut self) {
        self.up.set(0);
    }
}
