//! From a URL to the settings of a connection.

use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;

use super::LOCK_MAX;
use crate::store::server::{IDLE_TRANSACTION_MAX, OPERATION_MAX};

/// Parameters that a URL may have. Others are errors: sqlx would log their values, which may be secrets.
const PARAMETERS: [&str; 7] =
    ["sslmode", "sslrootcert", "sslcert", "sslkey", "host", "application_name", "options"];

/// The settings, or what is wrong with the URL in words that show none of it.
pub(super) fn options(url: &str) -> Result<PgConnectOptions, String> {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let name = pair.split('=').next().unwrap_or(pair);
        if !PARAMETERS.contains(&name) {
            return Err(format!("its parameters may be {}", PARAMETERS.join(", ")));
        }
    }
    let options: PgConnectOptions = url.parse().map_err(|error| match error {
        sqlx::Error::Configuration(cause) => cause.to_string(),
        other => other.to_string(),
    })?;
    if options.get_database().is_none_or(str::is_empty) {
        return Err("it names no database".to_owned());
    }
    let millis = |limit: Duration| limit.as_millis().to_string();
    let limits = [
        ("lock_timeout", millis(LOCK_MAX)),
        ("statement_timeout", millis(OPERATION_MAX)),
        ("idle_in_transaction_session_timeout", millis(IDLE_TRANSACTION_MAX)),
    ];
    let options = if url.contains("application_name=") { options } else { options.application_name("kiln") };
    Ok(options.options(limits).disable_statement_logging())
}

/// Where the database is, without secrets.
pub(super) fn address(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or_default();
    match options.get_socket() {
        Some(socket) => format!("{database} at {}", socket.display()),
        None => format!("{database} at {}:{}", options.get_host(), options.get_port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_host_port_and_database() {
        let found = options("postgres://me:s%40fe@db.example:6543/kiln?sslmode=require").unwrap();
        assert_eq!(address(&found), "kiln at db.example:6543");
        assert_eq!(address(&options("postgresql://me@db/kiln").unwrap()), "kiln at db:5432");
        let socket = options("postgres://me@localhost/kiln?host=/run/postgresql").unwrap();
        assert_eq!(address(&socket), "kiln at /run/postgresql");
    }

    #[test]
    fn what_is_wrong_is_said_without_the_url() {
        for url in [
            "postgres://me:secret@db:port/kiln",
            "postgres://me:secret@db",
            "postgres://me:secret@db/kiln?pass=secret",
            "postgres://me:secret@db/kiln?sslmode=maybe",
            "postgres://me:secret@/",
            "postgres://me:sec/ret@db/kiln",
        ] {
            let wrong = options(url).expect_err(url);
            assert!(!wrong.contains("sec"), "{url}: {wrong}");
        }
    }
}
