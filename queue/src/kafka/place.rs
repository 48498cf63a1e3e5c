//! What a URL says of a queue in Kafka.

use std::fmt;

use rskafka::client::{Credentials, SaslConfig};

use crate::OpenError;

/// How the topic's name begins, unless the URL says otherwise.
const PREFIX: &str = "kiln";
/// Longest prefix, in bytes.
const PREFIX_BYTES_MAX: usize = 200;
/// Memory for what messages carry, unless the URL says otherwise.
const MEMORY_MIB: u64 = 1024;
/// Log from which an image is written, unless the URL says otherwise.
const IMAGE_MIB: u64 = 64;
/// How URLs look.
const EXAMPLE: &str = "kafka://user:password@host:port,host:port/prefix?sasl=scram-sha-512&replicas=3";

/// Servers and a topic in them.
#[derive(Clone)]
pub(super) struct Place {
    /// Scheme, servers and topic.
    pub(super) name: String,
    /// Each a host and a port.
    pub(super) servers: Vec<String>,
    pub(super) topic: String,
    pub(super) login: Option<SaslConfig>,
    /// Of a topic that is made; -1: as the server does by default.
    pub(super) replicas: i16,
    /// Most bytes of envelopes and payloads that are kept in memory.
    pub(super) memory_bytes: u64,
    /// An image is written once the log has this many bytes since the last, and twice as many as the last has.
    pub(super) image_bytes: u64,
}

impl fmt::Debug for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nothing of the login.
        formatter.write_str(&self.name)
    }
}

impl Place {
    /// Reads a URL.
    ///
    /// # Errors
    /// What is wrong, without the URL.
    pub(super) fn parse(url: &str) -> Result<Self, OpenError> {
        Self::read(url).map_err(|reason| OpenError::Url { reason, example: EXAMPLE })
    }

    fn read(url: &str) -> Result<Self, String> {
        let rest = url.strip_prefix("kafka://").ok_or("it does not begin with kafka://")?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        // A password may hold a slash.
        let (login, rest) = rest.rsplit_once('@').map_or((None, rest), |(login, rest)| (Some(login), rest));
        let (servers, path) = rest.split_once('/').unwrap_or((rest, ""));
        let servers = servers.split(',').map(server).collect::<Result<Vec<String>, String>>()?;
        let prefix = if path.is_empty() { PREFIX } else { path };
        if prefix.len() > PREFIX_BYTES_MAX
            || !prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        {
            return Err(format!(
                "its prefix is not 1 to {PREFIX_BYTES_MAX} letters, digits and any of '-_.'"
            ));
        }
        let topic = format!("{prefix}.queue");
        let mut place = Self {
            name: format!("kafka://{}/{topic}", servers.join(",")),
            servers,
            topic,
            login: None,
            replicas: -1,
            memory_bytes: MEMORY_MIB << 20,
            image_bytes: IMAGE_MIB << 20,
        };
        let mut sasl = "plain";
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            match parameter.split_once('=') {
                Some(("sasl", value)) if login.is_some() => sasl = value,
                Some(("sasl", _)) => return Err("it has sasl but no user and password".to_owned()),
                Some(("replicas", value)) => {
                    place.replicas = i16::try_from(number(parameter, value, 1, 100)?).unwrap_or(-1);
                }
                Some(("memory_mib", value)) => {
                    place.memory_bytes = number(parameter, value, 1, 1 << 20)? << 20;
                }
                Some(("image_mib", value)) => {
                    place.image_bytes = number(parameter, value, 1, 1 << 20)? << 20;
                }
                _ => {
                    return Err(
                        "it has a parameter other than sasl, replicas, memory_mib and image_mib".to_owned()
                    );
                }
            }
        }
        place.login = login.map(|login| credentials(login, sasl)).transpose()?;
        Ok(place)
    }
}

fn server(text: &str) -> Result<String, String> {
    let is_good = text
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
    if is_good { Ok(text.to_owned()) } else { Err("it names a server without host or port".to_owned()) }
}

fn number(parameter: &str, value: &str, min: u64, max: u64) -> Result<u64, String> {
    let name = parameter.split('=').next().unwrap_or_default();
    let number = value.parse().ok().filter(|number| (min..=max).contains(number));
    number.ok_or_else(|| format!("its {name} is no number from {min} to {max}"))
}

fn credentials(login: &str, sasl: &str) -> Result<SaslConfig, String> {
    let (user, password) = login.split_once(':').ok_or("it has a user without password")?;
    let credentials = Credentials::new(unescaped(user)?, unescaped(password)?);
    match sasl {
        "plain" => Ok(SaslConfig::Plain(credentials)),
        "scram-sha-256" => Ok(SaslConfig::ScramSha256(credentials)),
        "scram-sha-512" => Ok(SaslConfig::ScramSha512(credentials)),
        _ => Err("its sasl is not plain, scram-sha-256 or scram-sha-512".to_owned()),
    }
}

/// A text with its `%` escapes undone (RFC 3986, section 2.1).
fn unescaped(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let escaped = digit().zip(digit()).map(|(high, low)| (high * 16 + low) as u8);
        bytes.push(escaped.ok_or("its user or password has a % that escapes nothing; write it as %25")?);
    }
    String::from_utf8(bytes).map_err(|_| "its user or password is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_servers_topic_and_login() {
        let place = Place::parse("kafka://one:9092,two:9093/my-app?memory_mib=2&replicas=3").unwrap();
        assert_eq!(place.name, "kafka://one:9092,two:9093/my-app.queue");
        assert_eq!(place.servers, ["one:9092", "two:9093"]);
        assert_eq!((place.memory_bytes, place.replicas), (2 << 20, 3));
        assert!(place.login.is_none());
        let place = Place::parse("kafka://me:se%40cr%2Fet@[::1]:9092?sasl=scram-sha-256").unwrap();
        assert_eq!(place.name, "kafka://[::1]:9092/kiln.queue");
        let Some(SaslConfig::ScramSha256(login)) = place.login else { panic!("no login") };
        assert_eq!((login.username.as_str(), login.password.as_str()), ("me", "se@cr/et"));
    }

    #[test]
    fn a_wrong_url_is_told_without_its_secrets() {
        for url in [
            "kafka://",
            "kafka://me:secret@",
            "kafka://me:secret@host",
            "kafka://me:secret@host:0",
            "kafka://me:secret@host:9092,",
            "kafka://me:secret@host:9092/a/b",
            "kafka://secret@host:9092",
            "kafka://me:secret%@host:9092",
            "kafka://me:secret@host:9092?sasl=secret",
            "kafka://me:secret@host:9092?memory_mib=0",
            "kafka://me:secret@host:9092?password=secret",
            "kafka://host:9092?sasl=plain",
        ] {
            let said = Place::parse(url).expect_err(url).to_string();
            assert!(said.starts_with("the queue's URL cannot be used: it"), "{said}");
            assert!(!said.contains("secret"), "{said}");
        }
    }
}
