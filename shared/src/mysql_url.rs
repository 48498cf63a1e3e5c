//! URLs of MySQL and MariaDB, in Fn's form too: `mysql://user:password@tcp(host:3306)/database`.
//!
//! Fn hands what follows the scheme to Go's driver, whose passwords are written as they are:
//! <https://github.com/go-sql-driver/mysql#dsn-data-source-name>.

use std::borrow::Cow;
use std::fmt::Write as _;

/// The usual form of a URL: `mysql://`, then with `%XX` for special characters, `user:password@host:port/database`.
/// A URL in another form is left as it is.
pub fn standard(url: &str) -> Cow<'_, str> {
    let Some(rest) = url.strip_prefix("mysql://").or_else(|| url.strip_prefix("mariadb://")) else {
        return url.into();
    };
    match from_go(rest) {
        Some(standard) => standard.into(),
        None if url.starts_with("mysql") => url.into(),
        None => format!("mysql://{rest}").into(),
    }
}

/// The form of Go's driver. As there the last slash ends the address, and the last `@` before it the password.
fn from_go(rest: &str) -> Option<String> {
    let (before, database) = rest.rsplit_once(")/")?;
    let (who, address) = match before.rsplit_once("@tcp(") {
        Some((who, address)) => (Some(who), address),
        None => (None, before.strip_prefix("tcp(")?),
    };
    let mut url = "mysql://".to_owned();
    if let Some(who) = who {
        let (user, password) = who.split_once(':').unwrap_or((who, ""));
        escape(user, &mut url);
        if !password.is_empty() {
            url.push(':');
            escape(password, &mut url);
        }
        url.push('@');
    }
    Some(url + address + "/" + database)
}

fn escape(text: &str, url: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            url.push(char::from(byte));
        } else {
            write!(url, "%{byte:02X}").expect("a string takes all");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fns_form_becomes_the_usual_one() {
        for (given, expected) in [
            ("mysql://me:secret@tcp(db.example:3307)/kiln", "mysql://me:secret@db.example:3307/kiln"),
            ("mysql://me@tcp(db)/kiln?ssl-mode=REQUIRED", "mysql://me@db/kiln?ssl-mode=REQUIRED"),
            ("mysql://me:p@s/s:%@tcp([::1]:3306)/kiln", "mysql://me:p%40s%2Fs%3A%25@[::1]:3306/kiln"),
            ("mariadb://tcp(db:3306)/kiln", "mysql://db:3306/kiln"),
        ] {
            assert_eq!(standard(given), expected);
        }
    }

    #[test]
    fn other_forms_stay_as_they_are() {
        assert_eq!(standard("mariadb://me@db/kiln"), "mysql://me@db/kiln");
        for url in ["mysql://me:p%40ss@db:3306/kiln", "mysql://me@tcp(db", "postgres://me@tcp(db)/kiln", ""] {
            assert_eq!(standard(url), url);
        }
    }
}
