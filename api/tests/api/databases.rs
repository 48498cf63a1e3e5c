//! Real servers that the suite runs on: the same facts as on SQLite.

use std::process::Command;
use std::sync::OnceLock;

use kiln_testkit::{mariadb, postgres};

/// Where the server is that the suite shall run on, behind its kind and a colon; absent, it runs on SQLite.
const GIVEN: &str = "KILN_TEST_DATABASE";

/// A server.
pub(crate) enum Given {
    Postgres(postgres::Address),
    Mariadb(mariadb::Address),
}

impl Given {
    /// An empty database.
    pub(crate) async fn database(&self) -> String {
        match self {
            Self::Postgres(address) => address.database().await,
            Self::Mariadb(address) => address.database().await,
        }
    }

    fn to_text(&self) -> String {
        match self {
            Self::Postgres(address) => format!("postgres:{}", address.0.display()),
            Self::Mariadb(address) => format!("mariadb:{}", address.0.display()),
        }
    }

    fn parse(text: &str) -> Self {
        match text.split_once(':').expect("a kind") {
            ("postgres", folder) => Self::Postgres(postgres::Address(folder.into())),
            ("mariadb", socket) => Self::Mariadb(mariadb::Address(socket.into())),
            (other, _) => panic!("{other}"),
        }
    }
}

/// The server that this process's tests run on, if they run on one.
pub(crate) fn given() -> Option<&'static Given> {
    static SERVER: OnceLock<Option<Given>> = OnceLock::new();
    SERVER.get_or_init(|| std::env::var(GIVEN).ok().map(|text| Given::parse(&text))).as_ref()
}

/// Not run here: what is no matter of the database, or takes thousands of changes and was shown on SQLite.
const SKIPPED: [&str; 8] = [
    "postgres::",
    "mariadb::",
    "sqlite::",
    "openapi::",
    "annotations::",
    "every_rule_of_create",
    "who_is_too_far_behind",
    "goes_round_all_databases",
];

/// Runs this very program once more, in one process on one server: to make a server for each test takes longer
/// than all of them.
pub(crate) fn the_suite_passes(server: &Given) {
    let program = std::env::current_exe().expect("a test has a program");
    let run = Command::new(program)
        .args(SKIPPED.iter().flat_map(|name| ["--skip", name]))
        .args(["--test-threads", "4"])
        .env(GIVEN, server.to_text())
        .output()
        .expect("it runs");
    let output = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{output}{}", String::from_utf8_lossy(&run.stderr));
    let passed = output.split("test result: ok. ").nth(1).and_then(|rest| rest.split(' ').next());
    let passed: usize = passed.and_then(|count| count.parse().ok()).expect("a count");
    assert!(passed > 60, "only {passed} tests ran");
}
