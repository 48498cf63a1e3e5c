//! What the errors of databases mean: to wait, to try again, or that a person must act.
//!
//! Postgres is known by its SQLSTATE (five characters), <https://www.postgresql.org/docs/15/errcodes-appendix.html>;
//! SQLite by a number, <https://www.sqlite.org/rescode.html>; MySQL and MariaDB by a number too, since their SQLSTATE
//! tells little, <https://dev.mysql.com/doc/mysql-errors/8.0/en/server-error-reference.html> and
//! <https://mariadb.com/kb/en/mariadb-error-code-reference/>.

use sqlx::error::DatabaseError;
use sqlx::mysql::MySqlDatabaseError;

/// Connection exceptions, read only as a stand-by server is, a transaction left alone too long, who may enter, no such
/// database, conflicts, no room, locks held too long, statements ended, shutting down or starting, trouble of the host.
const POSTGRES_AWAY: [&str; 11] =
    ["08", "25006", "25P03", "28", "3D", "40", "53", "55P03", "57014", "57P", "58"];
/// Who may enter, no such database, no right, no such table: classes of all servers.
const REFUSED: [&str; 3] = ["28", "3D", "42"];

const SQLITE_BUSY: u32 = 5;
const SQLITE_LOCKED: u32 = 6;
const SQLITE_FULL: u32 = 13;

/// Who may enter and no such database, of a server that let us in before: those of `REFUSED` that may pass.
const MYSQL_SHUT: [u16; 4] = [1044, 1045, 1049, 1698];
/// A server that is full, ends or starts, is read only, has too many guests, or ended connection, statement or lock.
const MYSQL_PASSING: [u16; 20] = [
    1020, 1021, 1040, 1053, 1114, 1129, 1203, 1205, 1213, 1226, 1290, 1317, 1836, 1927, 1969, 3024, 3032,
    4025, 4031, 1047,
];
/// Deadlock, lock held too long, row changed since it was read.
const MYSQL_CONFLICT: [u16; 3] = [1213, 1205, 1020];
/// Deadlock, transactions that could not be put in an order.
const POSTGRES_CONFLICT: [&str; 2] = ["40P01", "40001"];

/// True if the same may succeed later: no connection, no answer in time, no room, no lock, no right to write.
pub(super) fn is_away(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(refusal) => match number(&**refusal) {
            Some(number) => MYSQL_PASSING.contains(&number) || MYSQL_SHUT.contains(&number),
            None => refusal.code().is_some_and(|code| match code.parse::<u32>() {
                Ok(number) if code.len() < 5 => {
                    matches!(number & 0xff, SQLITE_BUSY | SQLITE_LOCKED | SQLITE_FULL)
                }
                _ => POSTGRES_AWAY.iter().any(|class| code.starts_with(class)),
            }),
        },
        _ => false,
    }
}

/// True if a server undid the transaction, or would not let it go on, since others were in its way: the same may
/// succeed at once.
pub(super) fn is_conflict(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(refusal) = error else { return false };
    match number(&**refusal) {
        Some(number) => MYSQL_CONFLICT.contains(&number),
        None => refusal.code().is_some_and(|code| POSTGRES_CONFLICT.contains(&&*code)),
    }
}

/// True if user, password, database, rights or TLS settings are wrong.
pub(super) fn is_refusal(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(refusal) => {
            let is_passing = number(&**refusal).is_some_and(|number| MYSQL_PASSING.contains(&number));
            !is_passing
                && refusal.code().is_some_and(|code| REFUSED.iter().any(|class| code.starts_with(class)))
        }
        sqlx::Error::Tls(_) | sqlx::Error::Configuration(_) => true,
        // A certificate that is not believed.
        sqlx::Error::Io(cause) => cause.kind() == std::io::ErrorKind::InvalidData,
        _ => false,
    }
}

/// The number that MySQL and MariaDB give a refusal.
fn number(refusal: &dyn DatabaseError) -> Option<u16> {
    refusal.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number)
}
