//! From a URL to a store, and what runs beside it.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use sqlx::migrate::{MigrateError, Migrator};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::db::{Db, Engine};
use super::notices::Notices;
use super::sql::SqlStore;
use super::{mysql, postgres, sqlite};

/// Why the catalog could not be opened. One line each, with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL names no database that Kiln knows.
    #[error(
        "database URL {0:?} is not supported; use sqlite:///path/to/kiln.db, sqlite://:memory:, postgres://user:password@host:port/database or mysql://user:password@host:port/database"
    )]
    Url(String),
    /// The URL is one of a server, but not a good one. The text shows nothing of it.
    #[error(
        "the database's URL cannot be used: {reason}; use {example}, with %XX for special characters in the password"
    )]
    ServerUrl {
        /// What is wrong.
        reason: String,
        /// A good one.
        example: &'static str,
    },
    /// The database is there, but refuses.
    #[error("database {database} refuses: {reason}; check user, password, database and sslmode of its URL")]
    Refused {
        /// Its name and address.
        database: String,
        /// Its own words.
        reason: String,
    },
    /// The schema is newer than this Kiln.
    #[error(
        "database {database} has a newer schema (step {step}) than this Kiln, {kiln}, which knows steps up to {known}; use the version of Kiln that wrote it, or a copy from before",
        kiln = env!("CARGO_PKG_VERSION")
    )]
    Newer {
        /// The file, or name and address.
        database: String,
        /// Its newest step.
        step: i64,
        /// This Kiln's.
        known: i64,
    },
    /// A step of the schema has this Kiln's number, but is another one.
    #[error(
        "database {database} has another version's schema: its step {step} is not this one's; use the version of Kiln that wrote it, or another database"
    )]
    Other {
        /// The file, or name and address.
        database: String,
        /// The first step that differs.
        step: i64,
    },
    /// The schema is older than this Kiln, and the database does not let it be changed.
    #[error(
        "database {database} cannot be brought to this version's schema (step {step}: {reason}); open it once with a user that may make and alter tables"
    )]
    NotUpgraded {
        /// Its name and address.
        database: String,
        /// The first step that is missing.
        step: i64,
        /// Its own words.
        reason: String,
    },
    /// The directory could not be made.
    #[error("cannot create directory {} for the database: {source}; choose another path or make it writable", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("database file {} cannot be written: {source}; give this user write access to it and its directory, or choose another path", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not a database, or the database does not work.
    #[error(
        "database {database} cannot be opened: {source}; check that it is a SQLite database, or choose another path"
    )]
    Database {
        /// The file or `:memory:`.
        database: String,
        /// Why not.
        source: sqlx::Error,
    },
    /// A step to this Kiln's schema failed.
    #[error(
        "database {database} cannot be brought to this version's schema: {source}; check the disk that it is on, or use a copy from before"
    )]
    Schema {
        /// The file or `:memory:`.
        database: String,
        /// Why not.
        source: MigrateError,
    },
}

impl OpenError {
    /// What is wrong with a schema, if waiting does not mend it.
    pub(super) fn schema(database: String, error: &MigrateError, known: &Migrator) -> Result<(), Self> {
        match error {
            MigrateError::VersionMissing(step) => {
                let known = known.iter().map(|migration| migration.version).max().unwrap_or_default();
                Err(Self::Newer { database, step: *step, known })
            }
            MigrateError::VersionMismatch(step) => Err(Self::Other { database, step: *step }),
            _ => Ok(()),
        }
    }
}

/// Tasks that live as long as their store.
#[derive(Debug)]
pub(super) struct Background {
    tasks: TaskTracker,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

impl Background {
    fn new() -> Self {
        let stop = CancellationToken::new();
        Self { tasks: TaskTracker::new(), _stop_on_drop: stop.clone().drop_guard(), stop }
    }

    /// Runs a task that ends soon after the token is cancelled.
    pub(super) fn spawn<F>(&self, task: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(task(self.stop.clone()));
    }

    /// Ends all tasks and waits for them.
    pub(super) async fn end(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Opens `url`. A file and its tables are made where they are missing; a server that cannot be reached is
/// looked for in the background.
pub(crate) async fn open(url: &str, notices: Arc<Notices>) -> Result<SqlStore, OpenError> {
    let background = Background::new();
    let engine = if is_of(url, &["postgres", "postgresql"]) {
        Engine::Postgres(postgres::open(url, notices, &background).await?)
    } else if is_of(url, &["mysql", "mariadb"]) {
        Engine::MySql(mysql::open(url, notices, &background).await?)
    } else {
        let database = url
            .strip_prefix("sqlite:")
            .map(|rest| rest.strip_prefix("//").unwrap_or(rest))
            .filter(|database| !database.is_empty() && !database.contains('?'))
            .ok_or_else(|| OpenError::Url(shown(url).to_owned()))?;
        sqlite::open(database, notices, &background).await?
    };
    Ok(SqlStore::new(Db::new(engine), background))
}

fn is_of(url: &str, schemes: &[&str]) -> bool {
    url.split_once("://").is_some_and(|(scheme, _)| schemes.contains(&scheme))
}

/// What may be shown of a URL of an unknown kind, which may hold a password.
fn shown(url: &str) -> &str {
    match url.split_once("://") {
        Some((scheme, _)) if scheme != "sqlite" => scheme,
        None if url.contains('@') => "",
        _ => url,
    }
}
