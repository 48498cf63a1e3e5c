//! From a URL to a queue.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use kiln_shared::queue::Queue;

use crate::Clock;

/// What is not in the URL.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Most messages that wait or run; more are refused. None: as many as the backend holds. Counted at most once in
    /// 100 ms, so several balancers together may pass it by what they take in that time.
    pub messages_max: Option<u64>,
    /// Where the time comes from.
    pub clock: Clock,
}

/// Why a queue could not be opened. One line each, with the remedy and without secrets.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL names no queue that this binary knows.
    #[error("queue URL with scheme '{scheme}' is not supported; use one of {known}", known = known())]
    Scheme {
        /// What came before `://`, or nothing.
        scheme: String,
    },
    /// The URL's scheme is known, the rest is not good. The text shows nothing of it.
    #[error("the queue's URL cannot be used: {reason}; use {example}")]
    Url {
        /// What is wrong.
        reason: String,
        /// How such a URL looks.
        example: &'static str,
    },
    /// The server is there, but refuses.
    #[error("queue {queue} refuses: {reason}; check user, password and database of its URL")]
    Refused {
        /// Its name and address.
        queue: String,
        /// Its own words.
        reason: String,
    },
    /// The server is there, but its user may not make the queue's tables.
    #[error("queue {queue} does not let its user make tables: {reason}; have an administrator run: {grant}")]
    Forbidden {
        /// Its name and address.
        queue: String,
        /// The server's own words.
        reason: String,
        /// What mends it.
        grant: String,
    },
    /// Nobody answers, or who answers cannot serve yet.
    #[error("queue {queue} cannot be reached: {reason}; check that it runs, its address and the network")]
    Unreachable {
        /// Its name and address.
        queue: String,
        /// What was tried.
        reason: String,
    },
    /// The server is there, but what the URL names in it is not.
    #[error("queue {queue} has no {missing}; create it, or check the URL")]
    Missing {
        /// Its name and address.
        queue: String,
        /// The database, stream or topic.
        missing: String,
    },
    /// The server's own version.
    #[error("queue {queue} is of version {version}, which is too old; use {wanted} or newer")]
    Old {
        /// Its name and address.
        queue: String,
        /// What it is.
        version: String,
        /// What is needed.
        wanted: String,
    },
    /// Another version of Kiln made the tables, or they could not be made.
    #[error(
        "queue {queue} cannot be brought to this version's schema: {reason}; use the version of Kiln that wrote it"
    )]
    Schema {
        /// The file, or name and address.
        queue: String,
        /// What does not fit.
        reason: String,
    },
    /// The log of what happened begins too late: the server has deleted what the queue still needs.
    #[error("queue {queue} has lost its beginning: {reason}")]
    Incomplete {
        /// Its name and address.
        queue: String,
        /// What is gone, and what to do.
        reason: String,
    },
    /// The file cannot be made or written.
    #[error("queue file {} cannot be written: {source}; give this user write access to it and its directory, or choose another path", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is there but is no queue.
    #[error("queue file {} cannot be opened: {reason}; check that it is a SQLite database, or choose another path", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

/// A scheme and how its URLs look.
const SCHEMES: &[(&str, &str)] = &[
    #[cfg(feature = "sqlite")]
    ("sqlite", "sqlite:///path/to/queue.db"),
    #[cfg(feature = "postgres")]
    ("postgres", "postgres://user:password@host:port/database"),
    #[cfg(feature = "mysql")]
    ("mysql", "mysql://user:password@host:port/database"),
    #[cfg(feature = "redis")]
    ("redis", "redis://user:password@host:port/database"),
    #[cfg(feature = "redis")]
    ("rediss", "rediss://user:password@host:port/database"),
    #[cfg(feature = "kafka")]
    ("kafka", "kafka://user:password@host:port,host:port/prefix"),
];

fn known() -> String {
    SCHEMES.iter().map(|(_, example)| *example).collect::<Vec<_>>().join(", ")
}

/// Opens the queue at `url`. Files and tables are made where they are missing; a server must answer within seconds.
///
/// # Errors
/// What is wrong, in one line.
pub async fn open(url: &str, options: Options) -> Result<Arc<dyn Queue>, OpenError> {
    // A password may hold anything, so nothing behind the scheme is shown.
    let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
    match scheme {
        #[cfg(feature = "sqlite")]
        "sqlite" => Ok(Arc::new(crate::sqlite::open(url, options).await?)),
        #[cfg(feature = "postgres")]
        "postgres" | "postgresql" => Ok(Arc::new(crate::postgres::open(url, options).await?)),
        #[cfg(feature = "mysql")]
        "mysql" | "mariadb" => Ok(Arc::new(crate::mysql::open(url, options).await?)),
        #[cfg(feature = "redis")]
        "redis" | "rediss" => Ok(Arc::new(crate::redis::open(url, options).await?)),
        #[cfg(feature = "kafka")]
        "kafka" => Ok(Arc::new(crate::kafka::open(url, options).await?)),
        other => {
            let is_word = other.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
            Err(OpenError::Scheme { scheme: if is_word { other.to_owned() } else { String::new() } })
        }
    }
}
