//! Ports on loopback that stay a test's own, also while nobody listens there.

use std::fs::{self, File, TryLockError};
use std::net::TcpListener;

/// Below it are ports of servers that the machine runs for itself.
const FIRST: u16 = 10_000;

/// A port that no other test has while this lives, whatever its process. The system gives it to nobody either: it is not
/// of those that connections, and sockets that are bound to no port, get theirs from.
#[derive(Debug)]
pub struct Port {
    number: u16,
    /// Locked, and free again when its process ends, however that happens.
    _lock: File,
}

impl Port {
    /// Takes one that is free.
    ///
    /// # Panics
    /// If none is.
    pub fn take() -> Self {
        let folder = std::env::temp_dir().join("kiln-test-ports");
        fs::create_dir_all(&folder).expect("a folder");
        let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").expect("Linux tells");
        let given: Vec<u16> = range.split_whitespace().filter_map(|port| port.parse().ok()).collect();
        let own: Vec<u16> = (FIRST..u16::MAX).filter(|port| !(given[0]..=given[1]).contains(port)).collect();
        assert!(!own.is_empty(), "the system gives all ports from {FIRST} on to connections");
        // From somewhere on, so that tests do not all try the same.
        let begin = std::process::id() as usize % own.len();
        let free = own[begin..].iter().chain(&own[..begin]).find_map(|number| {
            let lock = File::create(folder.join(number.to_string())).expect("a file");
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return None,
                Err(TryLockError::Error(error)) => panic!("{error}"),
            }
            TcpListener::bind(("127.0.0.1", *number)).ok()?;
            Some(Self { number: *number, _lock: lock })
        });
        free.expect("a free port")
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_nobody_elses_while_nobody_listens() {
        let ports: Vec<Port> = (0..20).map(|_| Port::take()).collect();
        let mut numbers: Vec<u16> = ports.iter().map(Port::number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 20, "{numbers:?}");
        let given = || TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let given: Vec<u16> = (0..200).map(|_| given().expect("a port").port()).collect();
        assert!(!given.iter().any(|port| numbers.contains(port)), "{given:?}");
    }
}
