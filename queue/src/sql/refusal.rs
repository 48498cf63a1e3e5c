//! What the errors of databases that are servers mean: to wait, to try again, or to say what is wrong.

use kiln_shared::queue::QueueError;
use sqlx::error::DatabaseError;
use sqlx::migrate::MigrateError;

use super::server::CONNECT_MAX;
use crate::OpenError;

/// Postgres ended a statement that took too long, or whose end an operator wanted.
const STATEMENT_ENDED: &str = "57014";
/// SQLSTATE classes and codes of what passes: connection exceptions, no room and too many connections, shutting down
/// or starting, a lock held too long, a transaction left alone too long, a server that is about to take over. See
/// <https://www.postgresql.org/docs/15/errcodes-appendix.html>.
const PASSING: [&str; 7] = ["08", "53", "57P", STATEMENT_ENDED, "55P03", "25P03", "25006"];
/// Numbers of MySQL and MariaDB for what passes, where their SQLSTATE tells nothing: disk or table full, too many
/// connections of one user (two), read only, connection killed, connection unused for too long. See
/// <https://dev.mysql.com/doc/mysql-errors/8.0/en/server-error-reference.html>.
const PASSING_NUMBERS: [u16; 7] = [1021, 1114, 1203, 1226, 1290, 1927, 4031];
/// Their number for a lock held too long.
const LOCK_WAIT_TIMEOUT: u16 = 1205;
/// Their numbers for a right that the user does not have: to the database, to a table.
const FORBIDDEN_NUMBERS: [u16; 2] = [1044, 1142];
/// The SQLSTATE of Postgres for the same.
const FORBIDDEN: &str = "42501";

/// True if others were in the way, or the connection was of the server's last life.
pub(super) fn is_worth_a_try(error: &sqlx::Error) -> bool {
    // Who waited in vain, for a connection or for a statement's end, has waited long enough.
    let waited = matches!(error, sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed)
        || is_of(error, |refusal| refusal.code().as_deref() == Some(STATEMENT_ENDED));
    is_conflict(error) || is_gone(error) && !waited
}

/// Deadlocks, transactions that could not be put in an order (SQLSTATE 40001, and 40P01 of Postgres), and locks of
/// MySQL held too long. Postgres waits no less for those, but says so in a way of its own, [`PASSING`].
fn is_conflict(error: &sqlx::Error) -> bool {
    is_of(error, |refusal| {
        matches!(refusal.code().as_deref(), Some("40001" | "40P01"))
            || number(refusal) == Some(LOCK_WAIT_TIMEOUT)
    })
}

/// True if the server is not there, or cannot serve for now.
fn is_gone(error: &sqlx::Error) -> bool {
    let is_broken = matches!(
        error,
        sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
    );
    let passes = |refusal: &dyn DatabaseError| {
        refusal.code().is_some_and(|code| PASSING.iter().any(|class| code.starts_with(class)))
            || number(refusal).is_some_and(|number| PASSING_NUMBERS.contains(&number))
    };
    is_broken || is_of(error, passes)
}

fn is_forbidden(error: &sqlx::Error) -> bool {
    is_of(error, |refusal| {
        refusal.code().as_deref() == Some(FORBIDDEN)
            || number(refusal).is_some_and(|number| FORBIDDEN_NUMBERS.contains(&number))
    })
}

/// True if the server refused, and so.
fn is_of(error: &sqlx::Error, so: impl FnOnce(&dyn DatabaseError) -> bool) -> bool {
    matches!(error, sqlx::Error::Database(refusal) if so(&**refusal))
}

/// The number that MySQL and MariaDB give a refusal.
#[cfg(feature = "mysql")]
fn number(refusal: &dyn DatabaseError) -> Option<u16> {
    refusal.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>().map(sqlx::mysql::MySqlDatabaseError::number)
}

#[cfg(not(feature = "mysql"))]
fn number(_refusal: &dyn DatabaseError) -> Option<u16> {
    None
}

/// What a caller is told.
pub(crate) fn failure(error: &sqlx::Error) -> QueueError {
    match error {
        sqlx::Error::PoolTimedOut => {
            QueueError::Unavailable(format!("no connection to its database within {CONNECT_MAX:?}"))
        }
        sqlx::Error::PoolClosed => QueueError::Unavailable("it was closed".to_owned()),
        error if is_gone(error) || is_conflict(error) => QueueError::Unavailable(error.to_string()),
        error => QueueError::Failed(error.to_string()),
    }
}

/// What a URL names, as those who open it are told.
pub(crate) struct Place {
    /// Name and address.
    pub(crate) queue: String,
    /// The database.
    pub(crate) database: String,
    /// A statement with which an administrator lets the URL's user make tables.
    pub(crate) grant: String,
}

impl Place {
    /// Why the first connection was not made. `is_missing` knows the refusal of a database that is not there.
    pub(crate) fn not_opened(
        &self,
        error: &sqlx::Error,
        is_missing: impl Fn(&dyn DatabaseError) -> bool,
    ) -> OpenError {
        if is_of(error, is_missing) {
            return OpenError::Missing {
                queue: self.queue.clone(),
                missing: format!("database '{}'", self.database),
            };
        }
        let queue = self.queue.clone();
        self.mendable(error).unwrap_or_else(|| match error {
            sqlx::Error::Database(refusal) => {
                OpenError::Refused { queue, reason: refusal.message().to_owned() }
            }
            error => OpenError::Unreachable { queue, reason: error.to_string() },
        })
    }

    /// Why there are no tables of this version.
    pub(crate) fn not_migrated(&self, error: &MigrateError) -> OpenError {
        match error {
            MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _) => self.no_tables(cause),
            other => OpenError::Schema { queue: self.queue.clone(), reason: other.to_string() },
        }
    }

    /// The same, of a statement that failed.
    pub(crate) fn no_tables(&self, error: &sqlx::Error) -> OpenError {
        let schema = || OpenError::Schema { queue: self.queue.clone(), reason: words(error) };
        self.mendable(error).unwrap_or_else(schema)
    }

    /// What waiting mends, or a right.
    fn mendable(&self, error: &sqlx::Error) -> Option<OpenError> {
        let queue = self.queue.clone();
        if matches!(error, sqlx::Error::PoolTimedOut) {
            Some(OpenError::Unreachable { queue, reason: format!("no answer within {CONNECT_MAX:?}") })
        } else if is_gone(error) || is_conflict(error) {
            Some(OpenError::Unreachable { queue, reason: words(error) })
        } else if is_forbidden(error) {
            Some(OpenError::Forbidden { queue, reason: words(error), grant: self.grant.clone() })
        } else {
            None
        }
    }
}

/// What the server said, or else what is known.
fn words(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(refusal) => refusal.message().to_owned(),
        error => error.to_string(),
    }
}

/// What is wrong with a URL, without it.
pub(crate) fn wrong_url(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Configuration(cause) => cause.to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::borrow::Cow;
    use std::error::Error;
    use std::fmt;

    /// A refusal of a server by its SQLSTATE.
    #[derive(Debug)]
    struct Refusal(&'static str);

    impl fmt::Display for Refusal {
        fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("its words")
        }
    }

    impl Error for Refusal {}

    impl DatabaseError for Refusal {
        fn message(&self) -> &'static str {
            "its words"
        }

        fn code(&self) -> Option<Cow<'_, str>> {
            Some(self.0.into())
        }

        fn as_error(&self) -> &(dyn Error + Send + Sync + 'static) {
            self
        }

        fn as_error_mut(&mut self) -> &mut (dyn Error + Send + Sync + 'static) {
            self
        }

        fn into_error(self: Box<Self>) -> Box<dyn Error + Send + Sync + 'static> {
            self
        }

        fn kind(&self) -> sqlx::error::ErrorKind {
            sqlx::error::ErrorKind::Other
        }
    }

    fn refused(code: &'static str) -> sqlx::Error {
        sqlx::Error::Database(Box::new(Refusal(code)))
    }

    fn place() -> Place {
        Place { queue: "q".to_owned(), database: "d".to_owned(), grant: "GRANT ALL".to_owned() }
    }

    #[test]
    fn what_passes_is_no_failure() {
        // A statement that took too long, a transaction left alone, a server that starts, one with too many guests.
        for code in ["57014", "25P03", "57P03", "53300", "08006", "55P03", "40P01"] {
            assert!(matches!(failure(&refused(code)), QueueError::Unavailable(_)), "{code}");
        }
        for code in ["42501", "23505", "42P01"] {
            assert!(matches!(failure(&refused(code)), QueueError::Failed(_)), "{code}");
        }
    }

    #[test]
    fn what_took_too_long_is_not_tried_again() {
        assert!(is_worth_a_try(&refused("25P03")) && is_worth_a_try(&refused("40001")));
        assert!(!is_worth_a_try(&refused("57014")) && !is_worth_a_try(&sqlx::Error::PoolTimedOut));
    }

    #[test]
    fn a_server_that_starts_or_has_no_room_is_waited_for() {
        for code in ["57P03", "53300", "08004"] {
            let told = place().not_opened(&refused(code), |_| false);
            assert!(matches!(told, OpenError::Unreachable { .. }), "{told}");
        }
        let told = place().not_opened(&refused("28P01"), |_| false).to_string();
        assert_eq!(told, "queue q refuses: its words; check user, password and database of its URL");
        let told = place().not_opened(&refused("3D000"), |_| true);
        assert!(matches!(told, OpenError::Missing { .. }), "{told}");
    }

    #[test]
    fn tables_that_cannot_be_made_are_told_with_their_remedy() {
        let of = |error| place().not_migrated(&MigrateError::ExecuteMigration(error, 1));
        let broken = sqlx::Error::Io(std::io::ErrorKind::UnexpectedEof.into());
        for gone in [
            broken,
            sqlx::Error::PoolTimedOut,
            sqlx::Error::WorkerCrashed,
            refused("57P01"),
            refused("55P03"),
        ] {
            let told = of(gone);
            assert!(matches!(told, OpenError::Unreachable { .. }), "{told}");
        }
        let told = of(refused("42501")).to_string();
        assert_eq!(
            told,
            "queue q does not let its user make tables: its words; have an administrator run: GRANT ALL"
        );
        let nothing = MigrateError::Execute(sqlx::Error::RowNotFound);
        for other in [MigrateError::VersionMissing(99), MigrateError::Execute(refused("42P07")), nothing] {
            let told = place().not_migrated(&other);
            assert!(matches!(told, OpenError::Schema { .. }), "{told}");
        }
    }
}
