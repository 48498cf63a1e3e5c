//! Addresses as options and messages give them.

use std::net::SocketAddr;

/// Longest address in bytes: that of a host's name.
const BYTES_MAX: usize = 255;

/// Reads an address to listen on.
///
/// # Errors
/// What it should look like.
pub fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write ADDRESS:PORT, as in 0.0.0.0:8080 or [::]:8080".to_owned())
}

/// Reads where somebody can be reached, by name or number, without looking it up.
///
/// # Errors
/// What it should look like.
pub fn host_port(text: &str) -> Result<String, String> {
    let port_is_good = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port_is_good(port) && text.len() <= BYTES_MAX => {
            Ok(text.to_owned())
        }
        _ => Err("write HOST:PORT, as in lb1.example:8082".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_to_listen_on_has_an_address_and_a_port() {
        assert!(listen_address("0.0.0.0:8080").is_ok() && listen_address("[::1]:0").is_ok());
        for wrong in ["8080", ":8080", "0.0.0.0", "localhost:8080", ""] {
            assert!(listen_address(wrong).unwrap_err().contains("as in 0.0.0.0:8080"), "{wrong}");
        }
    }

    #[test]
    fn an_address_to_be_reached_at_has_a_host_and_a_port() {
        for right in ["lb1.example:8082", "10.0.0.2:1", "[fd00::2]:8082"] {
            assert_eq!(host_port(right).as_deref(), Ok(right));
        }
        for wrong in ["lb1.example", ":8082", "lb1:", "lb1:0", "lb1:65536", "lb1:udp", ""] {
            assert!(host_port(wrong).unwrap_err().contains("HOST:PORT"), "{wrong}");
        }
        assert!(host_port(&format!("{}:1", "x".repeat(BYTES_MAX))).is_err());
    }
}
