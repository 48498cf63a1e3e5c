//! From a URL to an open queue in a server.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{
    Client, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, PushInfo, PushKind, RedisError,
    TlsCertificates,
};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Redis;
use super::server::{Connections, Server, passes};
use crate::engine::{Core, Effect, EngineQueue};
use crate::{OpenError, Options};

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait for an answer: 32 MiB of payloads on a slow network.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest pause between two attempts to connect, so that many callers do not become as many attempts.
const CONNECT_PAUSE: Duration = Duration::from_millis(100);
/// Attempts that follow a failed one; then operations that waited for it fail, and the next one begins anew.
const CONNECT_RETRIES: usize = 1;
/// Operations that wait for the connection to take them; more callers wait for room.
const REQUESTS_MAX: usize = 1024;
/// How the queue's keys begin, unless the URL says otherwise.
const PREFIX: &str = "kiln";
/// Longest prefix, in bytes.
const PREFIX_BYTES_MAX: usize = 64;
/// What is stored where, as one number; another one is another version's.
const SCHEMA: &str = "1";
/// The first version whose scripts say what they need.
const VERSION_MIN: u64 = 7;
/// How URLs look.
const EXAMPLE: &str = "redis://user:password@host:port/database?prefix=name";

/// Opens `redis://...` or `rediss://...`, whose server must answer.
pub(crate) async fn open(url: &str, options: Options) -> Result<EngineQueue<Redis>, OpenError> {
    let place = Place::parse(url)?;
    let client = place.client()?;
    let core = Arc::new(Core::new(options));
    let origin = format!("{:016x}", rand::random::<u64>());
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(ANSWER_TIMEOUT))
        .set_number_of_retries(CONNECT_RETRIES)
        .set_min_delay(CONNECT_PAUSE)
        .set_max_delay(CONNECT_PAUSE)
        .set_pipeline_buffer_size(REQUESTS_MAX);
    let refused = |error: RedisError| place.refused(&error);
    let mut commands =
        ConnectionManager::new_with_config(client.clone(), config.clone()).await.map_err(refused)?;
    place.check(&mut commands).await?;
    let config =
        config.set_automatic_resubscription().set_push_sender(heard(Arc::clone(&core), origin.clone()));
    let mut listener = ConnectionManager::new_with_config(client, config).await.map_err(refused)?;
    listener.subscribe(place.channel()).await.map_err(refused)?;
    if let Some(risk) = risk(&mut commands).await {
        tracing::warn!(queue = place.name, "{risk}");
    }
    let connections = Connections { commands, listener };
    let server = Server::new(place.name.clone(), place.keys(), place.channel(), origin, connections);
    let engine = Redis { server, core: Arc::clone(&core) };
    Ok(EngineQueue::new(engine, core, TaskTracker::new(), CancellationToken::new()))
}

/// What a URL says.
struct Place {
    /// Scheme, host, port and database.
    name: String,
    info: ConnectionInfo,
    prefix: String,
    /// A file with the certificates, as PEM, that the server's must be signed by. None: the system's.
    ca: Option<String>,
}

impl Place {
    fn parse(url: &str) -> Result<Self, OpenError> {
        let wrong = |reason: String| OpenError::Url { reason, example: EXAMPLE };
        let (server, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut prefix, mut ca) = (PREFIX.to_owned(), None);
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            match parameter.split_once('=') {
                Some(("prefix", value)) if is_prefix(value) => value.clone_into(&mut prefix),
                Some(("prefix", _)) => {
                    return Err(wrong(format!(
                        "its prefix is not 1 to {PREFIX_BYTES_MAX} letters, digits and any of '-_.:'"
                    )));
                }
                Some(("ca", file)) if url.starts_with("rediss:") => ca = Some(file.to_owned()),
                _ => {
                    return Err(wrong("it has a parameter other than prefix, and ca with rediss".to_owned()));
                }
            }
        }
        let info = server
            .into_connection_info()
            .map_err(|_| wrong("it names no host, or a port or database that is no number".to_owned()))?;
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let scheme = url.split_once(':').map_or("redis", |(scheme, _)| scheme);
        let name = format!("{scheme}://{}/{}", info.addr(), settings.db());
        Ok(Self { name, info: info.set_redis_settings(settings), prefix, ca })
    }

    fn client(&self) -> Result<Client, OpenError> {
        let root_cert = match &self.ca {
            None => None,
            Some(file) => Some(std::fs::read(file).map_err(|error| OpenError::Url {
                reason: format!("its ca, {file}, cannot be read: {error}"),
                example: EXAMPLE,
            })?),
        };
        let certificates = TlsCertificates { client_tls: None, root_cert };
        let client = if self.name.starts_with("rediss:") {
            Client::build_with_tls(self.info.clone(), certificates)
        } else {
            Client::open(self.info.clone())
        };
        client.map_err(|error| OpenError::Url { reason: error.to_string(), example: EXAMPLE })
    }

    /// How the queue's keys begin: its name, in the braces that keep them together in a cluster.
    fn keys(&self) -> String {
        format!("{{{}}}:", self.prefix)
    }

    /// Where due messages are told of. Channels are of all databases of a server.
    fn channel(&self) -> String {
        format!("{}due:{}", self.keys(), self.info.redis_settings().db())
    }

    /// Checks that the server can hold a queue and that what is there is this version's.
    async fn check(&self, connection: &mut ConnectionManager) -> Result<(), OpenError> {
        let refused = |error: RedisError| self.refused(&error);
        // Some servers do not let everybody ask.
        let told: Result<String, _> = redis::cmd("INFO").arg("server").query_async(connection).await;
        if let Some(version) = told.ok().as_deref().and_then(version)
            && version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(VERSION_MIN)
                < VERSION_MIN
        {
            return Err(OpenError::Old {
                queue: self.name.clone(),
                version: version.to_owned(),
                wanted: format!("Redis {VERSION_MIN}"),
            });
        }
        let key = format!("{}schema", self.keys());
        let get = redis::cmd("GET").arg(&key).to_owned();
        let mut known: Result<Option<String>, RedisError> = get.query_async(connection).await;
        // Nothing is written where it is known: who starts while memory is used up can have calls end.
        if let Ok(None) = known {
            let set = redis::cmd("SET").arg(&key).arg(SCHEMA).arg("NX").to_owned();
            let _kept: Option<String> = set.query_async(connection).await.map_err(refused)?;
            known = get.query_async(connection).await;
        }
        let reason = match known {
            Ok(Some(known)) if known == SCHEMA => return Ok(()),
            Ok(other) => format!("it is of schema {:?}, not {SCHEMA}", other.unwrap_or_default()),
            Err(error) if error.code() == Some("WRONGTYPE") => {
                format!("the key {key} is something else's; choose another prefix")
            }
            Err(error) => return Err(refused(error)),
        };
        Err(OpenError::Schema { queue: self.name.clone(), reason })
    }

    fn refused(&self, error: &RedisError) -> OpenError {
        let (queue, reason) = (self.name.clone(), error.to_string());
        if passes(error) {
            OpenError::Unreachable { queue, reason }
        } else {
            OpenError::Refused { queue, reason }
        }
    }
}

fn is_prefix(text: &str) -> bool {
    (1..=PREFIX_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
}

/// The version in what a server says of itself.
fn version(info: &str) -> Option<&str> {
    info.lines().find_map(|line| line.strip_prefix("redis_version:")).map(str::trim)
}

/// What to do with what other processes publish: their name and when a message is due.
fn heard(core: Arc<Core>, origin: String) -> impl Fn(PushInfo) -> Result<(), redis::aio::SendError> {
    move |push| {
        if push.kind == PushKind::Message
            && let Some(told) = push.data.last()
            && let Ok(told) = redis::from_redis_value_ref::<String>(told)
            && let Some((other, due_at)) = told.split_once(' ')
            && other != origin
            && let Ok(due_at) = due_at.parse()
        {
            core.tell(Effect::of_waiting(due_at, core.time.now_millis()));
        }
        Ok(())
    }
}

/// Why the server may lose messages that it has acknowledged, as far as it tells.
async fn risk(connection: &mut ConnectionManager) -> Option<String> {
    let mut settings = redis::cmd("CONFIG");
    settings.arg("GET").arg(&["appendonly", "appendfsync", "maxmemory", "maxmemory-policy"]);
    let settings: Result<Vec<(String, String)>, _> = settings.query_async(connection).await;
    match settings {
        Ok(settings) => risk_of(&settings),
        Err(error) => {
            tracing::debug!(%error, "Redis does not tell whether it keeps what it acknowledges");
            None
        }
    }
}

fn risk_of(settings: &[(String, String)]) -> Option<String> {
    let of =
        |name: &str| settings.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value.as_str());
    if of("appendonly") == "no" {
        return Some(
            "this Redis forgets acknowledged calls when it dies: set appendonly to yes, with appendfsync always"
                .to_owned(),
        );
    }
    // Kiln's keys do not expire, so the volatile policies spare them.
    if of("maxmemory-policy").starts_with("allkeys") && of("maxmemory") != "0" {
        let policy = of("maxmemory-policy");
        return Some(format!(
            "this Redis throws acknowledged calls away when its memory is used up: set maxmemory-policy to noeviction, not {policy}"
        ));
    }
    match of("appendfsync") {
        "no" => Some(
            "this Redis loses the last acknowledged calls, some 30 s, when the machine dies: set appendfsync to always"
                .to_owned(),
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(url: &str) -> String {
        Place::parse(url).err().expect(url).to_string()
    }

    #[test]
    fn a_url_names_server_database_and_prefix() {
        let place = Place::parse("redis://me:se%40cret@host:7000/3?prefix=my-queue").unwrap();
        assert_eq!((place.name.as_str(), place.keys().as_str()), ("redis://host:7000/3", "{my-queue}:"));
        assert_eq!(place.channel(), "{my-queue}:due:3");
        assert_eq!(place.info.redis_settings().password(), Some("se@cret"));
        let place = Place::parse("rediss://host?ca=/etc/ca.pem").unwrap();
        assert_eq!((place.name.as_str(), place.keys().as_str()), ("rediss://host:6379/0", "{kiln}:"));
        assert_eq!(place.ca.as_deref(), Some("/etc/ca.pem"));
    }

    #[test]
    fn a_wrong_url_is_told_without_its_secrets() {
        let long = format!("redis://me:secret@h/?prefix={}", "x".repeat(65));
        for url in [
            "redis://me:secret@",
            "redis://me:secret@host:x/",
            "redis://me:secret@host/x",
            "redis://me:secret@host/?prefix=",
            "redis://me:secret@host/?prefix={a}",
            "redis://me:secret@host/?ca=/etc/ca.pem",
            "redis://me:secret@host/?password=secret",
            long.as_str(),
        ] {
            let said = wrong(url);
            assert!(
                said.starts_with("the queue's URL cannot be used: it") && !said.contains("secret"),
                "{said}"
            );
        }
    }

    #[test]
    fn a_server_that_may_forget_is_told_of() {
        let risk = |pairs: [(&str, &str); 4]| {
            risk_of(&pairs.map(|(name, value)| (name.to_owned(), value.to_owned())))
        };
        let settings = |append, fsync, memory, policy| {
            [
                ("appendonly", append),
                ("appendfsync", fsync),
                ("maxmemory", memory),
                ("maxmemory-policy", policy),
            ]
        };
        assert_eq!(risk(settings("yes", "always", "0", "noeviction")), None);
        assert_eq!(risk(settings("yes", "everysec", "0", "allkeys-lru")), None, "memory has no limit");
        assert_eq!(risk(settings("yes", "everysec", "9", "volatile-lru")), None, "no key expires");
        assert!(risk(settings("no", "always", "0", "noeviction")).unwrap().contains("appendonly"));
        assert!(risk(settings("yes", "always", "9", "allkeys-lru")).unwrap().contains("not allkeys-lru"));
        assert!(risk(settings("yes", "no", "0", "noeviction")).unwrap().contains("appendfsync"));
        assert_eq!(risk_of(&[]), None, "it does not tell");
    }

    #[test]
    fn a_server_tells_its_version() {
        assert_eq!(version("# Server\r\nredis_version:6.2.14\r\nos:Linux\r\n"), Some("6.2.14"));
        assert_eq!(version(""), None);
    }
}
