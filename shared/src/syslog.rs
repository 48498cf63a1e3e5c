//! Where logs are sent: the syslog sinks that an app or an operator names.
//!
//! Knows how a list of them is written and what is wrong with one. Sends nothing.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Most sinks in one list.
pub const TARGETS_MAX: usize = 8;
/// Longest list, in bytes.
const LIST_BYTES_MAX: usize = 2048;
/// Longest path of a socket, in bytes (`sun_path`, unix(7)).
const PATH_BYTES_MAX: usize = 107;
/// Longest host name, in bytes (RFC 1035, 2.3.4).
const HOST_BYTES_MAX: usize = 253;
/// Port of syslog over UDP (RFC 5426, 3.3); over TCP it is usage (RFC 6587, 3.1).
const PORT: u16 = 514;
/// Port of syslog over TLS (RFC 5425, 4.1).
const TLS_PORT: u16 = 6514;

/// A place on the network.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// A name or an address; IPv6 addresses without brackets.
    pub host: String,
    /// Never 0.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') {
            write!(formatter, "[{host}]:{port}")
        } else {
            write!(formatter, "{host}:{port}")
        }
    }
}

/// A syslog sink. Its text is the URL, with its port, in one spelling; there are no secrets in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// One datagram a message (RFC 5426).
    Udp(Endpoint),
    /// Octet counting over TCP (RFC 6587).
    Tcp(Endpoint),
    /// The same inside TLS (RFC 5425).
    Tls(Endpoint),
    /// The same over a stream socket of this machine.
    Unix(PathBuf),
    /// One datagram a message, to a socket of this machine such as `/dev/log`.
    Unixgram(PathBuf),
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(endpoint) => write!(formatter, "udp://{endpoint}"),
            Self::Tcp(endpoint) => write!(formatter, "tcp://{endpoint}"),
            Self::Tls(endpoint) => write!(formatter, "tcp+tls://{endpoint}"),
            Self::Unix(path) => write!(formatter, "unix://{}", path.display()),
            Self::Unixgram(path) => write!(formatter, "unixgram://{}", path.display()),
        }
    }
}

/// What is wrong with a list of sinks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid syslog url: {url:?} {reason}")]
pub struct TargetError {
    url: String,
    reason: &'static str,
}

/// Fn's words.
const BAD_SCHEME: &str = "invalid scheme, only [tcp, udp, unix, unixgram, tcp+tls] are supported";

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(url: &str) -> Result<Self, TargetError> {
        let error = |reason| TargetError { url: url.to_owned(), reason };
        let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme).to_ascii_lowercase();
        let rest = || {
            let rest = url[scheme.len()..].strip_prefix("://");
            rest.ok_or_else(|| error("lacks :// after its scheme"))
        };
        let endpoint = |port| endpoint(rest()?, port).map_err(error);
        let path = || path(rest()?).map_err(error);
        Ok(match scheme.as_str() {
            "udp" => Self::Udp(endpoint(PORT)?),
            "tcp" => Self::Tcp(endpoint(PORT)?),
            "tcp+tls" | "tls" => Self::Tls(endpoint(TLS_PORT)?),
            "unix" => Self::Unix(path()?),
            "unixgram" => Self::Unixgram(path()?),
            _ => return Err(error(BAD_SCHEME)),
        })
    }
}

/// Reads a list of sinks, separated by commas or white space. None is named twice in what comes back, and there is at
/// least one.
///
/// # Errors
/// The first that is none and what is wrong with it, or that the list is empty or too long.
pub fn targets(list: &str) -> Result<Vec<Target>, TargetError> {
    let error = |reason| TargetError { url: list.chars().take(LIST_BYTES_MAX).collect(), reason };
    if list.len() > LIST_BYTES_MAX {
        return Err(error("is longer than 2048 bytes"));
    }
    let mut targets = Vec::new();
    for url in
        list.split(|letter: char| letter == ',' || letter.is_whitespace()).filter(|url| !url.is_empty())
    {
        let target = url.parse()?;
        if !targets.contains(&target) {
            targets.push(target);
        }
    }
    match targets.len() {
        0 => Err(error("names no sink")),
        1..=TARGETS_MAX => Ok(targets),
        _ => Err(error("names more than 8 sinks")),
    }
}

fn endpoint(text: &str, default_port: u16) -> Result<Endpoint, &'static str> {
    let text = text.strip_suffix('/').unwrap_or(text);
    if text.contains('@') {
        return Err("names a user, whom syslog does not know");
    }
    if text.contains(['/', '?', '#']) {
        return Err("has more than a host and a port");
    }
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or("has no ] after its IPv6 address")?;
        host.parse::<Ipv6Addr>().map_err(|_| "has no IPv6 address in its brackets")?;
        match after.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if after.is_empty() => (host, None),
            None => return Err("has something other than a port after its address"),
        }
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    if host.is_empty() {
        return Err("names no host");
    }
    if host.len() > HOST_BYTES_MAX || !host.bytes().all(is_name) {
        return Err("has a host that is neither a name nor an address");
    }
    let port = match port {
        None => default_port,
        Some(port) => match port.parse() {
            Ok(port @ 1..) if !text.contains('+') => port,
            _ => return Err("has a port that is no number from 1 to 65535"),
        },
    };
    Ok(Endpoint { host: host.to_ascii_lowercase(), port })
}

fn path(text: &str) -> Result<PathBuf, &'static str> {
    if !text.starts_with('/') {
        return Err("has no absolute path, as in unix:///dev/log");
    }
    if text.len() > PATH_BYTES_MAX {
        return Err("has a path that is longer than 107 bytes, which no socket can have");
    }
    if text.contains('\0') || text.ends_with('/') {
        return Err("has a path that is no file's");
    }
    Ok(Path::new(text).to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reason(list: &str) -> &'static str {
        targets(list).expect_err(list).reason
    }

    #[test]
    fn a_list_names_each_sink_once_in_one_spelling() {
        let list = "UDP://Logs.example, tcp://10.0.0.1:601\n tls://h tcp+tls://h:6514/ unix:///run/s,unixgram:///dev/log";
        let text: Vec<_> = targets(list).expect("is good").iter().map(Target::to_string).collect();
        let expected = [
            "udp://logs.example:514",
            "tcp://10.0.0.1:601",
            "tcp+tls://h:6514",
            "unix:///run/s",
            "unixgram:///dev/log",
        ];
        assert_eq!(text, expected);
        assert_eq!(targets("tcp://[::1]:7").expect("is good")[0].to_string(), "tcp://[::1]:7");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (list, wrong) in [
            ("http://h", BAD_SCHEME),
            ("h:514", BAD_SCHEME),
            ("nothing", BAD_SCHEME),
            ("tcp:h", "lacks ://"),
            ("tcp://", "names no host"),
            ("tcp://:514", "names no host"),
            ("tcp://h:0", "has a port"),
            ("tcp://h:65536", "has a port"),
            ("tcp://h:", "has a port"),
            ("tcp://h:+7", "has a port"),
            ("tcp://h:1x", "has a port"),
            ("tcp://a_b~", "has a host"),
            ("tcp://me:secret@h", "names a user"),
            ("tcp://h/path", "has more"),
            ("tcp://[::1", "has no ]"),
            ("tcp://[h]", "has no IPv6"),
            ("tcp://[::1]7", "has something"),
            ("unix://h:514", "has no absolute path"),
            ("unixgram://", "has no absolute path"),
            (" , ", "names no sink"),
        ] {
            assert!(reason(list).starts_with(wrong), "{list}: {}", reason(list));
        }
        assert!(reason(&format!("unix:///{}", "x".repeat(107))).starts_with("has a path that is longer"));
        let many: Vec<_> = (1..=9).map(|port| format!("udp://h:{port}")).collect();
        assert!(reason(&many.join(" ")).starts_with("names more"));
        assert!(reason(&"x".repeat(3000)).starts_with("is longer"));
    }

    proptest! {
        #[test]
        fn a_sink_reads_as_it_is_written(text in "(udp|tcp|tls|unix)://[a-z./:\\[\\]0-9]{0,20}") {
            if let Ok(target) = text.parse::<Target>() {
                prop_assert_eq!(target.to_string().parse::<Target>(), Ok(target));
            }
        }

        #[test]
        fn no_text_is_too_strange(text in ".{0,60}") {
            if let Err(error) = targets(&text) {
                prop_assert!(error.to_string().starts_with("invalid syslog url: "));
            }
        }
    }
}
