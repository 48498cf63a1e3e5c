//! How those who wait for messages learn that it is worth asking.

use tokio::sync::watch;

/// The queue was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the queue is closed")]
pub struct QueueClosed;

/// Tells when messages may have become due. Subscribe first, then reserve, then wait: nothing falls in between.
#[derive(Debug, Clone)]
pub struct Wakeups {
    receiver: watch::Receiver<u64>,
}

impl Wakeups {
    /// Waits for a wake-up since the last one, or since subscribing. Several are one, and one may be in vain: the
    /// message may be somebody else's by now, or of a function that is not wanted. Cancel-safe. A queue wakes all
    /// who wait at least when it has found its backend again; a message that another process stored is told within
    /// milliseconds where the backend can, else within a second.
    ///
    /// # Errors
    /// [`QueueClosed`] when there will be no more.
    pub async fn next(&mut self) -> Result<(), QueueClosed> {
        self.receiver.changed().await.map_err(|_| QueueClosed)
    }
}

/// The sending end, which the backend keeps.
#[derive(Debug)]
pub struct WakeSource {
    sender: watch::Sender<u64>,
}

impl Default for WakeSource {
    fn default() -> Self {
        Self { sender: watch::Sender::new(0) }
    }
}

impl WakeSource {
    /// Wakes all who wait.
    pub fn wake(&self) {
        self.sender.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Another one who waits.
    pub fn subscribe(&self) -> Wakeups {
        Wakeups { receiver: self.sender.subscribe() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test(start_paused = true)]
    async fn a_wake_up_between_subscribing_and_waiting_is_not_lost() {
        let source = WakeSource::default();
        let mut wakeups = source.subscribe();
        source.wake();
        source.wake();
        assert_eq!(wakeups.next().await, Ok(()));
        assert!(timeout(Duration::from_secs(9), wakeups.next()).await.is_err(), "two wake-ups are one");
        drop(source);
        assert_eq!(wakeups.next().await, Err(QueueClosed));
    }
}
