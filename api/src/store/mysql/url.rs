//! From a URL to the settings of a connection.

use kiln_shared::mysql_url;
use sqlx::ConnectOptions;
use sqlx::mysql::MySqlConnectOptions;

/// Parameters that a URL may have. Others are errors: sqlx would log their values, which may be secrets.
const PARAMETERS: [&str; 9] =
    ["ssl-mode", "sslmode", "ssl-ca", "sslca", "ssl-cert", "sslcert", "ssl-key", "sslkey", "socket"];

/// The settings, or what is wrong with the URL in words that show none of it.
pub(super) fn options(url: &str) -> Result<MySqlConnectOptions, String> {
    let url = mysql_url::standard(url);
    let query = url.split_once('?').map_or("", |(_, query)| query);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        if !PARAMETERS.contains(&pair.split('=').next().unwrap_or(pair)) {
            return Err(format!("its parameters may be {}", PARAMETERS.join(", ")));
        }
    }
    let options: MySqlConnectOptions = url.parse().map_err(|error| match error {
        sqlx::Error::Configuration(cause) => cause.to_string(),
        other => other.to_string(),
    })?;
    if options.get_database().is_none_or(str::is_empty) {
        return Err("it names no database".to_owned());
    }
    Ok(options.disable_statement_logging())
}

/// Where the database is, without secrets.
pub(super) fn address(options: &MySqlConnectOptions) -> String {
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
        for (url, expected) in [
            ("mysql://me:s%40fe@db.example:3307/kiln?ssl-mode=REQUIRED", "kiln at db.example:3307"),
            ("mysql://me:s@fe@tcp(db.example)/kiln", "kiln at db.example:3306"),
            ("mariadb://me@db/kiln", "kiln at db:3306"),
            ("mysql://me@localhost/kiln?socket=/run/mysqld/mysqld.sock", "kiln at /run/mysqld/mysqld.sock"),
        ] {
            assert_eq!(address(&options(url).expect(url)), expected);
        }
    }

    #[test]
    fn what_is_wrong_is_said_without_the_url() {
        for url in [
            "mysql://me:secret@db:port/kiln",
            "mysql://me:secret@db",
            "mysql://me:secret@tcp(db:3306)/",
            "mysql://me:secret@tcp(db:3306)/kiln?parseTime=true",
            "mysql://me:secret@db/kiln?pass=secret",
            "mysql://me:secret@db/kiln?ssl-mode=maybe",
            "mysql://me:sec/ret@db/kiln",
        ] {
            let wrong = options(url).expect_err(url);
            assert!(!wrong.contains("sec"), "{url}: {wrong}");
        }
    }
}
