//! What the tests of several crates share: real servers from packages, started on loopback, and waiting with a
//! deadline. Nothing of Kiln depends on it but tests.

pub mod kafka;
pub mod mariadb;
mod port;
pub mod postgres;
mod process;
pub mod redis;
pub mod rsyslog;

use std::time::Duration;

pub use port::Port;

/// Waits until `condition` gives a value, for 20 s at most.
pub async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
